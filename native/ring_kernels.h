// The kernels of one limb (one prime) of an RNS polynomial, one set per instruction set, chosen by kernels().
#pragma once

#include "ring_arith.h"

// Twiddle factors of the negacyclic transform of length n modulo q, in the order in which the butterflies use them.
struct NttPlan {
    u32 n = 0;
    unsigned lg = 0;
    Modulus m;
    u64 psi = 0;                         // a primitive 2n-th root of unity
    std::vector<u64> w, w_shoup;         // w[i] = psi^brv(i)
    std::vector<u64> iw, iw_shoup;       // iw[i] = w[i]^-1
    std::vector<u64> w52, iw52;          // floor(w * 2^52 / q), only for q < 2^50
    u64 n_inv = 0;
};

// The plan of (n, q), built once per process. Throws std::invalid_argument unless q is 1 mod 2n and below 2^61.
std::shared_ptr<const NttPlan> ntt_plan(u32 n, u64 q);

// Operands of a multiply-accumulate over `count` products in one limb, coefficients [begin, end):
// acc[c*acc_stride + i] += sum_k ct[k][c*ct_stride + i] * pt[k][i >> shift].
struct MacArgs {
    u64* acc;
    std::size_t acc_stride;
    const u64* const* ct;
    std::size_t ct_stride;
    const u64* const* pt;
    std::size_t count, components, begin, end;
    unsigned shift;
};

constexpr std::size_t kMacChunk = 512;  // coefficients per task: a 4 KiB run of every operand

struct RingKernels {
    void (*ntt)(u64* x, const NttPlan& plan);
    void (*intt)(u64* x, const NttPlan& plan);
    void (*add)(const Modulus& m, const u64* a, const u64* b, u64* out, std::size_t n);
    void (*sub)(const Modulus& m, const u64* a, const u64* b, u64* out, std::size_t n);
    void (*mul)(const Modulus& m, const u64* a, const u64* b, u64* out, std::size_t n);
    void (*mul_add)(const Modulus& m, const u64* a, const u64* b, u64* acc, std::size_t n);
    void (*mul_scalar)(const Modulus& m, const u64* a, u64 w, u64* out, std::size_t n);
    void (*mac)(const Modulus& m, const MacArgs& args);
    void (*permute)(const u64* x, const u32* perm, u64* out, std::size_t n);
};

extern const RingKernels ring_portable;

// The kernels of the active instruction set that are valid for this modulus.
const RingKernels& ring_kernels(const Modulus& m);
