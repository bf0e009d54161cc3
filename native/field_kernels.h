// Kernels over a prime field of at most 48 bits whose elements are 64-bit words.
#pragma once

#include "ring_arith.h"

constexpr std::size_t kDigits = 4;

// x split for the 16-bit multiply-add of pairs: balanced digits of `bits` bits, digit d of x[t][i], centred modulo p, at
// words[(t*4 + d)*padded + i], zeros up to `padded`. With b bits a pair's products stay below 2^(15+b) + 2^16 in
// magnitude and 2^(16-b) - 1 of them below 2^31.
struct FieldDigits {
    std::size_t padded;
    unsigned bits;
    const std::int16_t* words;
};

// out[t*rows + o] = sum_i w[o*cols + i] * x[t*cols + i] mod p for rows [begin, end) of w and all t < batch.
struct FieldKernels {
    std::size_t lanes;  // int16 values per register: the unit in which FieldDigits is padded
    void (*matvec_i16)(const Modulus& m, const std::int16_t* w, const FieldDigits& x, u64* out, std::size_t rows,
                       std::size_t cols, std::size_t batch, std::size_t begin, std::size_t end);
};

// The digits of x (batch, cols) in units of `lanes`; `words` becomes their storage.
FieldDigits field_digits(const Modulus& m, const u64* x, std::size_t cols, std::size_t batch, std::size_t lanes,
                         std::vector<std::int16_t>& words);

// The product from x itself, in plain C++.
void field_matvec_portable(const Modulus& m, const std::int16_t* w, const u64* x, u64* out, std::size_t rows,
                           std::size_t cols, std::size_t batch, std::size_t begin, std::size_t end);

// The vector kernels of the active instruction set, or null.
const FieldKernels* field_kernels();

extern const FieldKernels field_avx2, field_avx512;

constexpr unsigned kFieldBits = 48;
constexpr std::size_t kFieldColumns = 1 << 17;  // sums of that many 39-bit products fit 63 bits
