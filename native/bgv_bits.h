// Dense little-endian bit packing at widths known at compile time: 64 values become exactly `Width` words.
#pragma once

#include <cstring>

#include "ring_arith.h"

template <unsigned Width>
inline void pack_block(const u64* in, std::uint8_t* out) {
    u64 word = 0;
    unsigned fill = 0;
#pragma GCC unroll 64
    for (unsigned i = 0; i < 64; ++i) {
        word |= in[i] << fill;
        fill += Width;
        if (fill >= 64) {
            std::memcpy(out, &word, 8);
            out += 8, fill -= 64;
            word = fill ? in[i] >> (Width - fill) : 0;
        }
    }
}

template <unsigned Width>
inline void unpack_block(const std::uint8_t* in, u64* out) {
    constexpr u64 mask = (u64{1} << Width) - 1;
    u64 word = 0;
    unsigned held = 0;
#pragma GCC unroll 64
    for (unsigned i = 0; i < 64; ++i) {
        if (held < Width) {
            u64 next;
            std::memcpy(&next, in, 8);
            in += 8;
            out[i] = ((held ? word : 0) | (next << held)) & mask;
            word = Width - held < 64 ? next >> (Width - held) : 0;
            held += 64 - Width;
        } else {
            out[i] = word & mask;
            word >>= Width, held -= Width;
        }
    }
}

// n values of `width` bits (1 to 63) to n*width/8 bytes, n a multiple of 8; values must fit.
inline void pack_dense(const u64* in, std::size_t n, unsigned width, std::uint8_t* out) {
    std::size_t i = 0;
    const auto blocks = [&](auto block) {
        for (; i + 64 <= n; i += 64, out += 8 * width) block(in + i, out);
    };
    switch (width) {  // 24, 28: high parts of rounded halves; 48, 52: recipe F; 50: residues; 34, 38, 42: masks
        case 24: blocks(pack_block<24>); break;
        case 28: blocks(pack_block<28>); break;
        case 34: blocks(pack_block<34>); break;
        case 38: blocks(pack_block<38>); break;
        case 42: blocks(pack_block<42>); break;
        case 48: blocks(pack_block<48>); break;
        case 50: blocks(pack_block<50>); break;
        case 52: blocks(pack_block<52>); break;
    }
    u128 held = 0;
    unsigned fill = 0;
    for (; i < n; ++i) {
        held |= u128{in[i]} << fill;
        for (fill += width; fill >= 8; fill -= 8, held >>= 8) *out++ = static_cast<std::uint8_t>(held);
    }
}

inline void unpack_dense(const std::uint8_t* in, std::size_t n, unsigned width, u64* out) {
    std::size_t i = 0;
    const auto blocks = [&](auto block) {
        for (; i + 64 <= n; i += 64, in += 8 * width) block(in, out + i);
    };
    switch (width) {
        case 24: blocks(unpack_block<24>); break;
        case 28: blocks(unpack_block<28>); break;
        case 34: blocks(unpack_block<34>); break;
        case 38: blocks(unpack_block<38>); break;
        case 42: blocks(unpack_block<42>); break;
        case 48: blocks(unpack_block<48>); break;
        case 50: blocks(unpack_block<50>); break;
        case 52: blocks(unpack_block<52>); break;
    }
    u128 held = 0;
    unsigned fill = 0;
    for (; i < n; ++i) {
        for (; fill < width; fill += 8) held |= u128{*in++} << fill;
        out[i] = static_cast<u64>(held) & ((u64{1} << width) - 1);
        held >>= width, fill -= width;
    }
}
