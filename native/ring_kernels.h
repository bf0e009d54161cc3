// The kernels of one limb (one prime) of an RNS polynomial, one set per instruction set, chosen by kernels().
#pragma once

#include <mutex>
#include <new>

#include "ring_arith.h"

template <class T>
struct AlignedAllocator {  // on cache lines
    using value_type = T;
    AlignedAllocator() = default;
    template <class U>
    AlignedAllocator(const AlignedAllocator<U>&) {}
    T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64))); }
    void deallocate(T* p, std::size_t) { ::operator delete(p, std::align_val_t(64)); }
    bool operator==(const AlignedAllocator&) const { return true; }
};
using AlignedWords = std::vector<u64, AlignedAllocator<u64>>;

// Twiddle factors of the negacyclic transform of length n modulo q, in the order in which the butterflies use them.
struct NttPlan {
    u32 n = 0;
    unsigned lg = 0;
    Modulus m;
    u64 psi = 0;                         // a primitive 2n-th root of unity
    AlignedWords w, w_shoup;             // w[i] = psi^brv(i)
    AlignedWords iw, iw_shoup;           // iw[i] = w[i]^-1
    AlignedWords w52, iw52;              // floor(w * 2^52 / q), only for q < 2^50
    // The same factors for the last three levels in the order of the vector kernels (q < 2^50, n >= 64): for each group
    // of 64 coefficients seven registers of w, then seven of w52; lane b serves block b of the group's eight blocks.
    AlignedWords tail, itail;
    u64 n_inv = 0;
    // Behind double_tables(), made on first use: factors, ratios and tail, forward and inverse.
    mutable std::once_flag doubles_made;
    mutable std::vector<double> doubles[2];
};

// The same factors as doubles, with their ratios to q, for kernels without wide integer products. The tail holds those of
// the last two levels for each sixteen coefficients: three registers of four factors, then three of ratios.
struct DoubleTables {
    const double *w, *ratio, *tail;
};
DoubleTables double_tables(const NttPlan& plan, bool inverse);

// The plan of (n, q), built once per process. Throws std::invalid_argument unless q is 1 mod 2n and below 2^61.
std::shared_ptr<const NttPlan> ntt_plan(u32 n, u64 q);

// perm[i]: the position whose value x(X^k) has at position i, in NTT form; k odd.
std::shared_ptr<const std::vector<u32>> automorphism_positions(u32 n, u64 k);

// Operands of `groups` sums of `count` products in one limb, coefficients [begin, end) of it:
// acc[g*group_stride + c*stride + i] += sum_k ct[k][c*stride + i] * pt[g*count + k][i >> shift].
struct MacArgs {
    u64* acc;
    std::size_t group_stride, stride;
    const u64* const* ct;
    const u64* const* pt;
    std::size_t groups, count, components, begin, end;
    unsigned shift;
    u64* scratch;  // count * components * (end - begin) words on a cache line, or null for one group
};

constexpr std::size_t kMacChunk = 512;  // coefficients per task: 4 KiB runs of every operand

struct RingKernels {
    void (*ntt)(u64* x, const NttPlan& plan);
    void (*intt)(u64* x, const NttPlan& plan);
    void (*add)(const Modulus& m, const u64* a, const u64* b, u64* out, std::size_t n);
    void (*sub)(const Modulus& m, const u64* a, const u64* b, u64* out, std::size_t n);
    void (*mul)(const Modulus& m, const u64* a, const u64* b, u64* out, std::size_t n);
    void (*mul_add)(const Modulus& m, const u64* a, const u64* b, u64* acc, std::size_t n);
    void (*mul_scalar)(const Modulus& m, const u64* a, u64 w, u64* out, std::size_t n);
    void (*mac)(const Modulus& m, const MacArgs& args);
    // out[i] = x[perm[i]] for an automorphism in bit-reversed order: aligned blocks of eight stay together.
    void (*permute)(const u64* x, const u32* perm, u64* out, std::size_t n);
};

extern const RingKernels ring_portable, ring_avx2, ring_avx512;

// The kernels of the active instruction set that are valid for this modulus.
const RingKernels& ring_kernels(const Modulus& m);
