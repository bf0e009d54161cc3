// AES with the AES-NI instructions, one block a register; transposition by byte masks.
#if defined(__x86_64__)
#include "aes_vector.h"

namespace {

struct Single : One {
    static void operands(const uint64_t* rows, size_t row, const uint64_t* offsets, size_t entry, size_t,
                         uint64_t first, Reg& s, Reg& tweak) {
        s = sigma(_mm_xor_si128(load(rows + 2 * row), load(offsets + 2 * entry)));
        tweak = tweak_same(first + row, 0);
    }
    static void scatter(uint64_t* out, size_t, bool both, Reg x) {
        if (both)
            store(out, x);
        else
            *out = static_cast<uint64_t>(_mm_cvtsi128_si64(x));
    }
};

}  // namespace

// A tile of 64 byte columns is turned so that the 128 bytes of one byte column lie together; then the sign bits of 32
// bytes make four bytes of a row, eight times.
void transpose_avx2(const uint8_t* columns, size_t bytes, uint8_t* rows) {
    alignas(32) uint8_t tile[64][128];
    for (size_t p = 0; p < bytes; p += 64) {
        for (size_t c = 0; c < 128; ++c)
            for (size_t k = 0; k < 64; ++k) tile[k][c] = columns[c * bytes + p + k];
        for (size_t k = 0; k < 64; ++k)
            for (size_t quarter = 0; quarter < 4; ++quarter) {
                __m256i x = _mm256_load_si256(reinterpret_cast<const __m256i*>(tile[k] + 32 * quarter));
                for (int r = 7; r >= 0; --r) {
                    const int mask = _mm256_movemask_epi8(x);
                    std::memcpy(rows + 16 * (8 * (p + k) + static_cast<size_t>(r)) + 4 * quarter, &mask, 4);
                    x = _mm256_add_epi8(x, x);
                }
            }
    }
}

const AesKernels kAesAvx2 = {ctr_vector<Single>, fold_vector<Single>, hash_vector<Single>, transpose_avx2};
#endif
