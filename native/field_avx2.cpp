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
    static V widen(V v) {
        return _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_castsi256_si128(v)),
                                _mm256_cvtepi32_epi64(_mm256_extracti128_si256(v, 1)));
    }
    // Two registers to one that holds their pairwise sums side by side.
    static V fold(V a, V b) { return _mm256_add_epi64(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b)); }
    static void add_totals(const V* acc, i64* sums) {
        const V a = fold(widen(acc[0]), widen(acc[1])), b = fold(widen(acc[2]), widen(acc[3]));
        const V result = _mm256_add_epi64(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
        const V before = _mm256_loadu_si256(reinterpret_cast<const V*>(sums));
        _mm256_storeu_si256(reinterpret_cast<V*>(sums), _mm256_add_epi64(before, result));
    }
};

}  // namespace

const FieldKernels field_avx2 = {Ops::kLanes, field_matvec_rows<Ops, 2>};
#endif
