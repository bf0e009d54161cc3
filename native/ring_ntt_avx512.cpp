// The negacyclic transform with AVX-512 IFMA, for primes below 2^50: three levels per pass over memory.
#if defined(__x86_64__)
#include "ring_avx512.h"

namespace {

// How large the values of a forward transform grow. A level adds at most 2q to a value, which must stay below 2^52; what is
// multiplied needs no other bound. Roomy, q < 2^46: lg n levels from q fit without any reduction. Alternate, q < 2^49: below 6q
// before an even level, below 8q before an odd one, which reduces x to below 4q. Tight, q < 2^50: below 4q always.
enum class Growth { roomy, alternate, tight };
inline Growth growth(const Modulus& m) {
    return m.bits <= 46 ? Growth::roomy : m.bits <= 49 ? Growth::alternate : Growth::tight;
}
// Where a pass begins on an odd level, its second level is an even one.
constexpr bool reduces(Growth g, bool odd, int level) {
    return g == Growth::tight || (g == Growth::alternate && odd != (level % 2 == 1));
}

// (x, y) -> (x + w y, x - w y). Of both only the low 52 bits count, which is all that a product reads, unless Tight: the sums
// go on above them.
template <Growth How, bool Reduce>
[[gnu::always_inline]] inline void forward(V& x, V& y, V w, V ws, const Consts& c) {
    if (How == Growth::tight) {
        const V u = reduce(x, c.two_q), t = mul_shoup(y, w, ws, c);
        x = add(u, t);
        y = sub(add(u, c.two_q), t);
        return;
    }
    const V u = Reduce ? reduce(_mm512_and_si512(x, c.mask), add(c.two_q, c.two_q)) : x;
    x = _mm512_madd52lo_epu64(_mm512_madd52lo_epu64(u, y, w), hi52(y, ws), c.minus_q);
    y = sub(add(add(u, c.two_q), u), x);
}

// (x, y) -> (x + y, (x - y) w): below 2q in, below 2q out.
[[gnu::always_inline]] inline void inverse(V& x, V& y, V w, V ws, const Consts& c) {
    V u = x;
    x = reduce(add(u, y), c.two_q);
    y = mul_shoup(sub(add(u, c.two_q), y), w, ws, c);
}

// The same without reductions: of values below `bound`, a multiple of q, x is below twice that and y below 2q. Only the low 52
// bits count.
[[gnu::always_inline]] inline void inverse_roomy(V& x, V& y, V w, V ws, V bound, const Consts& c) {
    const V u = x, d = sub(add(u, bound), y);
    x = add(u, y);
    y = _mm512_madd52lo_epu64(lo52(d, w), hi52(d, ws), c.minus_q);
}

// Any 52 bits to below 2q, in the low 52 bits.
inline V settle(V x, V inv52, const Consts& c) { return _mm512_madd52lo_epu64(x, hi52(x, inv52), c.minus_q); }

// Rows become columns: an 8 x 8 block of words.
[[gnu::always_inline]] inline void transpose(V v[8]) {
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
    V w[7], ws[7], inv52;
    Twiddles(const NttPlan& p, const u64* table, const u64* table52, u32 m, u32 i, int levels) : inv52(set(p.m.inv52)) {
        for (int level = 0, k = 0; level < levels; ++level)
            for (u32 j = 0; j < (u32{1} << level); ++j, ++k) {
                const u32 at = (m << level) + (i << level) + j;
                w[k] = set(table[at]), ws[k] = set(table52[at]);
            }
    }
};

// Levels of butterflies on 2^Levels registers, in registers: level l joins those 2^(Levels-1-l) apart.
template <int Levels, int Level, Growth How, bool Reduce>
[[gnu::always_inline]] inline void forward_level(V* v, const Twiddles& t, const Consts& c) {
    constexpr int gap = 1 << (Levels - 1 - Level);
#pragma GCC unroll 8
    for (int k = 0; k < (1 << Levels); ++k)
        if (!(k & gap)) {
            const int f = (1 << Level) - 1 + (k >> (Levels - Level));
            forward<How, Reduce>(v[k], v[k + gap], t.w[f], t.ws[f], c);
        }
}

template <int Levels, Growth How, bool Odd>
[[gnu::always_inline]] inline void forward_block(V* v, const Twiddles& t, const Consts& c) {
    forward_level<Levels, 0, How, reduces(How, Odd, 0)>(v, t, c);
    if constexpr (Levels > 1) forward_level<Levels, 1, How, reduces(How, Odd, 1)>(v, t, c);
    if constexpr (Levels > 2) forward_level<Levels, 2, How, reduces(How, Odd, 2)>(v, t, c);
}

template <int Levels, int Level, bool Roomy>
[[gnu::always_inline]] inline void inverse_level(V* v, const Twiddles& t, const Consts& c) {
    constexpr int gap = 1 << (Levels - 1 - Level);
#pragma GCC unroll 8
    for (int k = 0; k < (1 << Levels); ++k)
        if (!(k & gap)) {
            const int f = (1 << Level) - 1 + (k >> (Levels - Level));
            if constexpr (Roomy)
                inverse_roomy(v[k], v[k + gap], t.w[f], t.ws[f], _mm512_slli_epi64(c.two_q, Levels - 1 - Level), c);
            else
                inverse(v[k], v[k + gap], t.w[f], t.ws[f], c);
        }
}

// Roomy, q < 2^46: from below 2q to below 2q again, what has not been multiplied last is settled.
template <int Levels, bool Roomy>
[[gnu::always_inline]] inline void inverse_block(V* v, const Twiddles& t, const Consts& c) {
    if constexpr (Levels > 2) inverse_level<Levels, 2, Roomy>(v, t, c);
    if constexpr (Levels > 1) inverse_level<Levels, 1, Roomy>(v, t, c);
    inverse_level<Levels, 0, Roomy>(v, t, c);
    if constexpr (Roomy)
#pragma GCC unroll 8
        for (int k = 0; k < (1 << (Levels - 1)); ++k) v[k] = settle(v[k], t.inv52, c);
}

// One pass over block i of the m blocks of a transform of length n: `Levels` levels at once.
template <int Levels, Growth How, bool Odd>
void forward_pass(u64* x, const NttPlan& p, u32 m, u32 i, const Consts& c) {
    const std::size_t gap = p.n / m >> Levels;
    const Twiddles t(p, p.w.data(), p.w52.data(), m, i, Levels);
    for (std::size_t j = 0; j < gap; j += 8) {
        V v[1 << Levels];
#pragma GCC unroll 8
        for (int k = 0; k < (1 << Levels); ++k) v[k] = load(x + k * gap + j);
        forward_block<Levels, How, Odd>(v, t, c);
#pragma GCC unroll 8
        for (int k = 0; k < (1 << Levels); ++k) store(x + k * gap + j, v[k]);
    }
}

template <int Levels, bool Roomy>
void inverse_pass(u64* x, const NttPlan& p, u32 m, u32 i, const Consts& c) {
    const std::size_t gap = p.n / m >> Levels;
    const Twiddles t(p, p.iw.data(), p.iw52.data(), m, i, Levels);
    for (std::size_t j = 0; j < gap; j += 8) {
        V v[1 << Levels];
#pragma GCC unroll 8
        for (int k = 0; k < (1 << Levels); ++k) v[k] = load(x + k * gap + j);
        inverse_block<Levels, Roomy>(v, t, c);
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
// data, so half of them stay unread. The estimate is at most one too small. For y below 2^51 that is within bounds: y * w / q
// is then estimated from below by less than y / 2^51 + 1 <= 2; beyond, what remains of w * 2^52 tells (`Exact`).
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
// near_bits: of the largest primes whose values stay below 2^51 before every product. Forward 46: 31 q at the last of 16 levels
// (alternate transforms reach 8 q). Inverse 49: below 4 q, or roomy.
inline Companions companions(const NttPlan& p, unsigned near_bits) {
    // Beyond what the second-level cache holds, deriving is cheaper than reading.
    if (p.n < 16384) return Companions::stored;
    return p.m.bits <= near_bits ? Companions::near : Companions::exact;
}
template <Companions How>
inline V companion(V w, const u64* stored, const Ratios& ratios, const Consts& c) {
    return How == Companions::stored ? load(stored) : ratios.of<How == Companions::exact>(w, c);
}

template <int Level, bool Reduce, Growth Grow, Companions How>
[[gnu::always_inline]] inline void tail_level(V* v, const u64* tail, const Consts& c, const Ratios& ratios) {
    constexpr int gap = 4 >> Level;
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k)
        if (!(k & gap)) {
            const int f = (1 << Level) - 1 + (k >> (3 - Level));
            const V w = load(tail + 8 * f);
            forward<Grow, Reduce>(v[k], v[k + gap], w, companion<How>(w, tail + 56 + 8 * f, ratios, c), c);
        }
}

template <int Level, bool Roomy, Companions How>
[[gnu::always_inline]] inline void inverse_tail_level(V* v, const u64* tail, const Consts& c, const Ratios& ratios) {
    constexpr int gap = 4 >> Level;
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k)
        if (!(k & gap)) {
            const int f = (1 << Level) - 1 + (k >> (3 - Level));
            const V w = load(tail + 8 * f), ws = companion<How>(w, tail + 56 + 8 * f, ratios, c);
            if constexpr (Roomy)
                inverse_roomy(v[k], v[k + gap], w, ws, _mm512_slli_epi64(c.two_q, 2 - Level), c);
            else
                inverse(v[k], v[k + gap], w, ws, c);
        }
}

// The last four levels of 64 words: one between neighbouring registers, three after a transposition.
template <Growth Grow, bool Odd, Companions How>
inline void forward_tail(u64* x, const NttPlan& p, u32 group, const Consts& c, const Ratios& ratios) {
    V v[8];
    const u32 at = p.n / 16 + 4 * group;
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) v[k] = load(x + 8 * k);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k)
        forward<Grow, reduces(Grow, Odd, 0)>(v[2 * k], v[2 * k + 1], set(p.w[at + k]), set(p.w52[at + k]), c);
    transpose(v);
    const u64* tail = p.tail.data() + std::size_t{112} * group;
    tail_level<0, reduces(Grow, Odd, 1), Grow, How>(v, tail, c, ratios);
    tail_level<1, reduces(Grow, Odd, 2), Grow, How>(v, tail, c, ratios);
    tail_level<2, reduces(Grow, Odd, 3), Grow, How>(v, tail, c, ratios);
    transpose(v);
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) {
        V r = v[k];
        if (Grow == Growth::tight) {
            r = reduce(r, c.two_q);
        } else {
            r = _mm512_and_si512(settle(r, set(p.m.inv52), c), c.mask);
        }
        store(x + 8 * k, reduce(r, c.q));
    }
}

template <bool Roomy, Companions How>
inline void inverse_tail(u64* x, const NttPlan& p, u32 group, const Consts& c, const Ratios& ratios) {
    V v[8];
    const u32 at = p.n / 16 + 4 * group;
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) v[k] = load(x + 8 * k);
    transpose(v);
    const u64* tail = p.itail.data() + std::size_t{112} * group;
    inverse_tail_level<2, Roomy, How>(v, tail, c, ratios);
    inverse_tail_level<1, Roomy, How>(v, tail, c, ratios);
    inverse_tail_level<0, Roomy, How>(v, tail, c, ratios);
    transpose(v);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
        const V w = set(p.iw[at + k]), ws = set(p.iw52[at + k]);
        if constexpr (Roomy) {
            inverse_roomy(v[2 * k], v[2 * k + 1], w, ws, _mm512_slli_epi64(c.two_q, 3), c);
            v[2 * k] = settle(v[2 * k], set(p.m.inv52), c);
        } else {
            inverse(v[2 * k], v[2 * k + 1], w, ws, c);
        }
    }
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) store(x + 8 * k, v[k]);
}

// Passes of three levels, after a first one of one or two where lg n - 4 is no multiple of three. Going depth first
// keeps a block in the first-level cache from the second pass on. Odd: whether the first level is.
template <Growth Grow, bool Odd, Companions How>
void forward_from(u64* x, const NttPlan& p, u32 m, u32 i, const Consts& c, const Ratios& ratios) {
    const std::size_t part = p.n / m / 8;
    forward_pass<3, Grow, Odd>(x, p, m, i, c);
    if (part == 16) {
        forward_tail<Grow, !Odd, How>(x, p, 2 * i, c, ratios);
        forward_tail<Grow, !Odd, How>(x + 64, p, 2 * i + 1, c, ratios);
        return;
    }
    for (u32 k = 0; k < 8; ++k) forward_from<Grow, !Odd, How>(x + k * part, p, 8 * m, 8 * i + k, c, ratios);
}

template <Growth Grow, bool Odd, Companions How>
void forward_parts(u64* x, const NttPlan& p, u32 m, const Consts& c, const Ratios& ratios) {
    const std::size_t part = p.n / m;
    if (part == 16) {
        for (u32 g = 0; g < p.n / 64; ++g) forward_tail<Grow, Odd, How>(x + 64 * g, p, g, c, ratios);
        return;
    }
    for (u32 k = 0; k < m; ++k) forward_from<Grow, Odd, How>(x + k * part, p, m, k, c, ratios);
}

template <Growth Grow, Companions How>
void ntt_with(u64* x, const NttPlan& p) {
    const Consts c(p.m.q);
    const Ratios ratios(p.m);
    const unsigned first = (p.lg - 4) % 3;
    if (first == 1) {
        forward_pass<1, Grow, false>(x, p, 1, 0, c);
        return forward_parts<Grow, true, How>(x, p, 2, c, ratios);
    }
    if (first == 2) forward_pass<2, Grow, false>(x, p, 1, 0, c);
    forward_parts<Grow, false, How>(x, p, u32{1} << first, c, ratios);
}

template <bool Roomy, Companions How>
void inverse_from(u64* x, const NttPlan& p, u32 m, u32 i, const Consts& c, const Ratios& ratios) {
    const std::size_t part = p.n / m / 8;
    if (part == 16) {
        inverse_tail<Roomy, How>(x, p, 2 * i, c, ratios);
        inverse_tail<Roomy, How>(x + 64, p, 2 * i + 1, c, ratios);
    } else {
        for (u32 k = 0; k < 8; ++k) inverse_from<Roomy, How>(x + k * part, p, 8 * m, 8 * i + k, c, ratios);
    }
    inverse_pass<3, Roomy>(x, p, m, i, c);
}

template <bool Roomy, Companions How>
void intt_with(u64* x, const NttPlan& p) {
    const Consts c(p.m.q);
    const Ratios ratios(p.m);
    const unsigned first = (p.lg - 4) % 3;
    const u32 m = u32{1} << first;
    const std::size_t part = p.n / m;
    if (part == 16)
        for (u32 g = 0; g < p.n / 64; ++g) inverse_tail<Roomy, How>(x + 64 * g, p, g, c, ratios);
    else
        for (u32 k = 0; k < m; ++k) inverse_from<Roomy, How>(x + k * part, p, m, k, c, ratios);
    if (first == 1) inverse_pass<1, Roomy>(x, p, 1, 0, c);
    if (first == 2) inverse_pass<2, Roomy>(x, p, 1, 0, c);
    scale_row(c, x, set(p.n_inv), set(static_cast<u64>((u128{p.n_inv} << 52) / p.m.q)), x, p.n);
}

template <Companions How>
void ntt_by_size(u64* x, const NttPlan& p) {
    switch (growth(p.m)) {
        case Growth::roomy: return ntt_with<Growth::roomy, How>(x, p);
        case Growth::alternate: return ntt_with<Growth::alternate, How>(x, p);
        case Growth::tight: return ntt_with<Growth::tight, How>(x, p);
    }
}

template <Companions How>
void intt_by_size(u64* x, const NttPlan& p) {
    growth(p.m) == Growth::roomy ? intt_with<true, How>(x, p) : intt_with<false, How>(x, p);
}

}  // namespace

void ring_ntt_avx512(u64* x, const NttPlan& p) {
    if (p.n < 64) return ring_portable.ntt(x, p);
    switch (companions(p, 46)) {
        case Companions::stored: return ntt_by_size<Companions::stored>(x, p);
        case Companions::near: return ntt_by_size<Companions::near>(x, p);
        case Companions::exact: return ntt_by_size<Companions::exact>(x, p);
    }
}

void ring_intt_avx512(u64* x, const NttPlan& p) {
    if (p.n < 64) return ring_portable.intt(x, p);
    switch (companions(p, 49)) {
        case Companions::stored: return intt_by_size<Companions::stored>(x, p);
        case Companions::near: return intt_by_size<Companions::near>(x, p);
        case Companions::exact: return intt_by_size<Companions::exact>(x, p);
    }
}
#endif
