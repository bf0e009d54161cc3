// What the AVX-512 files of the ring share: eight residues per register, lazy values below 4q < 2^52. Everything is in an
// unnamed namespace: nothing compiled here may be called from portable code.
#pragma once

// GCC 12 sees uninitialised registers in its own intrinsics.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "ring_kernels.h"

namespace {

using V = __m512i;

inline V set(u64 x) { return _mm512_set1_epi64(static_cast<long long>(x)); }
inline V load(const u64* p) { return _mm512_loadu_si512(p); }
inline void store(u64* p, V v) { _mm512_storeu_si512(p, v); }
inline V hi52(V a, V b) { return _mm512_madd52hi_epu64(_mm512_setzero_si512(), a, b); }
inline V lo52(V a, V b) { return _mm512_madd52lo_epu64(_mm512_setzero_si512(), a, b); }
inline V add(V a, V b) { return _mm512_add_epi64(a, b); }
inline V sub(V a, V b) { return _mm512_sub_epi64(a, b); }
// a for a < bound, a - bound otherwise: the wrapped difference is the larger one when a < bound.
inline V reduce(V a, V bound) { return _mm512_min_epu64(a, sub(a, bound)); }

struct Consts {
    V q, two_q, minus_q, mask;
    explicit Consts(u64 prime)
        : q(set(prime)), two_q(set(2 * prime)), minus_q(set((u64{1} << 52) - prime)), mask(set(kMask52)) {}
};

// y * w mod q in [0, 2q) for y < 2^52, with ws = floor(w * 2^52 / q).
inline V mul_shoup(V y, V w, V ws, const Consts& c) {
    V product = lo52(y, w);
    return _mm512_and_si512(_mm512_madd52lo_epu64(product, hi52(y, ws), c.minus_q), c.mask);
}

// a * w mod q for a below 2^52; ws = floor(w * 2^52 / q).
inline void scale_row(const Consts& c, const u64* a, V w, V ws, u64* out, std::size_t n) {
    for (std::size_t i = 0; i + 8 <= n; i += 8) store(out + i, reduce(mul_shoup(load(a + i), w, ws, c), c.q));
}

}  // namespace

void ring_ntt_avx512(u64* x, const NttPlan& plan);
void ring_intt_avx512(u64* x, const NttPlan& plan);
void ring_mac_avx512(const Modulus& m, const MacArgs& args);
