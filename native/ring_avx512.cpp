// The table of AVX-512 IFMA kernels for primes below 2^50, and the pointwise ones.
#if defined(__x86_64__)
#include "ring_avx512.h"

namespace {

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

void mul(const Modulus& m, const u64* a, const u64* b, u64* out, std::size_t n) {
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

void add(const Modulus& m, const u64* a, const u64* b, u64* out, std::size_t n) {
    const V q = set(m.q);
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) store(out + i, reduce(add(load(a + i), load(b + i)), q));
    ring_portable.add(m, a + i, b + i, out + i, n - i);
}

void sub(const Modulus& m, const u64* a, const u64* b, u64* out, std::size_t n) {
    const V q = set(m.q);
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        V d = sub(load(a + i), load(b + i));
        store(out + i, _mm512_min_epu64(d, add(d, q)));
    }
    ring_portable.sub(m, a + i, b + i, out + i, n - i);
}

void mul_scalar(const Modulus& m, const u64* a, u64 w, u64* out, std::size_t n) {
    const std::size_t i = n / 8 * 8;
    scale_row(Consts(m.q), a, set(w), set(static_cast<u64>((u128{w} << 52) / m.q)), out, i);
    ring_portable.mul_scalar(m, a + i, w, out + i, n - i);
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

const RingKernels ring_avx512 = {ring_ntt_avx512, ring_intt_avx512, add, sub, mul,
                                 mul_add,         mul_scalar,       ring_mac_avx512, permute};
#endif
