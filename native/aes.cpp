// Portable AES: bit-sliced, so that no table is indexed and no branch taken by secret data.
//
// Sixteen blocks travel together in eight planes; plane b holds bit b of every byte. A plane is a vector of 64-bit words
// of four 16-bit lanes; a lane is one block, and bit 4c + r of it is the byte in column c and row r of the AES state.
#include "aes.h"

#include <cstring>

#include "cpu.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors wider than the baseline registers never cross a file
#endif

namespace {

typedef uint64_t Plane __attribute__((vector_size(32)));
constexpr size_t kWords = 4, kLanes = 4, kBatch = kWords * kLanes;

constexpr uint64_t lanes(uint64_t m) { return m * 0x0001000100010001ull; }

// The S-box on eight planes, x[0] the least significant bit. Circuit: Boyar and Peralta, "A small depth-16 circuit for
// the AES S-box" (2012): linear map into a tower field, inversion there, linear map back with the affine part.
template <class T>
void sub_bytes(T x[8]) {
    const T x0 = x[7], x1 = x[6], x2 = x[5], x3 = x[4], x4 = x[3], x5 = x[2], x6 = x[1], x7 = x[0];
    const T y14 = x3 ^ x5, y13 = x0 ^ x6, y9 = x0 ^ x3, y8 = x0 ^ x5, t0 = x1 ^ x2, y1 = t0 ^ x7, y4 = y1 ^ x3;
    const T y12 = y13 ^ y14, y2 = y1 ^ x0, y5 = y1 ^ x6, y3 = y5 ^ y8, t1 = x4 ^ y12, y15 = t1 ^ x5, y20 = t1 ^ x1;
    const T y6 = y15 ^ x7, y10 = y15 ^ t0, y11 = y20 ^ y9, y7 = x7 ^ y11, y17 = y10 ^ y11, y19 = y10 ^ y8;
    const T y16 = t0 ^ y11, y21 = y13 ^ y16, y18 = x0 ^ y16;

    const T t2 = y12 & y15, t4 = (y3 & y6) ^ t2, t6 = (y4 & x7) ^ t2, t7 = y13 & y16, t9 = (y5 & y1) ^ t7;
    const T t11 = (y2 & y7) ^ t7, t12 = y9 & y11, t14 = (y14 & y17) ^ t12, t16 = (y8 & y10) ^ t12;
    const T t21 = t4 ^ t14 ^ y20, t22 = t6 ^ t16 ^ y19, t23 = t9 ^ t14 ^ y21, t24 = t11 ^ t16 ^ y18;

    const T t25 = t21 ^ t22, t26 = t21 & t23, t27 = t24 ^ t26, t29 = (t25 & t27) ^ t22, t30 = t23 ^ t24;
    const T t33 = ((t22 ^ t26) & t30) ^ t24, t36 = t24 & (t27 ^ t33), t37 = t36 ^ t23 ^ t33;
    const T t40 = t25 ^ (t29 & (t27 ^ t36));
    const T t41 = t40 ^ t37, t42 = t29 ^ t33, t43 = t29 ^ t40, t44 = t33 ^ t37, t45 = t42 ^ t41;

    const T z0 = t44 & y15, z1 = t37 & y6, z2 = t33 & x7, z3 = t43 & y16, z4 = t40 & y1, z5 = t29 & y7;
    const T z6 = t42 & y11, z7 = t45 & y17, z8 = t41 & y10, z9 = t44 & y12, z10 = t37 & y3, z11 = t33 & y4;
    const T z12 = t43 & y13, z13 = t40 & y5, z14 = t29 & y2, z15 = t42 & y9, z16 = t45 & y14, z17 = t41 & y8;

    const T t46 = z15 ^ z16, t48 = z5 ^ z13, t53 = z0 ^ z3, t57 = z2 ^ z12 ^ t53, t58 = z4 ^ t46;
    const T t59 = z3 ^ z6 ^ z7, t60 = t46 ^ t57, t62 = z7 ^ z8 ^ t58, t63 = z9 ^ z10 ^ t58, t64 = z4 ^ t59;
    const T t65 = z14 ^ t57 ^ t62, t66 = z1 ^ t63, s3 = t53 ^ t66;
    x[7] = t59 ^ t63;
    x[6] = ~(t64 ^ s3);
    x[5] = ~(z16 ^ z17 ^ t64 ^ t65);
    x[4] = s3;
    x[3] = z2 ^ z5 ^ t66;
    x[2] = z10 ^ z11 ^ t65;
    x[1] = ~(z12 ^ t48 ^ t62);
    x[0] = ~(t48 ^ t60);
}

inline uint64_t transpose8(uint64_t x) {  // 8x8 bits: bit 8i + j to bit 8j + i
    uint64_t t = (x ^ (x >> 7)) & 0x00AA00AA00AA00AAull;
    x ^= t ^ (t << 7);
    t = (x ^ (x >> 14)) & 0x0000CCCC0000CCCCull;
    x ^= t ^ (t << 14);
    t = (x ^ (x >> 28)) & 0x00000000F0F0F0F0ull;
    return x ^ t ^ (t << 28);
}

inline uint64_t load64(const uint8_t* p) {
    uint64_t v;
    std::memcpy(&v, p, 8);
    return v;
}

void to_planes(const uint8_t* blocks, Plane planes[8]) {
    for (int b = 0; b < 8; ++b) planes[b] = Plane{};
    for (size_t w = 0; w < kWords; ++w)
        for (size_t l = 0; l < kLanes; ++l) {
            const uint8_t* block = blocks + 16 * (w * kLanes + l);
            const uint64_t low = transpose8(load64(block)), high = transpose8(load64(block + 8));
            for (int b = 0; b < 8; ++b)
                planes[b][w] |= ((low >> (8 * b) & 0xff) | (high >> (8 * b) & 0xff) << 8) << (16 * l);
        }
}

void from_planes(const Plane planes[8], uint8_t* blocks) {
    for (size_t w = 0; w < kWords; ++w)
        for (size_t l = 0; l < kLanes; ++l) {
            uint64_t low = 0, high = 0;
            for (int b = 0; b < 8; ++b) {
                const uint64_t lane = planes[b][w] >> (16 * l);
                low |= (lane & 0xff) << (8 * b);
                high |= (lane >> 8 & 0xff) << (8 * b);
            }
            low = transpose8(low);
            high = transpose8(high);
            std::memcpy(blocks + 16 * (w * kLanes + l), &low, 8);
            std::memcpy(blocks + 16 * (w * kLanes + l) + 8, &high, 8);
        }
}

inline Plane shift_row(Plane x, int row) {  // row r moves r columns: 16-bit rotation right by 4r of its bits
    const uint64_t keep = lanes(0x1111ull << row & 0xffff), low = lanes(0xffffull >> (4 * row));
    if (row == 0) return x & keep;
    return ((x >> (4 * row) & low) | (x << (16 - 4 * row) & ~low)) & keep;
}

void shift_rows(Plane x[8]) {
    for (int b = 0; b < 8; ++b) x[b] = shift_row(x[b], 0) | shift_row(x[b], 1) | shift_row(x[b], 2) | shift_row(x[b], 3);
}

void mix_columns(Plane x[8]) {
    Plane next[8], pair[8];
    for (int b = 0; b < 8; ++b) {
        next[b] = (x[b] >> 1 & lanes(0x7777)) | (x[b] << 3 & lanes(0x8888));
        pair[b] = x[b] ^ next[b];
    }
    for (int b = 0; b < 8; ++b) {  // 2 (s_r + s_{r+1}) + s_{r+1} + (s_{r+2} + s_{r+3})
        Plane twice = b ? pair[b - 1] : pair[7];
        if (b == 1 || b == 3 || b == 4) twice ^= pair[7];
        x[b] = twice ^ next[b] ^ (pair[b] >> 2 & lanes(0x3333)) ^ (pair[b] << 2 & lanes(0xcccc));
    }
}

struct SlicedKey {
    Plane round[11][8];
    explicit SlicedKey(const AesKey& key) {
        for (int r = 0; r < 11; ++r) {
            const uint64_t low = transpose8(load64(key.round[r])), high = transpose8(load64(key.round[r] + 8));
            for (int b = 0; b < 8; ++b)
                round[r][b] = Plane{} + lanes((low >> (8 * b) & 0xff) | (high >> (8 * b) & 0xff) << 8);
        }
    }
};

void encrypt_batch(const SlicedKey& key, uint8_t* blocks) {  // kBatch blocks in place
    Plane x[8];
    to_planes(blocks, x);
    for (int b = 0; b < 8; ++b) x[b] ^= key.round[0][b];
    for (int r = 1; r <= 10; ++r) {
        sub_bytes(x);
        shift_rows(x);
        if (r < 10) mix_columns(x);
        for (int b = 0; b < 8; ++b) x[b] ^= key.round[r][b];
    }
    from_planes(x, blocks);
}

uint32_t sub_word(uint32_t w) {
    uint64_t planes[8], packed = transpose8(w);
    for (int b = 0; b < 8; ++b) planes[b] = packed >> (8 * b) & 0xff;
    sub_bytes(planes);
    packed = 0;
    for (int b = 0; b < 8; ++b) packed |= (planes[b] & 0xff) << (8 * b);
    return static_cast<uint32_t>(transpose8(packed));
}

void counters(uint64_t first, uint8_t* blocks) {
    std::memset(blocks, 0, 16 * kBatch);
    for (size_t j = 0; j < kBatch; ++j) {
        const uint64_t c = first + j;
        std::memcpy(blocks + 16 * j, &c, 8);
    }
}

void ctr_portable(const uint8_t* keys, size_t count, uint64_t first, size_t blocks, uint8_t* out) {
    uint8_t batch[16 * kBatch];
    for (size_t i = 0; i < count; ++i) {
        AesKey key;
        aes_expand_key(keys + 16 * i, key);
        const SlicedKey sliced(key);
        for (size_t j = 0; j < blocks; j += kBatch) {
            counters(first + j, batch);
            encrypt_batch(sliced, batch);
            const size_t take = blocks - j < kBatch ? blocks - j : kBatch;
            std::memcpy(out + 16 * (i * blocks + j), batch, 16 * take);
        }
    }
}

void xor_into(uint8_t* acc, const uint8_t* x, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) acc[i] ^= x[i];
}

void fold_portable(const uint8_t* leaves, uint64_t first, size_t blocks, uint8_t* sum, uint8_t* weighted,
                   size_t stride) {
    const size_t bytes = 16 * blocks;
    std::memset(sum, 0, bytes);
    for (size_t j = 0; j < kTreeDepth; ++j) std::memset(weighted + j * stride, 0, bytes);
    uint8_t batch[16 * kBatch];
    for (size_t x = 0; x < kLeaves; ++x) {
        AesKey key;
        aes_expand_key(leaves + 16 * x, key);
        const SlicedKey sliced(key);
        for (size_t b = 0; b < blocks; b += kBatch) {
            counters(first + b, batch);
            encrypt_batch(sliced, batch);
            const size_t take = 16 * (blocks - b < kBatch ? blocks - b : kBatch);
            xor_into(sum + 16 * b, batch, take);
            for (size_t j = 0; j < kTreeDepth; ++j)
                if (x >> j & 1) xor_into(weighted + j * stride + 16 * b, batch, take);
        }
    }
}

void hash_portable(const AesKey& key, const uint64_t* rows, size_t n, const uint64_t* offsets, size_t entries,
                   uint64_t first, size_t words, uint64_t* out) {
    const SlicedKey sliced(key);
    const size_t items = n * entries;
    uint64_t sigma[kBatch][2], state[kBatch][2];
    for (size_t base = 0; base < items; base += kBatch) {
        const size_t take = items - base < kBatch ? items - base : kBatch;
        for (size_t w = 0; w < words; w += 2) {
            std::memset(state, 0, sizeof state);
            for (size_t k = 0; k < take; ++k) {
                const size_t row = (base + k) / entries, entry = (base + k) % entries;
                const uint64_t low = rows[2 * row] ^ offsets[2 * entry], high = rows[2 * row + 1] ^ offsets[2 * entry + 1];
                sigma[k][0] = high;
                sigma[k][1] = high ^ low;
                state[k][0] = sigma[k][0] ^ (first + row);
                state[k][1] = sigma[k][1] ^ (w / 2);
            }
            encrypt_batch(sliced, reinterpret_cast<uint8_t*>(state));
            for (size_t k = 0; k < take; ++k)
                for (size_t h = 0; h < 2 && w + h < words; ++h)
                    out[(base + k) * words + w + h] = state[k][h] ^ sigma[k][h];
        }
    }
}

}  // namespace

void aes_expand_key(const uint8_t key[16], AesKey& out) {
    static constexpr uint8_t kRcon[10] = {1, 2, 4, 8, 16, 32, 64, 128, 0x1b, 0x36};
    uint32_t w[44];
    std::memcpy(w, key, 16);
    for (int i = 4; i < 44; ++i) {
        uint32_t t = w[i - 1];
        if (i % 4 == 0) t = sub_word(t >> 8 | t << 24) ^ kRcon[i / 4 - 1];
        w[i] = w[i - 4] ^ t;
    }
    std::memcpy(out.round, w, 176);
}

void transpose_portable(const uint8_t* columns, size_t bytes, uint8_t* rows) {
    for (size_t p = 0; p < bytes; ++p)
        for (size_t group = 0; group < 16; ++group) {
            uint64_t square = 0;
            for (size_t j = 0; j < 8; ++j) square |= uint64_t{columns[(8 * group + j) * bytes + p]} << (8 * j);
            square = transpose8(square);
            for (size_t r = 0; r < 8; ++r) rows[16 * (8 * p + r) + group] = static_cast<uint8_t>(square >> (8 * r));
        }
}

const AesKernels kAesPortable = {ctr_portable, fold_portable, hash_portable, transpose_portable};

const AesKernels& aes_kernels() {
#if defined(__x86_64__)
    if (active_isa() == Isa::avx512) return kAesAvx512;
    if (active_isa() == Isa::avx2) return kAesAvx2;
#endif
    return kAesPortable;
}
