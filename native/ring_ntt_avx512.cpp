// The negacyclic transform with AVX-512 IFMA, for primes below 2^50: three levels per pass over memory.
#if defined(__x86_64__)
#include "ring_avx512.h"

namespace {

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

// The companion words of the tail's factors, derived from the factors: the tables of a long transform are larger than its
// data, so half of them stay unread. The estimate is at most one too small. Below 2^49 that is within bounds: y * w / q is
// then estimated from below by less than y / 2^51 + 1 <= 2; above, what remains of w * 2^52 tells (`Exact`).
struct Ratios {
    V inverse;
    __m128i shift;
    explicit Ratios(const Modulus& m)
        : inverse(set(static_cast<u64>((u128{1} << (52 + m.bits)) / m.q) - (u64{1} << 52))),
          shift(_mm_cvtsi32_si128(static_cast<int>(52 - m.bits))) {}
    template <bool Exact>
    V of(V w, const Consts& c) const {
        const V up = _mm512_sll_epi64(w, shift);
        const V ratio = _mm512_madd52hi_epu64(up, up, inverse);
        if (!Exact) return ratio;
        const V rest = _mm512_and_si512(lo52(ratio, c.minus_q), c.mask);
        return _mm512_mask_add_epi64(ratio, _mm512_cmpge_epu64_mask(rest, c.q), ratio, set(1));
    }
};
enum class Companions { stored, near, exact };
inline Companions companions(const NttPlan& p) {
    // Beyond what the second-level cache holds, deriving is cheaper than reading.
    if (p.n < 16384) return Companions::stored;
    return p.m.bits <= 49 ? Companions::near : Companions::exact;
}
template <Companions How>
inline V companion(V w, const u64* stored, const Ratios& ratios, const Consts& c) {
    return How == Companions::stored ? load(stored) : ratios.of<How == Companions::exact>(w, c);
}

// The last four levels of 64 words: one between neighbouring registers, three after a transposition.
template <bool Roomy, Companions How>
inline void forward_tail(u64* x, const NttPlan& p, u32 group, const Consts& c, const Ratios& ratios) {
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
                const V w = load(tail + 8 * f);
                forward<Roomy>(v[k], v[k + gap], w, companion<How>(w, tail + 56 + 8 * f, ratios, c), c);
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

template <Companions How>
inline void inverse_tail(u64* x, const NttPlan& p, u32 group, const Consts& c, const Ratios& ratios) {
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
                const V w = load(tail + 8 * f);
                inverse(v[k], v[k + gap], w, companion<How>(w, tail + 56 + 8 * f, ratios, c), c);
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
template <bool Roomy, Companions How>
void forward_from(u64* x, const NttPlan& p, u32 m, u32 i, const Consts& c, const Ratios& ratios) {
    const std::size_t part = p.n / m / 8;
    forward_pass<3, Roomy>(x, p, m, i, c);
    if (part == 16) {
        forward_tail<Roomy, How>(x, p, 2 * i, c, ratios);
        forward_tail<Roomy, How>(x + 64, p, 2 * i + 1, c, ratios);
        return;
    }
    for (u32 k = 0; k < 8; ++k) forward_from<Roomy, How>(x + k * part, p, 8 * m, 8 * i + k, c, ratios);
}

template <bool Roomy, Companions How>
void ntt_with(u64* x, const NttPlan& p) {
    const Consts c(p.m.q);
    const Ratios ratios(p.m);
    const unsigned first = (p.lg - 4) % 3;
    if (first == 1) forward_pass<1, Roomy>(x, p, 1, 0, c);
    if (first == 2) forward_pass<2, Roomy>(x, p, 1, 0, c);
    const u32 m = u32{1} << first;
    const std::size_t part = p.n / m;
    if (part == 16) {
        for (u32 g = 0; g < p.n / 64; ++g) forward_tail<Roomy, How>(x + 64 * g, p, g, c, ratios);
        return;
    }
    for (u32 k = 0; k < m; ++k) forward_from<Roomy, How>(x + k * part, p, m, k, c, ratios);
}

template <Companions How>
void inverse_from(u64* x, const NttPlan& p, u32 m, u32 i, const Consts& c, const Ratios& ratios) {
    const std::size_t part = p.n / m / 8;
    if (part == 16) {
        inverse_tail<How>(x, p, 2 * i, c, ratios);
        inverse_tail<How>(x + 64, p, 2 * i + 1, c, ratios);
    } else {
        for (u32 k = 0; k < 8; ++k) inverse_from<How>(x + k * part, p, 8 * m, 8 * i + k, c, ratios);
    }
    inverse_pass<3>(x, p, m, i, c);
}

template <Companions How>
void intt_with(u64* x, const NttPlan& p) {
    const Consts c(p.m.q);
    const Ratios ratios(p.m);
    const unsigned first = (p.lg - 4) % 3;
    const u32 m = u32{1} << first;
    const std::size_t part = p.n / m;
    if (part == 16)
        for (u32 g = 0; g < p.n / 64; ++g) inverse_tail<How>(x + 64 * g, p, g, c, ratios);
    else
        for (u32 k = 0; k < m; ++k) inverse_from<How>(x + k * part, p, m, k, c, ratios);
    if (first == 1) inverse_pass<1>(x, p, 1, 0, c);
    if (first == 2) inverse_pass<2>(x, p, 1, 0, c);
    scale_row(c, x, set(p.n_inv), set(static_cast<u64>((u128{p.n_inv} << 52) / p.m.q)), x, p.n);
}

template <bool Roomy>
void ntt_by_size(u64* x, const NttPlan& p) {
    switch (companions(p)) {
        case Companions::stored: return ntt_with<Roomy, Companions::stored>(x, p);
        case Companions::near: return ntt_with<Roomy, Companions::near>(x, p);
        case Companions::exact: return ntt_with<Roomy, Companions::exact>(x, p);
    }
}

}  // namespace

void ring_ntt_avx512(u64* x, const NttPlan& p) {
    if (p.n < 64) return ring_portable.ntt(x, p);
    // Every level adds at most 2q to a value: lg n levels from q stay below 2^52 without any reduction.
    p.m.bits <= 46 ? ntt_by_size<true>(x, p) : ntt_by_size<false>(x, p);
}

void ring_intt_avx512(u64* x, const NttPlan& p) {
    if (p.n < 64) return ring_portable.intt(x, p);
    switch (companions(p)) {
        case Companions::stored: return intt_with<Companions::stored>(x, p);
        case Companions::near: return intt_with<Companions::near>(x, p);
        case Companions::exact: return intt_with<Companions::exact>(x, p);
    }
}
#endif
