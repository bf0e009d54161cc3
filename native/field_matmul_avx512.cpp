#if defined(__x86_64__)
// GCC 12 sees uninitialised registers in its own intrinsics.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "field_matmul.h"

namespace {

using V = __m512i;

inline V set(u64 x) { return _mm512_set1_epi64(static_cast<long long>(x)); }
inline V low(V a) { return _mm512_and_si512(a, set(kMask52)); }
inline V reduce(V a, V bound) { return _mm512_min_epu64(a, _mm512_sub_epi64(a, bound)); }

// hi * 2^52 + lo mod q for sums of up to kMatmulTerms halves of products below 2^88.
inline V fold(V hi, V lo, const Modulus& m) {
    const V zero = _mm512_setzero_si512(), minus_q = set((u64{1} << 52) - m.q), two_q = set(2 * m.q);
    hi = _mm512_add_epi64(hi, _mm512_srli_epi64(lo, 52));
    lo = low(lo);
    const V estimate = _mm512_madd52hi_epu64(zero, hi, set(m.two52_shoup));
    const V upper = low(_mm512_madd52lo_epu64(_mm512_madd52lo_epu64(zero, hi, set(m.two52)), estimate, minus_q));
    const V lower = low(_mm512_madd52lo_epu64(lo, _mm512_madd52hi_epu64(zero, lo, set(m.inv52)), minus_q));
    return reduce(reduce(_mm512_add_epi64(upper, lower), two_q), set(m.q));
}

// Rows rows of x times Wide vectors of eight columns; the last one may be part of a vector.
template <int Rows, int Wide>
inline void block(const Modulus& p, const MatmulArgs& a, std::size_t row, std::size_t column, __mmask8 last) {
    V lo[Rows][Wide], hi[Rows][Wide];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
        for (int w = 0; w < Wide; ++w) lo[r][w] = hi[r][w] = _mm512_setzero_si512();
    for (std::size_t first = 0; first < a.k; first += kMatmulTerms) {
        const std::size_t end = first + kMatmulTerms - 1 < a.k ? first + kMatmulTerms - 1 : a.k;
        for (std::size_t i = first; i < end; ++i) {
            V y[Wide];
#pragma GCC unroll 2
            for (int w = 0; w < Wide; ++w)
                y[w] = _mm512_maskz_loadu_epi64(w == Wide - 1 ? last : __mmask8{0xff}, a.y + i * a.y_stride + column + 8 * w);
#pragma GCC unroll 4
            for (int r = 0; r < Rows; ++r) {
                const V x = set(a.x[(row + r) * a.k + i]);
#pragma GCC unroll 2
                for (int w = 0; w < Wide; ++w) {
                    lo[r][w] = _mm512_madd52lo_epu64(lo[r][w], x, y[w]);
                    hi[r][w] = _mm512_madd52hi_epu64(hi[r][w], x, y[w]);
                }
            }
        }
        if (end == a.k) break;
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
            for (int w = 0; w < Wide; ++w) {
                lo[r][w] = fold(hi[r][w], lo[r][w], p);
                hi[r][w] = _mm512_setzero_si512();
            }
        first -= 1;  // one place in the sums is taken by what is carried over
    }
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
        for (int w = 0; w < Wide; ++w)
            _mm512_mask_storeu_epi64(a.out + (row + r) * a.n + column + 8 * w, w == Wide - 1 ? last : __mmask8{0xff},
                                     fold(hi[r][w], lo[r][w], p));
}

template <int Rows>
void rows(const Modulus& p, const MatmulArgs& a, std::size_t row) {
    for (std::size_t column = 0; column < a.n; column += 16) {
        const std::size_t left = a.n - column;
        const auto mask = [](std::size_t count) { return static_cast<__mmask8>(count >= 8 ? 0xff : (1u << count) - 1); };
        if (left > 8)
            block<Rows, 2>(p, a, row, column, mask(left - 8));
        else
            block<Rows, 1>(p, a, row, column, mask(left));
    }
}

}  // namespace

void field_matmul_avx512(const Modulus& p, const MatmulArgs& a) {
    std::size_t row = 0;
    for (; row + 4 <= a.m; row += 4) rows<4>(p, a, row);
    for (; row < a.m; ++row) rows<1>(p, a, row);
}
#endif
