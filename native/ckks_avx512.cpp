// AVX-512 IFMA inner loops of CKKS, for moduli below 2^50: eight residues per register (see ckks_kernels.h).
#if defined(__x86_64__)
#include "ring_avx512.h"

#include "ckks_kernels.h"

namespace {

// hi * 2^52 + lo mod q for hi below 2^52 and any lo.
inline V fold(V hi, V lo, const Modulus& m, const Consts& c) {
    hi = add(hi, _mm512_srli_epi64(lo, 52));
    lo = _mm512_and_si512(lo, c.mask);
    const V low = _mm512_and_si512(_mm512_madd52lo_epu64(lo, hi52(lo, set(m.inv52)), c.minus_q), c.mask);
    const V sum = add(low, mul_shoup(hi, set(m.two52), set(m.two52_shoup), c));
    return reduce(reduce(sum, c.two_q), c.q);
}

void overflow(const BaseConversion& b, const u64* y, std::size_t stride, u64* v, std::size_t n) {
    for (std::size_t i = 0; i < n; i += 8) {
        V sum = set(u64{1} << 48);
        for (std::size_t j = 0; j < b.from.size(); ++j) {
            const __m128i shift = _mm_cvtsi32_si128(static_cast<int>(b.from[j].shift));
            sum = _mm512_madd52hi_epu64(sum, _mm512_sll_epi64(load(y + j * stride + i), shift), set(b.from[j].recip));
        }
        store(v + i, _mm512_srli_epi64(sum, 49));
    }
}

// Lazy: a sum of quotients, each rounded down, leaves a remainder of a few q below 2^52.
template <int Count, bool Lazy>
void convert_sum(const BaseConversion::To& to, const u64* y, std::size_t stride, const u64* v, u64* out, std::size_t n) {
    const Consts c(to.m.q);
    const V four_q = add(c.two_q, c.two_q);
    V weight[Count + 1], ratio[Count + 1];
#pragma GCC unroll 16
    for (int j = 0; j <= Count; ++j) weight[j] = set(to.weights[j]), ratio[j] = Lazy ? set(to.ratios[j]) : weight[j];
    for (std::size_t i = 0; i < n; i += 8) {
        const V wrap = load(v + i);
        V lo = lo52(wrap, weight[Count]), hi = hi52(wrap, ratio[Count]);
#pragma GCC unroll 16
        for (int j = 0; j < Count; ++j) {
            const V x = load(y + j * stride + i);
            lo = _mm512_madd52lo_epu64(lo, x, weight[j]);
            hi = _mm512_madd52hi_epu64(hi, x, ratio[j]);
        }
        if constexpr (Lazy)
            store(out + i, reduce(_mm512_and_si512(_mm512_madd52lo_epu64(lo, hi, c.minus_q), c.mask), four_q));
        else
            store(out + i, fold(hi, lo, to.m, c));
    }
}

template <bool Lazy>
void convert_by_count(const BaseConversion::To& to, const u64* y, std::size_t stride, const u64* v, u64* out, std::size_t n) {
    switch (to.weights.size() - 1) {
        case 1: return convert_sum<1, Lazy>(to, y, stride, v, out, n);
        case 2: return convert_sum<2, Lazy>(to, y, stride, v, out, n);
        case 3: return convert_sum<3, Lazy>(to, y, stride, v, out, n);
        case 4: return convert_sum<4, Lazy>(to, y, stride, v, out, n);
        case 5: return convert_sum<5, Lazy>(to, y, stride, v, out, n);
        case 6: return convert_sum<6, Lazy>(to, y, stride, v, out, n);
        case 7: return convert_sum<7, Lazy>(to, y, stride, v, out, n);
        case 8: return convert_sum<8, Lazy>(to, y, stride, v, out, n);
        default: return ckks_portable.convert(to, y, stride, v, out, n);
    }
}

void convert(const BaseConversion::To& to, const u64* y, std::size_t stride, const u64* v, u64* out, std::size_t n) {
    // At most eight terms: below 10q, then below 6q.
    const bool lazy = !to.ratios.empty() && to.weights.size() <= 8;
    lazy ? convert_by_count<true>(to, y, stride, v, out, n) : convert_by_count<false>(to, y, stride, v, out, n);
}

template <int Count>
void key_sums(const Modulus& m, const KeyRun& r) {
    const Consts c(m.q);
    const u64 *digit[Count], *b[Count], *a[Count];
    for (int d = 0; d < Count; ++d) {
        digit[d] = r.digits + static_cast<std::size_t>(d) * r.digit_stride;
        b[d] = r.b + static_cast<std::size_t>(d) * r.b_stride;
        a[d] = r.a + static_cast<std::size_t>(d) * r.a_stride;
    }
    for (std::size_t i = 0; i < r.n; i += 8) {
        V low_b = _mm512_setzero_si512(), high_b = low_b, low_a = low_b, high_a = low_b;
#pragma GCC unroll 8
        for (int d = 0; d < Count; ++d) {
            const V x = load(digit[d] + i), y = load(b[d] + i), z = load(a[d] + i);
            low_b = _mm512_madd52lo_epu64(low_b, x, y);
            high_b = _mm512_madd52hi_epu64(high_b, x, y);
            low_a = _mm512_madd52lo_epu64(low_a, x, z);
            high_a = _mm512_madd52hi_epu64(high_a, x, z);
            _mm_prefetch(reinterpret_cast<const char*>(digit[d] + i + r.ahead), _MM_HINT_T1);
            _mm_prefetch(reinterpret_cast<const char*>(b[d] + i + r.ahead), _MM_HINT_T1);
        }
        store(r.out_b + i, fold(high_b, low_b, m, c));
        store(r.out_a + i, fold(high_a, low_a, m, c));
    }
}

void key_run(const Modulus& m, const KeyRun& r) {
    switch (r.count) {
        case 1: return key_sums<1>(m, r);
        case 2: return key_sums<2>(m, r);
        case 3: return key_sums<3>(m, r);
        case 4: return key_sums<4>(m, r);
        case 5: return key_sums<5>(m, r);
        case 6: return key_sums<6>(m, r);
        case 7: return key_sums<7>(m, r);
        default: return ckks_portable.key_run(m, r);
    }
}

bool narrow_words(const Modulus& m, const u64* words, u64* out, std::size_t n) {
    const V last = set(m.inv52 * m.q), mask = set(kMask52), twice = set(m.q << (51 - m.bits)), once = set(m.q << (50 - m.bits));
    __mmask8 any = 0;
    for (std::size_t i = 0; i < n; i += 8) {
        const V low = _mm512_and_si512(load(words + i), mask);
        any |= _mm512_cmpge_epu64_mask(low, last);
        store(out + i, reduce(reduce(low, twice), once));
    }
    return any != 0;
}

}  // namespace

const CkksKernels ckks_avx512{key_run, overflow, convert, narrow_words};
#endif
