#include "dense_kernels.h"

void dense_block_portable(const DenseBlock& b) {
    for (std::size_t first = 0; first < b.cols; first += kPanel) {
        const u64* panel = b.panels + first * b.depth;
        const std::size_t width = b.cols - first < kPanel ? b.cols - first : kPanel;
        for (std::size_t r = 0; r < b.rows; ++r) {
            u64 acc[kPanel] = {};
            for (std::size_t i = 0; i < b.depth; ++i) {
                const u64 w = static_cast<u64>(i64{b.w[r * b.w_stride + i]});
                for (std::size_t c = 0; c < kPanel; ++c) acc[c] += w * panel[i * kPanel + c];
            }
            u64* out = b.out + r * b.stride + first;
            for (std::size_t c = 0; c < width; ++c) out[c] = (acc[c] + (b.fresh ? 0 : out[c])) & kMask52;
        }
    }
}

void dense_errors_portable(const u64* words, u64* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) out[i] = dense_error(words[i]);
}
