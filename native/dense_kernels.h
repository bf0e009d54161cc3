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

// A centred binomial of 2 x 21 coin tosses, modulo 2^64: the ones in the lowest 21 bits minus those in the next 21,
// counted in both halves of a word at once.
ALWAYS_INLINE u64 dense_error(u64 word) {
    u64 x = (word & 0x1fffff) | (word >> 21 & 0x1fffff) << 32;
    x -= x >> 1 & 0x5555555555555555;
    x = (x & 0x3333333333333333) + (x >> 2 & 0x3333333333333333);
    x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0f;
    x += x >> 8;
    x += x >> 16;
    return (x & 0xff) - (x >> 32 & 0xff);
}

void dense_block_portable(const DenseBlock& block);
void dense_block_avx2(const DenseBlock& block);
void dense_block_avx512(const DenseBlock& block);

// out[i] = dense_error(words[i])
void dense_errors_portable(const u64* words, u64* out, std::size_t n);
void dense_errors_avx2(const u64* words, u64* out, std::size_t n);
void dense_errors_avx512(const u64* words, u64* out, std::size_t n);
