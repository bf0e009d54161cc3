// Inner loops of ckks.cpp, one set per instruction set. Every set gives the same bits.
#pragma once

#include "ring_arith.h"

// From residues modulo p_1..p_k to residues modulo other primes. With y_i = x (P/p_i)^-1 mod p_i the centred
// representative of x modulo P = p_1...p_k is sum_i y_i P/p_i - v P, v the sum of the y_i / p_i rounded.
struct BaseConversion {
    struct From {
        Modulus m;
        u64 scale, scale_shoup, scale_shoup52;  // (P/p_i)^-1 mod p_i
        unsigned shift;                         // brings p_i to 50 bits
        u64 recip;                              // floor(2^101 / (p_i << shift))
    };
    std::vector<From> from;
    struct To {
        Modulus m;
        std::vector<u64> weights;  // k words P/p_i mod q, then -P mod q
        std::vector<u64> ratios;   // floor(weight * 2^52 / q) if all the quotients may be added up before the remainder is taken
    };
    std::vector<To> to;

    BaseConversion(const std::vector<Modulus>& from, const std::vector<Modulus>& to);
};

constexpr std::size_t kConvertChunk = 512;

// One run of a product with a key: out_b = sum_d digit_d * b_d and out_a = sum_d digit_d * a_d. The next run of what lies in
// memory (the digits and b) starts `ahead` words further, or nowhere if that is 0.
struct KeyRun {
    const u64* digits;
    std::size_t digit_stride;
    const u64* b;
    std::size_t b_stride;
    const u64* a;
    std::size_t a_stride;
    u64 *out_b, *out_a;
    std::size_t count, n, ahead;
};

struct CkksKernels {
    void (*key_run)(const Modulus& m, const KeyRun& run);
    // y: rows y_i at y + i*stride; v[i] for n <= kConvertChunk coefficients.
    void (*overflow)(const BaseConversion& c, const u64* y, std::size_t stride, u64* v, std::size_t n);
    // out[i] = sum_j y_j[i] w_j + v[i] w_k modulo the target, below 6q: for a transform.
    void (*convert)(const BaseConversion::To& to, const u64* y, std::size_t stride, const u64* v, u64* out, std::size_t n);
    // out[i] = the low 52 bits of words[i] modulo q, but only brought below 2^52, and near 2^50 where that can overflow a sum
    // of eight products; returns whether any of them is in the last, incomplete multiple of q below 2^52. q below 2^50.
    bool (*narrow_words)(const Modulus& m, const u64* words, u64* out, std::size_t n);
};

extern const CkksKernels ckks_portable, ckks_avx512;
// The kernels of the active instruction set for moduli of up to `bits` bits and rows of n residues.
const CkksKernels& ckks_kernels(unsigned bits, std::size_t n);
