#if defined(__x86_64__)
// GCC 12 sees uninitialised registers in its own intrinsics.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "field_matvec.h"

namespace {

struct Ops {
    using V = __m512i;
    static constexpr std::size_t kLanes = 32;
    static V zero() { return _mm512_setzero_si512(); }
    static V load(const std::int16_t* p) { return _mm512_loadu_si512(p); }
    static V load_part(const std::int16_t* p, std::size_t count) {
        return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((u64{1} << count) - 1), p);
    }
    static V madd(V acc, V a, V b) { return _mm512_add_epi32(acc, _mm512_madd_epi16(a, b)); }
    static V widen(V v) {
        return _mm512_add_epi64(_mm512_cvtepi32_epi64(_mm512_castsi512_si256(v)),
                                _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(v, 1)));
    }
    // Two registers to one that holds their pairwise sums side by side.
    static V fold(V a, V b) { return _mm512_add_epi64(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b)); }
    static void add_totals(const V* acc, i64* sums) {
        const V a = fold(widen(acc[0]), widen(acc[1])), b = fold(widen(acc[2]), widen(acc[3]));
        const V halves = _mm512_add_epi64(_mm512_shuffle_i64x2(a, b, 0x44), _mm512_shuffle_i64x2(a, b, 0xee));
        const V whole = _mm512_add_epi64(halves, _mm512_shuffle_i64x2(halves, halves, 0xb1));
        const __m256i result = _mm256_inserti128_si256(_mm512_castsi512_si256(whole), _mm512_extracti64x2_epi64(whole, 2), 1);
        const __m256i before = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums), _mm256_add_epi64(before, result));
    }
};

}  // namespace

const FieldKernels field_avx512 = {Ops::kLanes, field_matvec_rows<Ops, 4>};
#endif
