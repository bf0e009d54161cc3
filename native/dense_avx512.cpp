#if defined(__x86_64__)
// GCC 12 sees uninitialised registers in its own intrinsics.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "dense_kernels.h"

namespace {

constexpr int kRows = 6, kVectors = 4;  // 24 sums in registers, 4 words of x and a weight

// Weights of `Rows` rows as 64-bit words, so that the product instruction can broadcast them from memory.
template <int Rows>
void widen(const DenseBlock& b, std::size_t row, u64* words) {
    for (int r = 0; r < Rows; ++r) {
        const std::int16_t* w = b.w + (row + static_cast<std::size_t>(r)) * b.w_stride;
        u64* to = words + static_cast<std::size_t>(r) * kDenseDepth;
        std::size_t i = 0;
        for (; i + 8 <= b.depth; i += 8)
            _mm512_store_si512(to + i, _mm512_cvtepi16_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w + i))));
        for (; i < b.depth; ++i) to[i] = static_cast<u64>(i64{w[i]});
    }
}

// The low-product instruction adds the low 52 bits of 52-bit products to 64-bit lanes: exact modulo 2^52, also where
// the lanes overflow.
template <int Rows>
void tile(const DenseBlock& b, std::size_t row, const u64* words) {
    const __m512i mask = _mm512_set1_epi64(static_cast<i64>(kMask52));
    for (std::size_t first = 0; first < b.cols; first += kPanel) {
        const u64* panel = b.panels + first * b.depth;
        __m512i acc[Rows][kVectors];
#pragma GCC unroll 6
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) acc[r][v] = _mm512_setzero_si512();
        for (std::size_t i = 0; i < b.depth; ++i) {
            __m512i x[kVectors];
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) x[v] = _mm512_load_si512(panel + i * kPanel + 8 * static_cast<std::size_t>(v));
#pragma GCC unroll 6
            for (int r = 0; r < Rows; ++r) {
                const __m512i w = _mm512_set1_epi64(static_cast<i64>(words[static_cast<std::size_t>(r) * kDenseDepth + i]));
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) acc[r][v] = _mm512_madd52lo_epu64(acc[r][v], x[v], w);
            }
        }
        for (int r = 0; r < Rows; ++r) {
            u64* out = b.out + (row + static_cast<std::size_t>(r)) * b.stride + first;
            for (int v = 0; v < kVectors; ++v) {
                const std::size_t at = first + 8 * static_cast<std::size_t>(v);
                if (at >= b.cols) break;
                const std::size_t left = b.cols - at;
                const auto lanes = static_cast<__mmask8>(left < 8 ? (1u << left) - 1 : 0xff);
                u64* to = out + 8 * v;
                __m512i sum = acc[r][v];
                if (!b.fresh) sum = _mm512_add_epi64(sum, _mm512_maskz_loadu_epi64(lanes, to));
                _mm512_mask_storeu_epi64(to, lanes, _mm512_and_si512(sum, mask));
            }
        }
    }
}

template <int Rows>
void rows_of(const DenseBlock& b, std::size_t row, u64* words) {
    widen<Rows>(b, row, words);
    tile<Rows>(b, row, words);
}

}  // namespace

void dense_block_avx512(const DenseBlock& b) {
    alignas(64) u64 words[kRows * kDenseDepth];
    std::size_t row = 0;
    for (; row + kRows <= b.rows; row += kRows) rows_of<kRows>(b, row, words);
    switch (b.rows - row) {
        case 5: return rows_of<5>(b, row, words);
        case 4: return rows_of<4>(b, row, words);
        case 3: return rows_of<3>(b, row, words);
        case 2: return rows_of<2>(b, row, words);
        case 1: return rows_of<1>(b, row, words);
        default: return;
    }
}

void dense_errors_avx512(const u64* words, u64* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) out[i] = dense_error(words[i]);
}
#endif
