// AVX-512 IFMA inner loops of the RLWE kernels, for moduli below 2^50: eight residues per register (see bgv_kernels.h).
#if defined(__x86_64__)
// GCC 12 sees uninitialised registers in its own intrinsics.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "bgv_kernels.h"

namespace {

using V = __m512i;

inline V set(u64 x) { return _mm512_set1_epi64(static_cast<long long>(x)); }
inline V load(const u64* p) { return _mm512_loadu_si512(p); }
inline void store(u64* p, V v) { _mm512_storeu_si512(p, v); }
inline V hi52(V acc, V a, V b) { return _mm512_madd52hi_epu64(acc, a, b); }
inline V lo52(V acc, V a, V b) { return _mm512_madd52lo_epu64(acc, a, b); }
inline V add(V a, V b) { return _mm512_add_epi64(a, b); }
inline V sub(V a, V b) { return _mm512_sub_epi64(a, b); }
inline V low(V a) { return _mm512_and_si512(a, set(kMask52)); }
// a for a < bound, a - bound otherwise: the wrapped difference is the larger one when a < bound.
inline V reduce(V a, V bound) { return _mm512_min_epu64(a, sub(a, bound)); }
inline V zero() { return _mm512_setzero_si512(); }

struct Consts {
    V q, two_q, minus_q, inv52, two52, two52_shoup;
    explicit Consts(const Modulus& m)
        : q(set(m.q)), two_q(set(2 * m.q)), minus_q(set((u64{1} << 52) - m.q)), inv52(set(m.inv52)), two52(set(m.two52)),
          two52_shoup(set(m.two52_shoup)) {}
};

// y * w mod q in [0, 2q) for y < 2^52, with ws = floor(w * 2^52 / q).
inline V mul_shoup(V y, V w, V ws, const Consts& c) {
    return low(lo52(lo52(zero(), y, w), hi52(zero(), y, ws), c.minus_q));
}
// v mod q in [0, 2q) for v < 2^52: the estimated quotient is at most one too small.
inline V barrett(V v, const Consts& c) { return low(lo52(v, hi52(zero(), v, c.inv52), c.minus_q)); }
// hi * 2^52 + lo mod q, for hi, lo < 2^52.
inline V fold(V hi, V lo, const Consts& c) {
    const V sum = add(mul_shoup(hi, c.two52, c.two52_shoup, c), barrett(lo, c));
    return reduce(reduce(sum, c.two_q), c.q);
}

void lift(const u64* x, const Modulus& from, u64 scale, const Modulus* to, std::size_t m, u64* out, std::size_t n) {
    const Consts f(from);
    const V w = set(scale), ws = set(static_cast<u64>((u128{scale} << 52) / from.q)), half = set(from.q / 2);
    for (std::size_t t = 0; t < m; ++t) {
        const Consts c(to[t]);
        const V wrap = set(to[t].q - to[t].reduce64(from.q));  // plus this is minus `from`
        for (std::size_t i = 0; i < n; i += 8) {
            V v = load(x + i);
            if (scale != 1) v = reduce(mul_shoup(v, w, ws, f), f.q);
            const __mmask8 negative = _mm512_cmpgt_epu64_mask(v, half);
            V r = reduce(barrett(v, c), c.q);
            r = _mm512_mask_add_epi64(r, negative, r, wrap);
            store(out + t * n + i, reduce(r, c.q));
        }
    }
}

void dot(const Modulus& m, const DotArgs& d) {
    const Consts c(m);
    for (std::size_t i = 0; i < d.n; i += 8) {
        V lo = d.accumulate ? load(d.out + i) : zero(), hi = zero();
        for (std::size_t k = 0; k < d.count; ++k) {
            const V a = load(d.a + k * d.a_stride + i), b = load(d.b + k * d.b_stride + i);
            lo = lo52(lo, a, b);
            hi = hi52(hi, a, b);
            if ((k & 7) == 7) {  // eight products fill 2^51 of the high word's 2^52
                lo = fold(add(hi, _mm512_srli_epi64(lo, 52)), low(lo), c);
                hi = zero();
            }
        }
        store(d.out + i, fold(add(hi, _mm512_srli_epi64(lo, 52)), low(lo), c));
    }
}

void sub_scale(const Modulus& m, const u64* x, const u64* y, u64 scale, const u64* more, u64* out, std::size_t n) {
    const Consts c(m);
    const V w = set(scale), ws = set(static_cast<u64>((u128{scale} << 52) / m.q));
    for (std::size_t i = 0; i < n; i += 8) {
        V v = reduce(mul_shoup(sub(add(load(x + i), c.q), load(y + i)), w, ws, c), c.q);
        if (more) v = reduce(add(v, load(more + i)), c.q);
        store(out + i, v);
    }
}

struct Divisor {
    V q, recip;
    __m128i shift;
    explicit Divisor(const FractionPrime& f) : q(set(f.m.q)), recip(set(f.recip52)), shift(_mm_cvtsi32_si128(52 - static_cast<int>(f.m.bits))) {}
};

// floor(v * 2^52 / q) for v < q, and what remains: the estimate from the reciprocal is at most two too small.
inline V divide_shifted(V& v, const Divisor& d) {
    const V up = _mm512_sll_epi64(v, d.shift);
    V est = add(up, hi52(zero(), up, d.recip));
    V rem = low(sub(zero(), lo52(zero(), est, d.q)));
    for (int i = 0; i < 2; ++i) {
        const __mmask8 over = _mm512_cmpge_epu64_mask(rem, d.q);
        est = _mm512_mask_add_epi64(est, over, est, set(1));
        rem = _mm512_mask_sub_epi64(rem, over, rem, d.q);
    }
    v = rem;
    return est;
}

void fraction(const FractionPrime* primes, std::size_t count, const u64* x, std::size_t stride, u64* hi, u64* lo,
              std::size_t n) {
    for (std::size_t l = 0; l < count; ++l) {
        const FractionPrime& f = primes[l];
        const Consts c(f.m);
        const Divisor d(f);
        const V w = set(f.inv), ws = set(f.inv_shoup52);
        for (std::size_t i = 0; i < n; i += 8) {
            V v = reduce(mul_shoup(load(x + l * stride + i), w, ws, c), c.q);
            V h = divide_shifted(v, d), s = divide_shifted(v, d);
            if (l) s = add(s, load(lo + i)), h = add(h, load(hi + i));
            store(lo + i, low(s));
            store(hi + i, low(add(h, _mm512_srli_epi64(s, 52))));
        }
    }
}

void scale_to(const ScaleTo& to, const u64* hi, const u64* lo, u64* out, std::size_t n) {
    const Consts c(to.p);
    const V w = set(to.factor), ws = set(to.factor_shoup52), half = set(u64{1} << 51);
    for (std::size_t i = 0; i < n; i += 8) {
        const V h = load(hi + i), t = hi52(lo52(half, c.q, h), c.q, load(lo + i));
        const V y = reduce(add(hi52(zero(), c.q, h), _mm512_srli_epi64(t, 52)), c.q);
        store(out + i, reduce(mul_shoup(y, w, ws, c), c.q));
    }
}

void unpack_lift(const LiftFrom& from, const u64* hi, const u64* lo, u64* out, std::size_t stride, std::size_t n) {
    const unsigned k = from.kappa;
    const V mask0 = set(k >= 52 ? kMask52 : (u64{1} << k) - 1), mask1 = set(k > 52 ? (u64{1} << (k - 52)) - 1 : 0);
    const V half0 = set(k <= 52 ? u64{1} << (k - 1) : 0), half1 = set(k > 52 ? u64{1} << (k - 53) : 0);
    const V q0 = set(from.q0), q1 = set(from.q1);
    for (std::size_t i = 0; i < n; i += 8) {
        const V a0 = load(lo + i), a1 = load(hi + i);
        const V t0 = lo52(half0, a0, q0);
        const V t1 = lo52(lo52(hi52(add(half1, _mm512_srli_epi64(t0, 52)), a0, q0), a0, q1), a1, q0);
        const V low0 = _mm512_and_si512(t0, mask0), low1 = _mm512_and_si512(t1, mask1);
        for (std::size_t l = 0; l < from.count; ++l) {
            const LiftPrime& f = from.primes[l];
            const Consts c(f.m);
            const V a = mul_shoup(low0, set(f.low), set(f.low_shoup52), c);
            const V b = mul_shoup(low1, set(f.high), set(f.high_shoup52), c);
            const V sum = reduce(add(a, b), c.two_q);
            store(out + l * stride + i, reduce(reduce(add(sum, set(f.half)), c.two_q), c.q));
        }
    }
}

void wide(const Modulus& m, u64 offset, const u64* hi, const u64* lo, u64* out, std::size_t n) {
    const Consts c(m);
    const V minus = set(m.q - offset);
    for (std::size_t i = 0; i < n; i += 8)
        store(out + i, reduce(add(fold(load(hi + i), load(lo + i), c), minus), c.q));
}

// Ones in each half of every word.
inline V ones32(V x) {
    const V m1 = set(0x5555555555555555), m2 = set(0x3333333333333333), m4 = set(0x0f0f0f0f0f0f0f0f);
    x = sub(x, _mm512_and_si512(_mm512_srli_epi64(x, 1), m1));
    x = add(_mm512_and_si512(x, m2), _mm512_and_si512(_mm512_srli_epi64(x, 2), m2));
    x = _mm512_and_si512(add(x, _mm512_srli_epi64(x, 4)), m4);
    x = add(x, _mm512_srli_epi64(x, 8));
    return _mm512_and_si512(add(x, _mm512_srli_epi64(x, 16)), set(0x000000ff000000ff));
}

void error(const u64* words, const Modulus* m, std::size_t count, u64* out, std::size_t n) {
    const V mask = set((u64{1} << 21) - 1);
    for (std::size_t i = 0; i < n; i += 8) {
        const V w = load(words + i), tails = _mm512_and_si512(_mm512_srli_epi64(w, 21), mask);
        const V ones = ones32(_mm512_or_si512(_mm512_and_si512(w, mask), _mm512_slli_epi64(tails, 32)));
        const V v = sub(_mm512_and_si512(ones, set(0xff)), _mm512_srli_epi64(ones, 32));
        for (std::size_t l = 0; l < count; ++l) store(out + l * n + i, _mm512_min_epu64(v, add(v, set(m[l].q))));
    }
}

}  // namespace

const BgvKernels bgv_avx512{lift, dot, sub_scale, fraction, scale_to, unpack_lift, wide, error};
#endif
