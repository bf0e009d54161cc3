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
    static i64 total(V v) {
        const V low = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(v));
        const V high = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(v, 1));
        return _mm512_reduce_add_epi64(_mm512_add_epi64(low, high));
    }
};

}  // namespace

const FieldKernels field_avx512 = {Ops::kLanes, field_matvec_rows<Ops, 4>};
#endif
