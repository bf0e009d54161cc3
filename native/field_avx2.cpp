#if defined(__x86_64__)
#include <immintrin.h>

#include <cstring>

#include "field_matvec.h"

namespace {

struct Ops {
    using V = __m256i;
    static constexpr std::size_t kLanes = 16;
    static V zero() { return _mm256_setzero_si256(); }
    static V load(const std::int16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static V load_part(const std::int16_t* p, std::size_t count) {
        std::int16_t part[kLanes] = {};
        std::memcpy(part, p, count * sizeof(part[0]));
        return load(part);
    }
    static V madd(V acc, V a, V b) { return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)); }
    static i64 total(V v) {
        const V sum = _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_castsi256_si128(v)),
                                       _mm256_cvtepi32_epi64(_mm256_extracti128_si256(v, 1)));
        const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
        return _mm_cvtsi128_si64(half) + _mm_extract_epi64(half, 1);
    }
};

}  // namespace

const FieldKernels field_avx2 = {Ops::kLanes, field_matvec_rows<Ops, 2>};
#endif
