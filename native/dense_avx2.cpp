#if defined(__x86_64__)
#include <immintrin.h>

#include "dense_kernels.h"

// Words are split into 26-bit halves, whose products with a weight and their sums over a block fit 64 bits.
void dense_block_avx2(const DenseBlock& b) {
    const __m256i low = _mm256_set1_epi64x((1 << 26) - 1), mask = _mm256_set1_epi64x(static_cast<i64>(kMask52));
    for (std::size_t first = 0; first < b.cols; first += kPanel) {
        const u64* panel = b.panels + first * b.depth;
        const std::size_t width = b.cols - first < kPanel ? b.cols - first : kPanel;
        for (std::size_t r = 0; r < b.rows; ++r) {
            const std::int16_t* w = b.w + r * b.w_stride;
            alignas(32) u64 sums[kPanel];
            for (std::size_t c = 0; c < kPanel; c += 16) {
                __m256i lo[4], hi[4];
                for (int k = 0; k < 4; ++k) lo[k] = hi[k] = _mm256_setzero_si256();
                for (std::size_t i = 0; i < b.depth; ++i) {
                    const __m256i weight = _mm256_set1_epi64x(i64{w[i]});
                    for (int k = 0; k < 4; ++k) {
                        const __m256i x = _mm256_loadu_si256(
                            reinterpret_cast<const __m256i*>(panel + i * kPanel + c + 4 * static_cast<std::size_t>(k)));
                        lo[k] = _mm256_add_epi64(lo[k], _mm256_mul_epi32(weight, _mm256_and_si256(x, low)));
                        hi[k] = _mm256_add_epi64(hi[k], _mm256_mul_epi32(weight, _mm256_srli_epi64(x, 26)));
                    }
                }
                for (int k = 0; k < 4; ++k) {
                    const __m256i sum = _mm256_add_epi64(lo[k], _mm256_slli_epi64(hi[k], 26));
                    _mm256_store_si256(reinterpret_cast<__m256i*>(sums + c + 4 * static_cast<std::size_t>(k)),
                                       _mm256_and_si256(sum, mask));
                }
            }
            u64* out = b.out + r * b.stride + first;
            for (std::size_t c = 0; c < width; ++c) out[c] = (sums[c] + (b.fresh ? 0 : out[c])) & kMask52;
        }
    }
}

void dense_errors_avx2(const u64* words, u64* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) out[i] = dense_error(words[i]);
}
#endif
