// AES-128 and what oblivious transfer builds from it. One set of functions per instruction set, same results.
//
// Byte order: a block is 16 bytes as FIPS 197 writes them. A counter block holds a 64-bit little-endian counter in its
// first eight bytes and zeros after it.
#pragma once
#include <cstddef>
#include <cstdint>

struct AesKey {
    alignas(16) uint8_t round[11][16];
};

// Leaves of one tree, and the depth of all trees (SoftSpokenOT k = 8).
constexpr size_t kTreeDepth = 8;
constexpr size_t kLeaves = size_t{1} << kTreeDepth;

// The fold works on multiples of this many blocks (one instruction-set-independent granule).
constexpr size_t kFoldGranule = 8;

struct AesKernels {
    // out[i * blocks + j] = AES_{keys[i]}(counter first + j), for i < count, j < blocks.
    void (*ctr)(const uint8_t* keys, size_t count, uint64_t first, size_t blocks, uint8_t* out);

    // One tree: r_x = the CTR stream of leaf x, `blocks` blocks from counter `first` (a multiple of kFoldGranule).
    // sum = XOR of all r_x; weighted[j] = XOR of r_x over x with bit j set; row j starts at weighted + j * stride.
    void (*fold)(const uint8_t* leaves, uint64_t first, size_t blocks, uint8_t* sum, uint8_t* weighted, size_t stride);

    // out[(i * entries + e) * words ..] = the first `words` 64-bit words of H(t, rows[i] ^ offsets[e]) for the tweaks
    // t = (first + i, 0), (first + i, 1), ...; H(t, x) = AES_key(s ^ t) ^ s, s = (high ^ low, high) of x.
    // entries is 1, 2 or a multiple of 4. Rows, offsets: pairs of 64-bit words (low, high).
    void (*hash)(const AesKey& key, const uint64_t* rows, size_t n, const uint64_t* offsets, size_t entries,
                 uint64_t first, size_t words, uint64_t* out);

    // Bit matrix (128 rows of `bytes` bytes, a multiple of 64) to (8 * bytes) rows of 16 bytes; bit r of a row is bit
    // r % 8 of its byte r / 8, on both sides.
    void (*transpose)(const uint8_t* columns, size_t bytes, uint8_t* rows);
};

void aes_expand_key(const uint8_t key[16], AesKey& out);  // constant time, portable

const AesKernels& aes_kernels();  // of the active instruction set
extern const AesKernels kAesPortable;
#if defined(__x86_64__)
extern const AesKernels kAesAvx2;
extern const AesKernels kAesAvx512;
#endif

void transpose_portable(const uint8_t* columns, size_t bytes, uint8_t* rows);
void transpose_avx2(const uint8_t* columns, size_t bytes, uint8_t* rows);
void transpose_avx512(const uint8_t* columns, size_t bytes, uint8_t* rows);
