// Inner loops of bgv.cpp, one set per instruction set. Every set gives the same bits.
//
// A fraction x/Q modulo 1 is held to 104 bits, as two words of 52: the high half and the low half.
#pragma once

#include "ring_arith.h"

// out[i] = (accumulate ? out[i] : 0) + sum_k a[k*a_stride + i] * b[k*b_stride + i] modulo one prime.
struct DotArgs {
    const u64* a;
    std::size_t a_stride;
    const u64* b;
    std::size_t b_stride;
    u64* out;
    std::size_t count, n;
    bool accumulate;
};

// x / Q = sum_l [x_l (Q/q_l)^-1 mod q_l] / q_l modulo 1; each term is floored, so the sum is up to L units too small.
struct FractionPrime {
    Modulus m;
    u64 inv, inv_shoup, inv_shoup52;  // (Q/q_l)^-1 mod q_l
    u64 recip;                        // floor(2^(63+bits) / q_l)
    u64 recip52;                      // floor(2^(52+bits) / q_l) - 2^52
};
std::vector<FractionPrime> fraction_primes(const std::vector<Modulus>& primes);

// The plaintext modulus, and the constant that the scaled fraction is multiplied by.
struct ScaleTo {
    Modulus p;
    u64 factor, factor_shoup, factor_shoup52;
};

// (a * Q) / 2^kappa rounded, modulo q_l, is (half - t) * 2^-kappa for t = (a * Q + half) mod 2^kappa: low words only.
struct LiftPrime {
    Modulus m;
    u64 half;                         // 2^(kappa-1) * 2^-kappa = 1/2 mod q_l
    u64 low, low_shoup, low_shoup52;  // -2^-kappa mod q_l
    u64 high, high_shoup, high_shoup52;  // -2^(52-kappa) mod q_l
};
struct LiftFrom {
    unsigned kappa;  // at most 104
    u64 q0, q1;      // Q mod 2^104 in halves
    const LiftPrime* primes;
    std::size_t count;
    std::vector<LiftPrime> held;
    LiftFrom(unsigned kappa, const std::vector<Modulus>& moduli);
    LiftFrom(const LiftFrom&) = delete;
};

struct BgvKernels {
    // out[t*n + i] = centred(scale * x[i] mod from) mod to[t]
    void (*lift)(const u64* x, const Modulus& from, u64 scale, const Modulus* to, std::size_t m, u64* out, std::size_t n);
    void (*dot)(const Modulus& m, const DotArgs& args);
    // out = (x - y) * scale + (add ? *add : 0)
    void (*sub_scale)(const Modulus& m, const u64* x, const u64* y, u64 scale, const u64* add, u64* out, std::size_t n);
    // x: limb l at x + l*stride
    void (*fraction)(const FractionPrime* primes, std::size_t count, const u64* x, std::size_t stride, u64* hi, u64* lo, std::size_t n);
    void (*scale_to)(const ScaleTo& to, const u64* hi, const u64* lo, u64* out, std::size_t n);
    void (*unpack_lift)(const LiftFrom& from, const u64* hi, const u64* lo, u64* out, std::size_t stride, std::size_t n);
    // (hi * 2^52 + lo) - offset modulo one prime, hi and lo below 2^52
    void (*wide)(const Modulus& m, u64 offset, const u64* hi, const u64* lo, u64* out, std::size_t n);
    // out[l*n + i] = (ones in bits 0..20 of words[i]) - (ones in bits 21..41), mod m[l]
    void (*error)(const u64* words, const Modulus* m, std::size_t count, u64* out, std::size_t n);
};

extern const BgvKernels bgv_portable, bgv_avx512;

// The kernels of the active instruction set for rows of n residues; `bits` is the length of the largest modulus.
const BgvKernels& bgv_kernels(unsigned bits, std::size_t n);
