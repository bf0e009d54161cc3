// AES with VAES, four blocks a register; transposition with 8x8 bit products (GFNI) and byte networks.
#if defined(__x86_64__)
#include "aes_vector.h"

namespace {

struct Four {
    static constexpr size_t kLanes = 4;
    using Reg = __m512i;
    static Reg zero() { return _mm512_setzero_si512(); }
    static Reg load(const void* p) { return _mm512_loadu_si512(p); }
    static void store(void* p, Reg x) { _mm512_storeu_si512(p, x); }
    static Reg all(const void* p) { return _mm512_broadcast_i32x4(One::load(p)); }
    static Reg exclusive_or(Reg a, Reg b) { return _mm512_xor_si512(a, b); }
    static Reg round(Reg x, Reg k) { return _mm512_aesenc_epi128(x, k); }
    static Reg last(Reg x, Reg k) { return _mm512_aesenclast_epi128(x, k); }
    static Reg counter(uint64_t first) {
        return _mm512_add_epi64(_mm512_set_epi64(0, 3, 0, 2, 0, 1, 0, 0), tweak_same(first, 0));
    }
    static Reg sigma(Reg x) { return _mm512_xor_si512(_mm512_unpackhi_epi64(x, x), _mm512_bslli_epi128(x, 8)); }
    static Reg tweak_same(uint64_t low, uint64_t high) { return _mm512_broadcast_i32x4(One::tweak_same(low, high)); }

    static void operands(const uint64_t* rows, size_t row, const uint64_t* offsets, size_t entry, size_t entries,
                         uint64_t first, Reg& s, Reg& tweak) {
        if (entries >= 4) {
            s = sigma(_mm512_xor_si512(all(rows + 2 * row), load(offsets + 2 * entry)));
            tweak = tweak_same(first + row, 0);
        } else if (entries == 2) {
            const __m256i two = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + 2 * row));
            const __m256i off = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(offsets));
            const Reg x = _mm512_permutexvar_epi64(_mm512_set_epi64(3, 2, 3, 2, 1, 0, 1, 0), _mm512_castsi256_si512(two));
            s = sigma(_mm512_xor_si512(x, _mm512_broadcast_i64x4(off)));
            tweak = _mm512_add_epi64(_mm512_set_epi64(0, 1, 0, 1, 0, 0, 0, 0), tweak_same(first + row, 0));
        } else {
            s = sigma(_mm512_xor_si512(load(rows + 2 * row), all(offsets)));
            tweak = counter(first + row);
        }
    }

    static void scatter(uint64_t* out, size_t words, bool both, Reg x) {
        if (words == 2) {
            store(out, x);
        } else if (words == 1) {
            const Reg low = _mm512_permutexvar_epi64(_mm512_set_epi64(0, 0, 0, 0, 6, 4, 2, 0), x);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_castsi512_si256(low));
        } else {
            alignas(64) uint64_t lane[8];
            _mm512_store_si512(lane, x);
            for (size_t l = 0; l < 4; ++l) {
                out[l * words] = lane[2 * l];
                if (both) out[l * words + 1] = lane[2 * l + 1];
            }
        }
    }
};

// Eight columns of 64 bytes (512 rows) to one byte for each row: qword transposition, then 8x8 bits each.
inline void eight_columns(const uint8_t* columns, size_t stride, uint8_t* out) {
    __m512i x[8], y[8];
    for (int j = 0; j < 8; ++j) x[j] = _mm512_loadu_si512(columns + static_cast<size_t>(j) * stride);
    for (int j = 0; j < 8; j += 2) {
        y[j] = _mm512_unpacklo_epi64(x[j], x[j + 1]);
        y[j + 1] = _mm512_unpackhi_epi64(x[j], x[j + 1]);
    }
    // y[2a], y[2a + 1]: columns 2a, 2a + 1, even and odd qwords, by lanes. Gather lane L of four registers.
    __m512i z[8];
    for (int odd = 0; odd < 2; ++odd) {
        const __m512i a = _mm512_shuffle_i64x2(y[odd], y[2 + odd], 0x44), b = _mm512_shuffle_i64x2(y[odd], y[2 + odd], 0xee);
        const __m512i c = _mm512_shuffle_i64x2(y[4 + odd], y[6 + odd], 0x44);
        const __m512i d = _mm512_shuffle_i64x2(y[4 + odd], y[6 + odd], 0xee);
        z[0 + odd] = _mm512_shuffle_i64x2(a, c, 0x88);
        z[2 + odd] = _mm512_shuffle_i64x2(a, c, 0xdd);
        z[4 + odd] = _mm512_shuffle_i64x2(b, d, 0x88);
        z[6 + odd] = _mm512_shuffle_i64x2(b, d, 0xdd);
    }
    // z[k]: qword j is column j, bytes 8k..8k+7. Byte 8m + 7 - j of the permutation: column j, byte m (the affine
    // product numbers matrix rows from the top byte), then the product with the identity transposes the bits.
    alignas(64) static const uint8_t kTurn[64] = {
        56, 48, 40, 32, 24, 16, 8,  0, 57, 49, 41, 33, 25, 17, 9,  1, 58, 50, 42, 34, 26, 18, 10, 2,
        59, 51, 43, 35, 27, 19, 11, 3, 60, 52, 44, 36, 28, 20, 12, 4, 61, 53, 45, 37, 29, 21, 13, 5,
        62, 54, 46, 38, 30, 22, 14, 6, 63, 55, 47, 39, 31, 23, 15, 7};
    const __m512i turn = _mm512_load_si512(kTurn), units = _mm512_set1_epi64(static_cast<long long>(0x8040201008040201ull));
    for (int k = 0; k < 8; ++k) {
        const __m512i matrix = _mm512_permutexvar_epi8(turn, z[k]);
        _mm512_storeu_si512(out + 64 * k, _mm512_gf2p8affine_epi64_epi8(units, matrix, 0));
    }
}

// 16 registers of 64 bytes (byte g of 64 rows each) to 64 rows of 16 bytes.
inline void sixteen_bytes(const uint8_t* tile, uint8_t* rows) {
    __m512i a[16], b[16];
    for (int g = 0; g < 16; ++g) a[g] = _mm512_load_si512(tile + 512 * g);
    for (int i = 0; i < 8; ++i) {
        b[2 * i] = _mm512_unpacklo_epi8(a[i], a[i + 8]);
        b[2 * i + 1] = _mm512_unpackhi_epi8(a[i], a[i + 8]);
    }
    for (int i = 0; i < 8; ++i) {
        a[2 * i] = _mm512_unpacklo_epi8(b[i], b[i + 8]);
        a[2 * i + 1] = _mm512_unpackhi_epi8(b[i], b[i + 8]);
    }
    for (int i = 0; i < 8; ++i) {
        b[2 * i] = _mm512_unpacklo_epi8(a[i], a[i + 8]);
        b[2 * i + 1] = _mm512_unpackhi_epi8(a[i], a[i + 8]);
    }
    for (int i = 0; i < 8; ++i) {
        a[2 * i] = _mm512_unpacklo_epi8(b[i], b[i + 8]);
        a[2 * i + 1] = _mm512_unpackhi_epi8(b[i], b[i + 8]);
    }
    // Four perfect shuffles of 16 registers transpose 16x16 bytes in each lane: a[k], lane L, is row 16 L + k.
    for (int k = 0; k < 16; k += 4)
        for (int quarter = 0; quarter < 4; ++quarter) {
            uint8_t* at = rows + 16 * (16 * quarter + k);
            for (int i = 0; i < 4; ++i) {
                const __m512i x = a[k + i];
                __m128i lane;
                switch (quarter) {
                    case 0: lane = _mm512_castsi512_si128(x); break;
                    case 1: lane = _mm512_extracti32x4_epi32(x, 1); break;
                    case 2: lane = _mm512_extracti32x4_epi32(x, 2); break;
                    default: lane = _mm512_extracti32x4_epi32(x, 3); break;
                }
                _mm_storeu_si128(reinterpret_cast<__m128i*>(at + 16 * i), lane);
            }
        }
}

}  // namespace

void transpose_avx512(const uint8_t* columns, size_t bytes, uint8_t* rows) {
    alignas(64) uint8_t tile[16 * 512];
    for (size_t p = 0; p < bytes; p += 64) {
        for (size_t g = 0; g < 16; ++g) eight_columns(columns + 8 * g * bytes + p, bytes, tile + 512 * g);
        for (size_t block = 0; block < 8; ++block) sixteen_bytes(tile + 64 * block, rows + 16 * (8 * p + 64 * block));
    }
}

const AesKernels kAesAvx512 = {ctr_vector<Four>, fold_vector<Four>, hash_vector<Four>, transpose_avx512};
#endif
