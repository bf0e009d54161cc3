// Matrix products on words modulo 2^52: the kernels behind dense_matmul, one per instruction set.
#pragma once

#include "ring_arith.h"

constexpr std::size_t kPanel = 32;        // columns per panel of the right-hand side
constexpr std::size_t kDenseDepth = 256;  // inner dimension per block: a panel's block is 64 KB

// out[r*stride + c] (+)= sum_i w[r*w_stride + i] * panels[(c/32*depth + i)*32 + c%32] mod 2^52, for rows r < rows and
// columns c < cols. Each panel holds `depth` rows of 32 words, unused columns zero. `fresh`: out is not read.
struct DenseBlock {
    const std::int16_t* w;
    std::size_t w_stride, rows, depth;
    const u64* panels;
    u64* out;
    std::size_t stride, cols;
    bool fresh;
};

void dense_block_portable(const DenseBlock& block);
void dense_block_avx2(const DenseBlock& block);
void dense_block_avx512(const DenseBlock& block);
