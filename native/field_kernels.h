// Kernels over a prime field of at most 48 bits whose elements are 64-bit words.
#pragma once

#include "ring_arith.h"

struct FieldKernels {
    // out[t*rows + o] = sum_i w[o*cols + i] * x[t*cols + i] mod p for rows [begin, end) of w and all t < batch.
    void (*matvec_i16)(const Modulus& m, const std::int16_t* w, const u64* x, u64* out, std::size_t rows,
                       std::size_t cols, std::size_t batch, std::size_t begin, std::size_t end);
};

extern const FieldKernels field_portable;
const FieldKernels& field_kernels();

constexpr unsigned kFieldBits = 48;
constexpr std::size_t kFieldColumns = 1 << 17;  // sums of that many 39-bit products fit 63 bits
