// The AES kernels over a vector type V of V::kLanes blocks; included by one source file per instruction set.
//
// Everything is in an unnamed namespace: the same template compiled for two instruction sets must not be merged.
#pragma once
#include <immintrin.h>

#include <cstring>
#include <vector>

#include "aes.h"

// GCC 12 takes the deliberately undefined operands inside its own AVX-512 intrinsics for mistakes.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace {

struct One {  // one block: AES-NI
    static constexpr size_t kLanes = 1;
    using Reg = __m128i;
    static Reg zero() { return _mm_setzero_si128(); }
    static Reg load(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
    static void store(void* p, Reg x) { _mm_storeu_si128(static_cast<__m128i*>(p), x); }
    static Reg all(const void* p) { return load(p); }
    static Reg exclusive_or(Reg a, Reg b) { return _mm_xor_si128(a, b); }
    static Reg round(Reg x, Reg k) { return _mm_aesenc_si128(x, k); }
    static Reg last(Reg x, Reg k) { return _mm_aesenclast_si128(x, k); }
    static Reg counter(uint64_t first) { return _mm_set_epi64x(0, static_cast<long long>(first)); }
    static Reg sigma(Reg x) { return _mm_xor_si128(_mm_unpackhi_epi64(x, x), _mm_slli_si128(x, 8)); }
    static Reg tweak_same(uint64_t low, uint64_t high) {
        return _mm_set_epi64x(static_cast<long long>(high), static_cast<long long>(low));
    }
};

template <int kRcon>
inline __m128i next_round_key(__m128i k) {
    const __m128i g = _mm_shuffle_epi32(_mm_aeskeygenassist_si128(k, kRcon), 0xff);
    k = _mm_xor_si128(k, _mm_slli_si128(k, 4));
    k = _mm_xor_si128(k, _mm_slli_si128(k, 8));
    return _mm_xor_si128(k, g);
}

inline void expand(const uint8_t* key, __m128i* out) {
    out[0] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(key));
    out[1] = next_round_key<0x01>(out[0]);
    out[2] = next_round_key<0x02>(out[1]);
    out[3] = next_round_key<0x04>(out[2]);
    out[4] = next_round_key<0x08>(out[3]);
    out[5] = next_round_key<0x10>(out[4]);
    out[6] = next_round_key<0x20>(out[5]);
    out[7] = next_round_key<0x40>(out[6]);
    out[8] = next_round_key<0x80>(out[7]);
    out[9] = next_round_key<0x1b>(out[8]);
    out[10] = next_round_key<0x36>(out[9]);
}

// kWidth independent states under one key: enough to hide the latency of a round.
template <class V, size_t kWidth>
inline void encrypt(const __m128i* keys, typename V::Reg (&state)[kWidth]) {
    typename V::Reg k = V::all(keys);
    for (size_t w = 0; w < kWidth; ++w) state[w] = V::exclusive_or(state[w], k);
    for (int r = 1; r < 10; ++r) {
        k = V::all(keys + r);
        for (size_t w = 0; w < kWidth; ++w) state[w] = V::round(state[w], k);
    }
    k = V::all(keys + 10);
    for (size_t w = 0; w < kWidth; ++w) state[w] = V::last(state[w], k);
}

template <class V>
void ctr_vector(const uint8_t* keys, size_t count, uint64_t first, size_t blocks, uint8_t* out) {
    constexpr size_t kWidth = 8, kStep = kWidth * V::kLanes;
    __m128i round_keys[11];
    for (size_t i = 0; i < count; ++i) {
        expand(keys + 16 * i, round_keys);
        size_t j = 0;
        uint8_t* row = out + 16 * i * blocks;
        for (; j + kStep <= blocks; j += kStep) {
            typename V::Reg state[kWidth];
            for (size_t w = 0; w < kWidth; ++w) state[w] = V::counter(first + j + w * V::kLanes);
            encrypt<V>(round_keys, state);
            for (size_t w = 0; w < kWidth; ++w) V::store(row + 16 * (j + w * V::kLanes), state[w]);
        }
        for (; j < blocks; ++j) {
            __m128i state[1] = {One::counter(first + j)};
            encrypt<One>(round_keys, state);
            One::store(row + 16 * j, state[0]);
        }
    }
}

template <class V>
void fold_vector(const uint8_t* leaves, uint64_t first, size_t blocks, uint8_t* sum, uint8_t* weighted, size_t stride) {
    using Reg = typename V::Reg;
    constexpr size_t kWidth = 2, kStep = kWidth * V::kLanes, kGroup = 4;
    std::vector<uint8_t> storage(kLeaves * 11 * 16 + 64);
    auto* keys = reinterpret_cast<__m128i*>((reinterpret_cast<uintptr_t>(storage.data()) + 63) & ~uintptr_t{63});
    for (size_t x = 0; x < kLeaves; ++x) expand(leaves + 16 * x, keys + 11 * x);
    for (size_t b = 0; b < blocks; b += kStep) {
        Reg counter[kWidth], total[kWidth], bit[kTreeDepth][kWidth];
        for (size_t w = 0; w < kWidth; ++w) {
            counter[w] = V::counter(first + b + w * V::kLanes);
            total[w] = V::zero();
            for (size_t j = 0; j < kTreeDepth; ++j) bit[j][w] = V::zero();
        }
        for (size_t x = 0; x < kLeaves; x += kGroup) {
            const __m128i* k = keys + 11 * x;
            Reg s[kGroup][kWidth];
            for (size_t l = 0; l < kGroup; ++l)
                for (size_t w = 0; w < kWidth; ++w) s[l][w] = V::exclusive_or(counter[w], V::all(k + 11 * l));
#pragma GCC unroll 9
            for (int r = 1; r < 10; ++r)
                for (size_t l = 0; l < kGroup; ++l)
                    for (size_t w = 0; w < kWidth; ++w) s[l][w] = V::round(s[l][w], V::all(k + 11 * l + r));
            for (size_t l = 0; l < kGroup; ++l)
                for (size_t w = 0; w < kWidth; ++w) s[l][w] = V::last(s[l][w], V::all(k + 11 * l + 10));
            Reg four[kWidth];
            for (size_t w = 0; w < kWidth; ++w) {
                const Reg upper = V::exclusive_or(s[2][w], s[3][w]);
                bit[0][w] = V::exclusive_or(bit[0][w], V::exclusive_or(s[1][w], s[3][w]));
                bit[1][w] = V::exclusive_or(bit[1][w], upper);
                four[w] = V::exclusive_or(V::exclusive_or(s[0][w], s[1][w]), upper);
                total[w] = V::exclusive_or(total[w], four[w]);
            }
#pragma GCC unroll 6
            for (size_t j = 2; j < kTreeDepth; ++j)
                if (x >> j & 1)
                    for (size_t w = 0; w < kWidth; ++w) bit[j][w] = V::exclusive_or(bit[j][w], four[w]);
        }
        for (size_t w = 0; w < kWidth; ++w) {
            const size_t at = 16 * (b + w * V::kLanes);
            V::store(sum + at, total[w]);
            for (size_t j = 0; j < kTreeDepth; ++j) V::store(weighted + j * stride + at, bit[j][w]);
        }
    }
    std::memset(storage.data(), 0, storage.size());
}

// Items are (row, entry) pairs in order; V::kLanes consecutive items make a register, kWidth registers a step.
template <class V>
void hash_vector(const AesKey& key, const uint64_t* rows, size_t n, const uint64_t* offsets, size_t entries,
                 uint64_t first, size_t words, uint64_t* out) {
    using Reg = typename V::Reg;
    constexpr size_t kWidth = 8, kStep = kWidth * V::kLanes;
    const auto* keys = reinterpret_cast<const __m128i*>(key.round);
    const size_t items = n * entries;
    size_t item = 0;
    for (; item + kStep <= items; item += kStep) {
        Reg sigma[kWidth], tweak[kWidth], state[kWidth];
        size_t row = item / entries, entry = item % entries;
        for (size_t w = 0; w < kWidth; ++w) {
            V::operands(rows, row, offsets, entry, entries, first, sigma[w], tweak[w]);
            entry += V::kLanes;
            while (entry >= entries) {
                entry -= entries;
                ++row;
            }
        }
        for (size_t word = 0; word < words; word += 2) {
            const Reg number = V::tweak_same(0, word / 2);
            for (size_t w = 0; w < kWidth; ++w)
                state[w] = V::exclusive_or(sigma[w], V::exclusive_or(tweak[w], number));
            encrypt<V>(keys, state);
            for (size_t w = 0; w < kWidth; ++w) {
                const Reg result = V::exclusive_or(state[w], sigma[w]);
                V::scatter(out + (item + w * V::kLanes) * words + word, words, words - word > 1, result);
            }
        }
    }
    for (; item < items; ++item) {
        const size_t row = item / entries, entry = item % entries;
        const __m128i x = _mm_xor_si128(One::load(rows + 2 * row), One::load(offsets + 2 * entry));
        const __m128i sigma = One::sigma(x);
        for (size_t word = 0; word < words; word += 2) {
            __m128i state[1] = {_mm_xor_si128(sigma, One::tweak_same(first + row, word / 2))};
            encrypt<One>(keys, state);
            const __m128i result = _mm_xor_si128(state[0], sigma);
            uint64_t* at = out + item * words + word;
            if (words - word > 1)
                One::store(at, result);
            else
                *at = static_cast<uint64_t>(_mm_cvtsi128_si64(result));
        }
    }
}

}  // namespace
