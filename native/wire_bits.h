// Values of a few bits as they travel, and what the kernels of the protocols on shares have in common.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <bit>
#include <cstring>
#include <optional>
#include <stdexcept>

#include "ring_arith.h"

namespace nb = nanobind;

using In = nb::ndarray<const u64, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<u64, nb::c_contig, nb::device::cpu>;
using BitsIn = nb::ndarray<const std::uint8_t, nb::c_contig, nb::device::cpu>;
using BitsOut = nb::ndarray<std::uint8_t, nb::c_contig, nb::device::cpu>;

inline void require(bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(what);
}

inline std::size_t packed_size(std::size_t count, unsigned width) { return (count * width + 7) / 8; }

// Without the interpreter's lock while there is much to do. For a few hundred elements getting it back can take longer than
// the work, when other sessions' threads wait for it too.
class [[gnu::visibility("hidden")]] Unlocked {
  public:
    explicit Unlocked(std::size_t elements) {
        if (elements >= 2048) release_.emplace();
    }

  private:
    std::optional<nb::gil_scoped_release> release_;
};

inline u64 little_endian(u64 v) {
    if constexpr (std::endian::native == std::endian::big) return __builtin_bswap64(v);
    return v;
}

inline u64 flag(bool b) { return u64{0} - static_cast<u64>(b); }

inline unsigned width_of(u64 modulus) { return static_cast<unsigned>(std::bit_width(modulus - 1)); }

inline Modulus modulus_of(u64 m) {
    require(m > 1 && m <= u64{1} << 56, "a modulus must be 2 to 2^56");
    return Modulus(m);
}

// Eight values of Width bits to Width bytes. All shifts are constants, and no step waits for the one before.
template <unsigned Width>
ALWAYS_INLINE void pack_eight(const u64* v, std::uint8_t* out) {
    u64 words[Width / 8 + 1] = {};
#pragma GCC unroll 8
    for (unsigned i = 0; i < 8; ++i) {
        const unsigned word = i * Width / 64, shift = i * Width % 64;
        words[word] |= v[i] << shift;
        if (shift + Width > 64) words[word + 1] |= v[i] >> (64 - shift);
    }
    for (u64& word : words) word = little_endian(word);
    std::memcpy(out, words, Width);
}

// Values of `width` bits, at most 56, one after the other, eight at a time.
class Writer {
  public:
    Writer(std::uint8_t* at, unsigned width) : at_(at), width_(width) {}
    void put(u64 v) {
        held_[count_++] = v;
        if (count_ == 8) {
            if (width_ == 43) {
                pack_eight<43>(held_, at_);
                at_ += 43;
                count_ = 0;
            } else {
                finish();
            }
        }
    }
    // Writes what is held; only after a multiple of eight values may others follow.
    void finish() {
        u64 word = 0;
        unsigned used = 0;
        for (unsigned i = 0; i < count_; ++i) {
            word |= held_[i] << used;
            for (used += width_; used >= 8; used -= 8, word >>= 8) *at_++ = static_cast<std::uint8_t>(word);
        }
        if (used) *at_++ = static_cast<std::uint8_t>(word);
        count_ = 0;
    }

  private:
    std::uint8_t* at_;
    u64 held_[8];
    unsigned count_ = 0, width_;
};

// The other party's message; `intact` after the last value says whether all of it was well formed.
class Reader {
  public:
    Reader(const std::uint8_t* from, std::size_t count, u64 modulus)
        : from_(from), size_(packed_size(count, width_of(modulus))), modulus_(modulus), width_(width_of(modulus)) {}
    u64 take() {
        const std::size_t first = at_ / 8;
        const unsigned shift = at_ % 8;
        const std::size_t left = size_ - first;
        u64 low = 0;
        std::memcpy(&low, from_ + first, left < 8 ? left : 8);
        u64 v = little_endian(low) >> shift;
        if (shift + width_ > 64) v |= u64{from_[first + 8]} << (64 - shift);
        v &= (u64{1} << width_) - 1;
        at_ += width_;
        worst_ = std::max(worst_, v);
        return v;
    }
    bool intact() const {
        return worst_ < modulus_ && (at_ % 8 == 0 || from_[at_ / 8] >> (at_ % 8) == 0);
    }

  private:
    const std::uint8_t* from_;
    std::size_t size_, at_ = 0;
    u64 worst_ = 0, modulus_;
    unsigned width_;
};
