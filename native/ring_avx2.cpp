// AVX2 kernels for primes below 2^50. There is no wide integer product, so residues become doubles: with fused
// multiply-add, h = a*b and a*b - h are both exact, and so is the remainder of an integer below 2^53.
#if defined(__x86_64__)
#include <immintrin.h>

#include "ring_kernels.h"

namespace {

using V = __m256d;

struct Consts {
    V q, q_inv, bias;
    explicit Consts(const Modulus& m)
        : q(_mm256_set1_pd(static_cast<double>(m.q))),
          q_inv(_mm256_set1_pd(1.0 / static_cast<double>(m.q))),
          bias(_mm256_set1_pd(4503599627370496.0)) {}  // 2^52: its mantissa bits are an integer's
};

inline V load(const u64* p) { return _mm256_loadu_pd(reinterpret_cast<const double*>(p)); }
inline void store(u64* p, V v) { _mm256_storeu_pd(reinterpret_cast<double*>(p), v); }
inline V nearest(V v) { return _mm256_round_pd(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// An integer below 2^52 as a double, and back.
inline V from_words(const u64* p, const Consts& c) { return _mm256_sub_pd(_mm256_or_pd(load(p), c.bias), c.bias); }
inline void to_words(u64* p, V v, const Consts& c) { store(p, _mm256_xor_pd(_mm256_add_pd(v, c.bias), c.bias)); }

// |v| < 2^53 to at most a little over q/2 in magnitude.
inline V centre(V v, const Consts& c) { return _mm256_fnmadd_pd(nearest(_mm256_mul_pd(v, c.q_inv)), c.q, v); }
// The residue in [0, q).
inline V residue(V v, const Consts& c) {
    v = centre(v, c);
    return _mm256_add_pd(v, _mm256_and_pd(c.q, _mm256_cmp_pd(v, _mm256_setzero_pd(), _CMP_LT_OQ)));
}

// y * w modulo q for |y| < 2^52, ratio = w/q: the quotient is off by at most one and a half, so the result is below 1.5 q
// in magnitude (0.6 q for |y| < q/2).
inline V mul_mod(V y, V w, V ratio, const Consts& c) {
    const V high = _mm256_mul_pd(y, w), low = _mm256_fmsub_pd(y, w, high);
    return _mm256_add_pd(_mm256_fnmadd_pd(nearest(_mm256_mul_pd(y, ratio)), c.q, high), low);
}

inline void forward(V& x, V& y, V w, V ratio, const Consts& c) {
    const V t = mul_mod(y, w, ratio, c);
    y = _mm256_sub_pd(x, t);
    x = _mm256_add_pd(x, t);
}

inline void inverse(V& x, V& y, V w, V ratio, const Consts& c) {
    const V u = x;
    x = _mm256_add_pd(u, y);
    y = mul_mod(_mm256_sub_pd(u, y), w, ratio, c);
}

inline V broadcast(const double* p) { return _mm256_broadcast_sd(p); }

// Two levels on block i of m: four values per column, centred on loading, so that all stay below 4q < 2^52.
void forward_pass(u64* x, const DoubleTables& t, std::size_t gap, u32 m, u32 i, const Consts& c) {
    const V w1 = broadcast(t.w + m + i), r1 = broadcast(t.ratio + m + i);
    const V w2 = broadcast(t.w + 2 * (m + i)), r2 = broadcast(t.ratio + 2 * (m + i));
    const V w3 = broadcast(t.w + 2 * (m + i) + 1), r3 = broadcast(t.ratio + 2 * (m + i) + 1);
    for (std::size_t j = 0; j < gap; j += 4) {
        V a = centre(load(x + j), c), b = centre(load(x + gap + j), c);
        V d = centre(load(x + 2 * gap + j), c), e = centre(load(x + 3 * gap + j), c);
        forward(a, d, w1, r1, c), forward(b, e, w1, r1, c);
        forward(a, b, w2, r2, c), forward(d, e, w3, r3, c);
        store(x + j, a), store(x + gap + j, b), store(x + 2 * gap + j, d), store(x + 3 * gap + j, e);
    }
}

void inverse_pass(u64* x, const DoubleTables& t, std::size_t gap, u32 m, u32 i, const Consts& c) {
    const V w1 = broadcast(t.w + m + i), r1 = broadcast(t.ratio + m + i);
    const V w2 = broadcast(t.w + 2 * (m + i)), r2 = broadcast(t.ratio + 2 * (m + i));
    const V w3 = broadcast(t.w + 2 * (m + i) + 1), r3 = broadcast(t.ratio + 2 * (m + i) + 1);
    for (std::size_t j = 0; j < gap; j += 4) {
        V a = centre(load(x + j), c), b = centre(load(x + gap + j), c);
        V d = centre(load(x + 2 * gap + j), c), e = centre(load(x + 3 * gap + j), c);
        inverse(a, b, w2, r2, c), inverse(d, e, w3, r3, c);
        inverse(a, d, w1, r1, c), inverse(b, e, w1, r1, c);
        store(x + j, a), store(x + gap + j, b), store(x + 2 * gap + j, d), store(x + 3 * gap + j, e);
    }
}

inline void transpose(V& a, V& b, V& d, V& e) {
    const V t0 = _mm256_unpacklo_pd(a, b), t1 = _mm256_unpackhi_pd(a, b);
    const V t2 = _mm256_unpacklo_pd(d, e), t3 = _mm256_unpackhi_pd(d, e);
    a = _mm256_permute2f128_pd(t0, t2, 0x20), b = _mm256_permute2f128_pd(t1, t3, 0x20);
    d = _mm256_permute2f128_pd(t0, t2, 0x31), e = _mm256_permute2f128_pd(t1, t3, 0x31);
}

// The last two levels of sixteen values: after a transposition lane b holds block b of four. The tail table has three
// registers of factors, then three of ratios.
inline void forward_tail(u64* x, const double* tail, const Consts& c) {
    V a = centre(load(x), c), b = centre(load(x + 4), c), d = centre(load(x + 8), c), e = centre(load(x + 12), c);
    transpose(a, b, d, e);
    const V w1 = _mm256_loadu_pd(tail), r1 = _mm256_loadu_pd(tail + 12);
    forward(a, d, w1, r1, c), forward(b, e, w1, r1, c);
    forward(a, b, _mm256_loadu_pd(tail + 4), _mm256_loadu_pd(tail + 16), c);
    forward(d, e, _mm256_loadu_pd(tail + 8), _mm256_loadu_pd(tail + 20), c);
    transpose(a, b, d, e);
    to_words(x, residue(a, c), c), to_words(x + 4, residue(b, c), c);
    to_words(x + 8, residue(d, c), c), to_words(x + 12, residue(e, c), c);
}

inline void inverse_tail(u64* x, const double* tail, const Consts& c) {
    V a = from_words(x, c), b = from_words(x + 4, c), d = from_words(x + 8, c), e = from_words(x + 12, c);
    transpose(a, b, d, e);
    const V w1 = _mm256_loadu_pd(tail), r1 = _mm256_loadu_pd(tail + 12);
    inverse(a, b, _mm256_loadu_pd(tail + 4), _mm256_loadu_pd(tail + 16), c);
    inverse(d, e, _mm256_loadu_pd(tail + 8), _mm256_loadu_pd(tail + 20), c);
    inverse(a, d, w1, r1, c), inverse(b, e, w1, r1, c);
    transpose(a, b, d, e);
    store(x, a), store(x + 4, b), store(x + 8, d), store(x + 12, e);
}

// Depth first: a block stays in the cache once it fits.
void forward_from(u64* x, const DoubleTables& t, std::size_t length, u32 m, u32 i, const Consts& c) {
    if (length == 4) return;
    const std::size_t part = length / 4;
    forward_pass(x, t, part, m, i, c);
    for (u32 k = 0; k < 4 && part > 4; ++k) forward_from(x + k * part, t, part, 4 * m, 4 * i + k, c);
}

void inverse_from(u64* x, const DoubleTables& t, std::size_t length, u32 m, u32 i, const Consts& c) {
    if (length == 4) return;
    const std::size_t part = length / 4;
    for (u32 k = 0; k < 4 && part > 4; ++k) inverse_from(x + k * part, t, part, 4 * m, 4 * i + k, c);
    inverse_pass(x, t, part, m, i, c);
}

void ntt(u64* x, const NttPlan& p) {
    if (p.n < 16) return ring_portable.ntt(x, p);
    const Consts c(p.m);
    const DoubleTables t = double_tables(p, false);
    for (u32 i = 0; i < p.n; i += 4) store(x + i, from_words(x + i, c));
    if (p.lg % 2) {  // one level alone, so that the rest pairs up
        const std::size_t half = p.n / 2;
        for (std::size_t j = 0; j < half; j += 4) {
            V a = load(x + j), b = load(x + half + j);
            forward(a, b, broadcast(t.w + 1), broadcast(t.ratio + 1), c);
            store(x + j, a), store(x + half + j, b);
        }
        forward_from(x, t, half, 2, 0, c), forward_from(x + half, t, half, 2, 1, c);
    } else {
        forward_from(x, t, p.n, 1, 0, c);
    }
    for (u32 i = 0; i < p.n; i += 16) forward_tail(x + i, t.tail + i / 16 * 24, c);
}

void intt(u64* x, const NttPlan& p) {
    if (p.n < 16) return ring_portable.intt(x, p);
    const Consts c(p.m);
    const DoubleTables t = double_tables(p, true);
    for (u32 i = 0; i < p.n; i += 16) inverse_tail(x + i, t.tail + i / 16 * 24, c);
    if (p.lg % 2) {
        const std::size_t half = p.n / 2;
        inverse_from(x, t, half, 2, 0, c), inverse_from(x + half, t, half, 2, 1, c);
        for (std::size_t j = 0; j < half; j += 4) {
            V a = centre(load(x + j), c), b = centre(load(x + half + j), c);
            inverse(a, b, broadcast(t.w + 1), broadcast(t.ratio + 1), c);
            store(x + j, a), store(x + half + j, b);
        }
    } else {
        inverse_from(x, t, p.n, 1, 0, c);
    }
    const double n_inv = static_cast<double>(p.n_inv);
    const V w = _mm256_set1_pd(n_inv), ratio = _mm256_set1_pd(n_inv / static_cast<double>(p.m.q));
    for (u32 i = 0; i < p.n; i += 4) to_words(x + i, residue(mul_mod(centre(load(x + i), c), w, ratio, c), c), c);
}

inline V product(V a, V b, const Consts& c) { return mul_mod(a, b, _mm256_mul_pd(b, c.q_inv), c); }

void mul(const Modulus& m, const u64* a, const u64* b, u64* out, std::size_t n) {
    const Consts c(m);
    std::size_t i = 0;
    for (; i + 4 <= n; i += 4) to_words(out + i, residue(product(from_words(a + i, c), from_words(b + i, c), c), c), c);
    ring_portable.mul(m, a + i, b + i, out + i, n - i);
}

void mul_add(const Modulus& m, const u64* a, const u64* b, u64* acc, std::size_t n) {
    const Consts c(m);
    std::size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        const V r = product(from_words(a + i, c), from_words(b + i, c), c);
        to_words(acc + i, residue(_mm256_add_pd(r, from_words(acc + i, c)), c), c);
    }
    ring_portable.mul_add(m, a + i, b + i, acc + i, n - i);
}

void mul_scalar(const Modulus& m, const u64* a, u64 w, u64* out, std::size_t n) {
    const Consts c(m);
    const V wv = _mm256_set1_pd(static_cast<double>(w)), ratio = _mm256_mul_pd(wv, c.q_inv);
    std::size_t i = 0;
    for (; i + 4 <= n; i += 4) to_words(out + i, residue(mul_mod(from_words(a + i, c), wv, ratio, c), c), c);
    ring_portable.mul_scalar(m, a + i, w, out + i, n - i);
}

// Sums of centred residues, one group and component at a time; two products between a load and a store of the sum.
template <int Count>
inline void mac_step(const MacArgs& g, const u64* const* ct, const u64* const* pt, std::size_t at, double* sums,
                     const Consts& c) {
    for (std::size_t i = g.begin; i < g.end; i += 4) {
        V sum = _mm256_load_pd(sums + i - g.begin);
#pragma GCC unroll 2
        for (int j = 0; j < Count; ++j) {
            const u64* b = pt[j] + (i >> g.shift);
            const V factor = g.shift >= 2 ? _mm256_set1_pd(static_cast<double>(*b))
                             : g.shift == 0 ? from_words(b, c)
                                            : _mm256_setr_pd(static_cast<double>(b[0]), static_cast<double>(b[0]),
                                                             static_cast<double>(b[1]), static_cast<double>(b[1]));
            sum = _mm256_add_pd(sum, product(from_words(ct[j] + at + i, c), factor, c));
        }
        _mm256_store_pd(sums + i - g.begin, centre(sum, c));
    }
}

void mac(const Modulus& m, const MacArgs& g) {
    if ((g.end - g.begin) % 4 || g.begin % 4) return ring_portable.mac(m, g);
    const Consts c(m);
    alignas(32) double sums[kMacChunk];
    for (std::size_t gc = 0; gc < g.groups * g.components; ++gc) {
        const std::size_t group = gc / g.components, at = (gc % g.components) * g.stride;
        u64* acc = g.acc + group * g.group_stride + at;
        const u64* const* pt = g.pt + group * g.count;
        for (std::size_t i = g.begin; i < g.end; i += 4) _mm256_store_pd(sums + i - g.begin, from_words(acc + i, c));
        std::size_t k = 0;
        for (; k + 2 <= g.count; k += 2) mac_step<2>(g, g.ct + k, pt + k, at, sums, c);
        if (k < g.count) mac_step<1>(g, g.ct + k, pt + k, at, sums, c);
        for (std::size_t i = g.begin; i < g.end; i += 4)
            to_words(acc + i, residue(_mm256_load_pd(sums + i - g.begin), c), c);
    }
}

// These calls, rather than ring_portable's pointers in the table: a table that is not constant would be filled by code of
// this file when the module is loaded, on any machine.
void add(const Modulus& m, const u64* a, const u64* b, u64* out, std::size_t n) { ring_portable.add(m, a, b, out, n); }
void sub(const Modulus& m, const u64* a, const u64* b, u64* out, std::size_t n) { ring_portable.sub(m, a, b, out, n); }
void permute(const u64* x, const u32* perm, u64* out, std::size_t n) { ring_portable.permute(x, perm, out, n); }

}  // namespace

const RingKernels ring_avx2 = {ntt, intt, add, sub, mul, mul_add, mul_scalar, mac, permute};
#endif
