// Dense little-endian bit packing: value i occupies bits [i*width, (i+1)*width) of the byte string.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstring>
#include <stdexcept>

#include "module.h"
#include "ring_arith.h"

namespace nb = nanobind;

namespace {

using Source = nb::ndarray<const u64, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<u64, nb::c_contig, nb::device::cpu>;
using ByteSource = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

u64 low_mask(unsigned width) { return width >= 64 ? ~u64{0} : (u64{1} << width) - 1; }

// Bits go in at the low end of a 128-bit word and leave from it 8 bytes at a time.
class BitWriter {
  public:
    explicit BitWriter(std::uint8_t* to) : to_(to) {}
    void put(u64 value, unsigned width) {
        held_ |= u128{value & low_mask(width)} << count_;
        count_ += width;
        if (count_ >= 64) flush_word();
    }
    void finish() {
        for (; count_ > 0; count_ = count_ > 8 ? count_ - 8 : 0, held_ >>= 8) *to_++ = static_cast<std::uint8_t>(held_);
    }

  private:
    void flush_word() {
        u64 word = static_cast<u64>(held_);
        for (int i = 0; i < 8; ++i) to_[i] = static_cast<std::uint8_t>(word >> (8 * i));
        to_ += 8;
        held_ >>= 64;
        count_ -= 64;
    }
    std::uint8_t* to_;
    u128 held_ = 0;
    unsigned count_ = 0;
};

class BitReader {
  public:
    BitReader(const std::uint8_t* from, const std::uint8_t* end) : from_(from), end_(end) {}
    u64 take(unsigned width) {
        while (count_ < width) {
            u64 word = 0;
            unsigned bytes = end_ - from_ >= 8 ? 8 : static_cast<unsigned>(end_ - from_);
            for (unsigned i = 0; i < bytes; ++i) word |= u64{from_[i]} << (8 * i);
            from_ += bytes;
            held_ |= u128{word} << count_;
            count_ += bytes ? 8 * bytes : 64;
        }
        const u64 value = static_cast<u64>(held_) & low_mask(width);
        held_ >>= width;
        count_ -= width;
        return value;
    }

  private:
    const std::uint8_t *from_, *end_;
    u128 held_ = 0;
    unsigned count_ = 0;
};

void check(std::size_t values, unsigned width, std::size_t bytes) {
    if (width < 1 || width > 64) throw std::invalid_argument("the width is out of range");
    if ((static_cast<u128>(values) * width + 7) / 8 != bytes) throw std::invalid_argument("the byte string has the wrong length");
}

void pack_bits(Source values, unsigned width, Bytes out) {
    check(values.size(), width, out.size());
    nb::gil_scoped_release release;
    BitWriter to(out.data());
    for (std::size_t i = 0; i < values.size(); ++i) to.put(values.data()[i], width);
    to.finish();
}

void unpack_bits(ByteSource data, unsigned width, Words out) {
    check(out.size(), width, data.size());
    nb::gil_scoped_release release;
    BitReader from(data.data(), data.data() + data.size());
    for (std::size_t i = 0; i < out.size(); ++i) out.data()[i] = from.take(width);
}

}  // namespace

void register_pack(nb::module_& m) {
    auto values = nb::arg("values").noconvert(), data = nb::arg("data").noconvert(), out = nb::arg("out").noconvert();
    auto width = nb::arg("width");
    m.def("pack_bits", &pack_bits, values, width, out, "The low `width` (1..64) bits of each word, densely, little-endian.");
    m.def("unpack_bits", &unpack_bits, data, width, out, "The inverse of pack_bits; the length must match exactly.");
}
