// Sums of products with AVX-512 IFMA: the kernel under every product of a ciphertext with plaintexts.
#if defined(__x86_64__)
#include "ring_avx512.h"

namespace {

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

}  // namespace

// Two components at a time (a ciphertext has two), then the odd one.
void ring_mac_avx512(const Modulus& m, const MacArgs& g) {
    if ((g.end - g.begin) % 8 || g.begin % 8) return ring_portable.mac(m, g);
    std::size_t component = 0;
    for (; component + 2 <= g.components; component += 2)
        g.shift ? mac_components<2, true>(m, g, component) : mac_components<2, false>(m, g, component);
    if (component < g.components)
        g.shift ? mac_components<1, true>(m, g, component) : mac_components<1, false>(m, g, component);
}
#endif
