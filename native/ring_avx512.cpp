// AVX-512 IFMA kernels for primes below 2^50: eight residues per register, lazy values below 4q < 2^52.
#if defined(__x86_64__)
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

// (x, y) -> (x + w y, x - w y): below 4q in, below 4q out. A small prime needs no reduction of x: see ntt.
template <bool Roomy>
inline void forward(V& x, V& y, V w, V ws, const Consts& c) {
    V u = Roomy ? x : reduce(x, c.two_q);
    V t = mul_shoup(y, w, ws, c);
    x = add(u, t);
    y = sub(add(u, c.two_q), t);
}

// (x, y) -> (x + y, (x - y) w): below 2q in, below 2q out.
inline void inverse(V& x, V& y, V w, V ws, const Consts& c) {
    V u = x;
    x = reduce(add(u, y), c.two_q);
    y = mul_shoup(sub(add(u, c.two_q), y), w, ws, c);
}

// Rows become columns: an 8 x 8 block of words.
inline void transpose(V v[8]) {
    V a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm512_unpacklo_epi64(v[i], v[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi64(v[i], v[i + 1]);
    }
    for (int i = 0; i < 2; ++i)
        for (int h = 0; h < 8; h += 4) {
            b[h + i] = _mm512_shuffle_i64x2(a[h + i], a[h + 2 + i], 0x88);
            b[h + 2 + i] = _mm512_shuffle_i64x2(a[h + i], a[h + 2 + i], 0xdd);
        }
    for (int i = 0; i < 4; ++i) {
        v[i] = _mm512_shuffle_i64x2(b[i], b[i + 4], 0x88);
        v[i + 4] = _mm512_shuffle_i64x2(b[i], b[i + 4], 0xdd);
    }
}

struct Twiddles {  // the 2^levels - 1 factors of one block, for 1 to 3 levels of butterflies
    V w[7], ws[7];
    Twiddles(const u64* table, const u64* table52, u32 m, u32 i, int levels) {
        for (int level = 0, k = 0; level < levels; ++level)
            for (u32 j = 0; j < (u32{1} << level); ++j, ++k) {
                const u32 at = (m << level) + (i << level) + j;
                w[k] = set(table[at]), ws[k] = set(table52[at]);
            }
    }
};

// Levels of butterflies on 2^Levels registers, in registers: level l joins those 2^(Levels-1-l) apart.
template <int Levels, bool Roomy>
inline void forward_block(V* v, const Twiddles& t, const Consts& c) {
#pragma GCC unroll 3
    for (int level = 0; level < Levels; ++level) {
        const int gap = 1 << (Levels - 1 - level);
#pragma GCC unroll 8
        for (int k = 0; k < (1 << Levels); ++k)
            if (!(k & gap)) {
                const int f = (1 << level) - 1 + (k >> (Levels - level));
                forward<Roomy>(v[k], v[k + gap], t.w[f], t.ws[f], c);
            }
    }
}

template <int Levels>
inline void inverse_block(V* v, const Twiddles& t, const Consts& c) {
#pragma GCC unroll 3
    for (int level = Levels - 1; level >= 0; --level) {
        const int gap = 1 << (Levels - 1 - level);
#pragma GCC unroll 8
        for (int k = 0; k < (1 << Levels); ++k)
            if (!(k & gap)) {
                const int f = (1 << level) - 1 + (k >> (Levels - level));
                inverse(v[k], v[k + gap], t.w[f], t.ws[f], c);
            }
    }
}

// One pass over block i of the m blocks of a transform of length n: `Levels` levels at once.
template <int Levels, bool Roomy>
void forward_pass(u64* x, const NttPlan& p, u32 m, u32 i, const Consts& c) {
    const std::size_t gap = p.n / m >> Levels;
    const Twiddles t(p.w.data(), p.w52.data(), m, i, Levels);
    for (std::size_t j = 0; j < gap; j += 8) {
        V v[1 << Levels];
#pragma GCC unroll 8
        for (int k = 0; k < (1 << Levels); ++k) v[k] = load(x + k * gap + j);
        forward_block<Levels, Roomy>(v, t, c);
#pragma GCC unroll 8
        for (int k = 0; k < (1 << Levels); ++k) store(x + k * gap + j, v[k]);
    }
}

template <int Levels>
void inverse_pass(u64* x, const NttPlan& p, u32 m, u32 i, const Consts& c) {
    const std::size_t gap = p.n / m >> Levels;
    const Twiddles t(p.iw.data(), p.iw52.data(), m, i, Levels);
    for (std::size_t j = 0; j < gap; j += 8) {
        V v[1 << Levels];
#pragma GCC unroll 8
        for (int k = 0; k < (1 << Levels); ++k) v[k] = load(x + k * gap + j);
        inverse_block<Levels>(v, t, c);
#pragma GCC unroll 8
        for (int k = 0; k < (1 << Levels); ++k) store(x + k * gap + j, v[k]);
    }
}

// The factors of the last three levels for eight neighbouring blocks of eight (see ntt_plan): seven registers each.
struct Tail {
    V w[7], ws[7];
    explicit Tail(const u64* table) {
        for (int k = 0; k < 7; ++k) w[k] = load(table + 8 * k), ws[k] = load(table + 56 + 8 * k);
    }
};

// The last four levels of 64 words: one between neighbouring registers, three after a transposition.
template <bool Roomy>
inline void forward_tail(u64* x, const NttPlan& p, u32 group, const Consts& c) {
    V v[8];
    const u32 at = p.n / 16 + 4 * group;
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) v[k] = load(x + 8 * k);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) forward<Roomy>(v[2 * k], v[2 * k + 1], set(p.w[at + k]), set(p.w52[at + k]), c);
    transpose(v);
    const u64* tail = p.tail.data() + std::size_t{112} * group;
#pragma GCC unroll 3
    for (int level = 0; level < 3; ++level) {
        const int gap = 4 >> level;
#pragma GCC unroll 8
        for (int k = 0; k < 8; ++k)
            if (!(k & gap)) {
                const int f = (1 << level) - 1 + (k >> (3 - level));
                forward<Roomy>(v[k], v[k + gap], load(tail + 8 * f), load(tail + 56 + 8 * f), c);
            }
    }
    transpose(v);
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) {
        V r = v[k];
        if (Roomy) {  // any value below 2^52
            r = _mm512_and_si512(_mm512_madd52lo_epu64(r, hi52(r, set(p.m.inv52)), c.minus_q), c.mask);
        } else {
            r = reduce(r, c.two_q);
        }
        store(x + 8 * k, reduce(r, c.q));
    }
}

inline void inverse_tail(u64* x, const NttPlan& p, u32 group, const Consts& c) {
    V v[8];
    const u32 at = p.n / 16 + 4 * group;
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) v[k] = load(x + 8 * k);
    transpose(v);
    const u64* tail = p.itail.data() + std::size_t{112} * group;
#pragma GCC unroll 3
    for (int level = 2; level >= 0; --level) {
        const int gap = 4 >> level;
#pragma GCC unroll 8
        for (int k = 0; k < 8; ++k)
            if (!(k & gap)) {
                const int f = (1 << level) - 1 + (k >> (3 - level));
                inverse(v[k], v[k + gap], load(tail + 8 * f), load(tail + 56 + 8 * f), c);
            }
    }
    transpose(v);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) inverse(v[2 * k], v[2 * k + 1], set(p.iw[at + k]), set(p.iw52[at + k]), c);
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) store(x + 8 * k, v[k]);
}

// Passes of three levels, after a first one of one or two where lg n - 4 is no multiple of three. Going depth first
// keeps a block in the first-level cache from the second pass on.
template <bool Roomy>
void forward_from(u64* x, const NttPlan& p, u32 m, u32 i, const Consts& c) {
    const std::size_t part = p.n / m / 8;
    forward_pass<3, Roomy>(x, p, m, i, c);
    if (part == 16) {
        forward_tail<Roomy>(x, p, 2 * i, c);
        forward_tail<Roomy>(x + 64, p, 2 * i + 1, c);
        return;
    }
    for (u32 k = 0; k < 8; ++k) forward_from<Roomy>(x + k * part, p, 8 * m, 8 * i + k, c);
}

template <bool Roomy>
void ntt_with(u64* x, const NttPlan& p) {
    const Consts c(p.m.q);
    const unsigned first = (p.lg - 4) % 3;
    if (first == 1) forward_pass<1, Roomy>(x, p, 1, 0, c);
    if (first == 2) forward_pass<2, Roomy>(x, p, 1, 0, c);
    const u32 m = u32{1} << first;
    const std::size_t part = p.n / m;
    if (part == 16) {
        for (u32 g = 0; g < p.n / 64; ++g) forward_tail<Roomy>(x + 64 * g, p, g, c);
        return;
    }
    for (u32 k = 0; k < m; ++k) forward_from<Roomy>(x + k * part, p, m, k, c);
}

void inverse_from(u64* x, const NttPlan& p, u32 m, u32 i, const Consts& c) {
    const std::size_t part = p.n / m / 8;
    if (part == 16) {
        inverse_tail(x, p, 2 * i, c);
        inverse_tail(x + 64, p, 2 * i + 1, c);
    } else {
        for (u32 k = 0; k < 8; ++k) inverse_from(x + k * part, p, 8 * m, 8 * i + k, c);
    }
    inverse_pass<3>(x, p, m, i, c);
}

void ntt(u64* x, const NttPlan& p) {
    if (p.n < 64) return ring_portable.ntt(x, p);
    // Every level adds at most 2q to a value: lg n levels from q stay below 2^52 without any reduction.
    if (p.m.bits <= 46) return ntt_with<true>(x, p);
    ntt_with<false>(x, p);
}

void mul_scalar(const Modulus& m, const u64* a, u64 w, u64* out, std::size_t n);

void intt(u64* x, const NttPlan& p) {
    if (p.n < 64) return ring_portable.intt(x, p);
    const Consts c(p.m.q);
    const unsigned first = (p.lg - 4) % 3;
    const u32 m = u32{1} << first;
    const std::size_t part = p.n / m;
    if (part == 16)
        for (u32 g = 0; g < p.n / 64; ++g) inverse_tail(x + 64 * g, p, g, c);
    else
        for (u32 k = 0; k < m; ++k) inverse_from(x + k * part, p, m, k, c);
    if (first == 1) inverse_pass<1>(x, p, 1, 0, c);
    if (first == 2) inverse_pass<2>(x, p, 1, 0, c);
    mul_scalar(p.m, x, p.n_inv, x, p.n);
}

// The product of any two residues: the quotient is estimated from the top of the product, two to three units short.
struct Barrett {
    V mu;
    unsigned shift;
    explicit Barrett(const Modulus& m)
        : mu(set(static_cast<u64>((u128{1} << (51 + m.bits)) / m.q))), shift(52 - m.bits) {}
    V product(V a, V b, const Consts& c) const {
        const V top = hi52(_mm512_slli_epi64(a, shift), add(b, b));
        const V r = _mm512_madd52lo_epu64(lo52(a, b), hi52(top, mu), c.minus_q);
        return reduce(reduce(_mm512_and_si512(r, c.mask), c.two_q), c.q);
    }
};

void mul_kernel(const Modulus& m, const u64* a, const u64* b, u64* out, std::size_t n) {
    const Consts c(m.q);
    const Barrett barrett(m);
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) store(out + i, barrett.product(load(a + i), load(b + i), c));
    ring_portable.mul(m, a + i, b + i, out + i, n - i);
}

void mul_add(const Modulus& m, const u64* a, const u64* b, u64* acc, std::size_t n) {
    const Consts c(m.q);
    const Barrett barrett(m);
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8)
        store(acc + i, reduce(add(load(acc + i), barrett.product(load(a + i), load(b + i), c)), c.q));
    ring_portable.mul_add(m, a + i, b + i, acc + i, n - i);
}

void add_kernel(const Modulus& m, const u64* a, const u64* b, u64* out, std::size_t n) {
    const V q = set(m.q);
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) store(out + i, reduce(add(load(a + i), load(b + i)), q));
    ring_portable.add(m, a + i, b + i, out + i, n - i);
}

void sub_kernel(const Modulus& m, const u64* a, const u64* b, u64* out, std::size_t n) {
    const V q = set(m.q);
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        V d = sub(load(a + i), load(b + i));
        store(out + i, _mm512_min_epu64(d, add(d, q)));
    }
    ring_portable.sub(m, a + i, b + i, out + i, n - i);
}

void mul_scalar(const Modulus& m, const u64* a, u64 w, u64* out, std::size_t n) {
    const Consts c(m.q);
    const V wv = set(w), ws = set(static_cast<u64>((u128{w} << 52) / m.q));
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) store(out + i, reduce(mul_shoup(load(a + i), wv, ws, c), c.q));
    ring_portable.mul_scalar(m, a + i, w, out + i, n - i);
}

// high * 2^52 + low for sums of up to kLazy products: below 2^61 and 2^64.
inline V reduce_sum(V low, V high, const Modulus& m, u64 two104, u64 two104_shoup, const Consts& c) {
    high = add(high, _mm512_srli_epi64(low, 52));
    low = _mm512_and_si512(low, c.mask);
    V r = _mm512_and_si512(_mm512_madd52lo_epu64(low, hi52(low, set(m.inv52)), c.minus_q), c.mask);  // below 2q
    r = add(r, mul_shoup(_mm512_and_si512(high, c.mask), set(m.two52), set(m.two52_shoup), c));
    r = add(r, mul_shoup(_mm512_srli_epi64(high, 52), set(two104), set(two104_shoup), c));
    return reduce(reduce(reduce(r, add(c.two_q, c.two_q)), c.two_q), c.q);
}

constexpr std::size_t kLazy = 2048;
constexpr std::size_t kStep = 4;  // products per pass over the accumulators

// Plaintext values of coefficients i..i+7 when every value stands for 2^shift neighbours.
inline V spread(const u64* pt, std::size_t i, unsigned shift) {
    if (shift == 0) return load(pt + i);
    if (shift >= 3) return set(pt[i >> shift]);
    const V pairs = _mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0), fours = _mm512_set_epi64(1, 1, 1, 1, 0, 0, 0, 0);
    if (shift == 1) return _mm512_permutexvar_epi64(pairs, _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(pt + (i >> 1)))));
    return _mm512_permutexvar_epi64(fours, _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(pt + (i >> 2)))));
}

// Loaded once and kept in a register: GCC would fold the load into each use.
inline V load_once(const u64* p) {
    V v = load(p);
    asm("" : "+v"(v));
    return v;
}

// Where the ciphertext words of products k, k+1, ... of one chunk lie. Direct: in the caller's arrays. Packed: registers
// in the order of use, so that one pointer walks through them.
template <int Components, int Count>
struct Direct {
    const u64* from[Count][Components];
    const u64* at(int j, int c, std::size_t i) const { return from[j][c] + i; }
};
template <int Components, int Count>
struct Packed {
    const u64* from;
    const u64* at(int j, int c, std::size_t i) const { return from + i * (Components * Count) + 8 * (j * Components + c); }
};

// `Count` products added to the running sums of one chunk: low halves, then high halves, of each component. The next
// plaintexts are on their way from memory meanwhile.
template <int Components, int Count, bool Short, class Ciphertexts>
void mac_step(const MacArgs& g, const Ciphertexts& ct, const u64* const* pt, const u64* const* next, u64* sums) {
    const std::size_t len = g.end - g.begin;
    const u64 *b[Count], *ahead[Count];
    for (int j = 0; j < Count; ++j) b[j] = Short ? pt[j] : pt[j] + g.begin, ahead[j] = next[j] + g.begin;
    for (std::size_t i = 0; i < len; i += 8) {
        V low[Components], high[Components];
#pragma GCC unroll 2
        for (int c = 0; c < Components; ++c) {
            low[c] = load(sums + 2 * c * kMacChunk + i);
            high[c] = load(sums + (2 * c + 1) * kMacChunk + i);
        }
#pragma GCC unroll 4
        for (int j = 0; j < Count; ++j) {
            const V factor = Short ? spread(b[j], g.begin + i, g.shift) : load_once(b[j] + i);
            if (!Short) _mm_prefetch(reinterpret_cast<const char*>(ahead[j] + i), _MM_HINT_T1);
#pragma GCC unroll 2
            for (int c = 0; c < Components; ++c) {
                const V x = load_once(ct.at(j, c, i));
                low[c] = _mm512_madd52lo_epu64(low[c], x, factor);
                high[c] = _mm512_madd52hi_epu64(high[c], x, factor);
            }
        }
#pragma GCC unroll 2
        for (int c = 0; c < Components; ++c) {
            store(sums + 2 * c * kMacChunk + i, low[c]);
            store(sums + (2 * c + 1) * kMacChunk + i, high[c]);
        }
    }
}

// One group's sum over one chunk, into its accumulator. The scratch space, if any, holds the chunk in Packed order.
template <int Components, bool Short>
struct MacSum {
    const Modulus& m;
    const MacArgs& g;
    std::size_t component;
    alignas(64) u64 sums[2 * Components * kMacChunk];

    template <int Count>
    void step(std::size_t k, std::size_t last, const u64* const* pt) {
        const u64* const* next = pt + (k + 2 * Count <= last ? k + Count : k);
        if (g.scratch) {
            const Packed<Components, Count> ct{g.scratch + k * Components * (g.end - g.begin)};
            return mac_step<Components, Count, Short>(g, ct, pt + k, next, sums);
        }
        Direct<Components, Count> ct;
        for (int j = 0; j < Count; ++j)
            for (int c = 0; c < Components; ++c) ct.from[j][c] = g.ct[k + j] + (component + c) * g.stride + g.begin;
        mac_step<Components, Count, Short>(g, ct, pt + k, next, sums);
    }

    void run(std::size_t group, std::size_t first, std::size_t last, const Consts& c, u64 two104, u64 two104_shoup) {
        u64* acc = g.acc + group * g.group_stride + component * g.stride + g.begin;
        const std::size_t len = g.end - g.begin;
        const u64* const* pt = g.pt + group * g.count;
        for (int j = 0; j < Components; ++j)
            for (std::size_t i = 0; i < len; i += 8) {
                store(sums + 2 * j * kMacChunk + i, load(acc + j * g.stride + i));
                store(sums + (2 * j + 1) * kMacChunk + i, _mm512_setzero_si512());
            }
        std::size_t k = first;
        if (g.scratch)
            for (; k + kStep <= last; k += kStep) step<kStep>(k, last, pt);
        else
            for (; k + 2 <= last; k += 2) step<2>(k, last, pt);
        for (; k < last; ++k) step<1>(k, last, pt);
        for (int j = 0; j < Components; ++j)
            for (std::size_t i = 0; i < len; i += 8) {
                const V low = load(sums + 2 * j * kMacChunk + i), high = load(sums + (2 * j + 1) * kMacChunk + i);
                store(acc + j * g.stride + i, reduce_sum(low, high, m, two104, two104_shoup, c));
            }
    }
};

// The chunk's words of all ciphertexts in the order in which steps of kStep products (then single ones) use them. They
// are read once per group, and arrays a power of two apart would push each other out of the cache.
template <int Components>
void pack_chunk(const MacArgs& g, std::size_t component) {
    const std::size_t len = g.end - g.begin;
    u64* to = g.scratch;
    for (std::size_t k = 0; k < g.count;) {
        // kLazy is a multiple of kStep, so steps never straddle a reduction.
        const std::size_t step = k + kStep <= g.count ? kStep : 1;
        for (std::size_t i = 0; i < len; i += 8)
            for (std::size_t j = 0; j < step; ++j)
                for (int c = 0; c < Components; ++c, to += 8)
                    _mm512_store_si512(to, load(g.ct[k + j] + (component + c) * g.stride + g.begin + i));
        k += step;
    }
}

template <int Components, bool Short>
void mac_components(const Modulus& m, const MacArgs& g, std::size_t component) {
    if (g.scratch) pack_chunk<Components>(g, component);
    const Consts c(m.q);
    const u64 two104 = m.mul(m.two52, m.two52), two104_shoup = static_cast<u64>((u128{two104} << 52) / m.q);
    MacSum<Components, Short> sum{m, g, component, {}};
    for (std::size_t group = 0; group < g.groups; ++group)
        for (std::size_t first = 0; first < g.count; first += kLazy)
            sum.run(group, first, first + kLazy < g.count ? first + kLazy : g.count, c, two104, two104_shoup);
}

// Two components at a time (a ciphertext has two), then the odd one.
void mac(const Modulus& m, const MacArgs& g) {
    if ((g.end - g.begin) % 8 || g.begin % 8) return ring_portable.mac(m, g);
    std::size_t component = 0;
    for (; component + 2 <= g.components; component += 2)
        g.shift ? mac_components<2, true>(m, g, component) : mac_components<2, false>(m, g, component);
    if (component < g.components)
        g.shift ? mac_components<1, true>(m, g, component) : mac_components<1, false>(m, g, component);
}

// Automorphisms in bit-reversed order move aligned blocks of eight as a whole and permute inside: one load and one
// permutation per block. Any other permutation takes the portable path.
void permute(const u64* x, const u32* perm, u64* out, std::size_t n) {
    const __m256i low = _mm256_set1_epi32(7);
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(perm + i));
        const V index = _mm512_cvtepu32_epi64(_mm256_and_si256(at, low));
        store(out + i, _mm512_permutexvar_epi64(index, load(x + (perm[i] & ~u32{7}))));
    }
    ring_portable.permute(x, perm + i, out + i, n - i);
}

}  // namespace

const RingKernels ring_avx512 = {ntt, intt, add_kernel, sub_kernel, mul_kernel, mul_add, mul_scalar, mac, permute};

#endif
