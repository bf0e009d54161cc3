// Batched products of matrices over a prime field below 2^44, elements in 64-bit words.
#pragma once

#include "ring_arith.h"

// One product out (m, n) = x (m, k) * y (k, n): rows of x and out are dense, rows of y lie y_stride apart.
struct MatmulArgs {
    const u64* x;
    const u64* y;
    std::size_t y_stride;
    u64* out;
    std::size_t m, k, n;
};

constexpr unsigned kMatmulBits = 44;         // products below 2^88
constexpr std::size_t kMatmulTerms = 4096;   // that many 52-bit halves add up in a word

void field_matmul_portable(const Modulus& p, const MatmulArgs& args);
void field_matmul_avx512(const Modulus& p, const MatmulArgs& args);
