// Arithmetic modulo one prime below 2^61, in 64-bit words: the portable kernels and all table building use it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

using u32 = std::uint32_t;
using u64 = std::uint64_t;
using i64 = std::int64_t;
__extension__ typedef unsigned __int128 u128;
__extension__ typedef __int128 i128;

// Functions that files compiled for an instruction set share with portable ones: a call that is not inlined could end in
// a copy compiled for a machine that this is not.
#if defined(__GNUC__)
#define ALWAYS_INLINE inline __attribute__((always_inline))
#else
#define ALWAYS_INLINE inline
#endif

constexpr u64 kMask52 = (u64{1} << 52) - 1;

ALWAYS_INLINE u64 mulhi(u64 a, u64 b) { return static_cast<u64>((u128{a} * b) >> 64); }

// a modulo q for a < 2q without a branch: operands are secret.
ALWAYS_INLINE u64 cond_sub(u64 a, u64 q) {
    u64 d = a - q;
    return d + (q & (u64{0} - (d >> 63)));
}

// One modulus q < 2^61 and what reduction by it needs.
struct Modulus {
    u64 q = 0;
    u64 inv64 = 0;        // floor(2^64 / q)
    u64 two64 = 0;        // 2^64 mod q
    u64 two64_shoup = 0;  // floor(two64 * 2^64 / q)
    u64 inv52 = 0;        // floor(2^52 / q) (vector kernels)
    u64 two52 = 0;        // 2^52 mod q
    u64 two52_shoup = 0;  // floor(two52 * 2^52 / q), for q < 2^50
    unsigned bits = 0;    // bit length of q

    Modulus() = default;
    explicit Modulus(u64 prime) : q(prime) {
        inv64 = static_cast<u64>((u128{1} << 64) / q);
        two64 = static_cast<u64>((u128{1} << 64) % q);
        two64_shoup = shoup(two64);
        inv52 = (u64{1} << 52) / q;
        two52 = (u64{1} << 52) % q;
        two52_shoup = static_cast<u64>((u128{two52} << 52) / q);
        while (bits < 64 && (q >> bits)) ++bits;
    }

    // The companion word of a constant multiplier w < q (Shoup): floor(w * 2^64 / q).
    ALWAYS_INLINE u64 shoup(u64 w) const { return static_cast<u64>((u128{w} << 64) / q); }
    // x * w mod q, in [0, 2q), for any 64-bit x.
    ALWAYS_INLINE u64 mul_lazy(u64 x, u64 w, u64 w_shoup) const { return x * w - mulhi(x, w_shoup) * q; }
    ALWAYS_INLINE u64 mul_const(u64 x, u64 w, u64 w_shoup) const { return cond_sub(mul_lazy(x, w, w_shoup), q); }
    ALWAYS_INLINE u64 reduce64(u64 x) const { return cond_sub(x - mulhi(x, inv64) * q, q); }
    // Any 128-bit value: the high word times 2^64 mod q plus the low word; the sum is below 4q.
    ALWAYS_INLINE u64 reduce128(u128 z) const {
        u64 lo = static_cast<u64>(z), hi = static_cast<u64>(z >> 64);
        u64 r = mul_lazy(hi, two64, two64_shoup) + (lo - mulhi(lo, inv64) * q);
        return cond_sub(cond_sub(r, 2 * q), q);
    }
    ALWAYS_INLINE u64 mul(u64 a, u64 b) const { return reduce128(u128{a} * b); }
    ALWAYS_INLINE u64 add(u64 a, u64 b) const { return cond_sub(a + b, q); }
    ALWAYS_INLINE u64 sub(u64 a, u64 b) const { return cond_sub(a + q - b, q); }
    ALWAYS_INLINE u64 neg(u64 a) const { return cond_sub(q - a, q); }
    u64 pow(u64 a, u64 e) const {
        u64 r = 1 % q;
        for (; e; e >>= 1, a = mul(a, a))
            if (e & 1) r = mul(r, a);
        return r;
    }
    u64 inverse(u64 a) const { return pow(a, q - 2); }
};

ALWAYS_INLINE u32 bit_reverse(u32 x, unsigned bits) {
    u32 r = 0;
    for (unsigned i = 0; i < bits; ++i) r |= ((x >> i) & 1) << (bits - 1 - i);
    return r;
}
