// Tables under one-time pads: the loops of the look-up protocols (spline and region tables) that touch 2^m entries per
// element. The sender rotates each table by the receiver's public correction, subtracts its own output masks, puts the
// random OT's pads on top and packs the bits; the receiver opens the one entry it has the pad for.
//
// No branch depends on a value. The server reads its table at addresses that are its own uniform share.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "module.h"

namespace nb = nanobind;
using u64 = std::uint64_t;

template <int D>
using In = nb::ndarray<const u64, nb::ndim<D>, nb::c_contig, nb::device::cpu>;
using BytesIn = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using BytesOut = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Out1 = nb::ndarray<u64, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Out2 = nb::ndarray<u64, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

namespace {

u64 little_endian(u64 v) {
    if constexpr (std::endian::native == std::endian::big) return __builtin_bswap64(v);
    return v;
}

// Appends values of a fixed width to a little-endian bit stream.
struct BitWriter {
    std::uint8_t* at;
    u64 held = 0;
    int used = 0;

    void put(u64 v, int width) {
        held |= v << used;
        used += width;
        if (used >= 64) {
            u64 word = little_endian(held);
            std::memcpy(at, &word, 8);
            at += 8;
            used -= 64;
            // width - used bits of v are out; a shift by 64 would be undefined, and then nothing is left over.
            held = used ? v >> (width - used) : 0;
        }
    }
    void finish() {
        u64 word = little_endian(held);
        std::memcpy(at, &word, (used + 7) / 8);
    }
};

// Bits [from, from + width) of a stream of `size` bytes; width <= 64.
u64 read_bits(const std::uint8_t* stream, std::size_t size, std::size_t from, int width) {
    std::size_t first = from / 8, last = (from + width + 7) / 8;
    int shift = static_cast<int>(from % 8);
    u64 low = 0;
    std::memcpy(&low, stream + first, last - first < 8 ? last - first : 8);
    u64 v = little_endian(low) >> shift;
    if (last - first > 8 && first + 8 < size) v |= static_cast<u64>(stream[first + 8]) << (64 - shift);
    return width < 64 ? v & ((u64{1} << width) - 1) : v;
}

// Bits [from, from + width) of one entry's pad, an array of 64-bit words.
u64 pad_bits(const u64* pad, int from, int width) {
    int word = from / 64, shift = from % 64;
    u64 v = pad[word] >> shift;
    if (shift + width > 64) v |= pad[word + 1] << (64 - shift);
    return width < 64 ? v & ((u64{1} << width) - 1) : v;
}

void require(bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(what);
}

std::size_t packed_size(std::size_t values, int width) { return (values * width + 7) / 8; }

void write_tables(BitWriter& writer, const u64* table, std::size_t length, int columns, const u64* start, u64 step,
                  const u64* rotation, const u64* masks, u64 modulus, const u64* pads, int words, int width,
                  std::size_t n, std::size_t entries) {
    for (std::size_t e = 0; e < n; ++e) {
        const u64* mask = masks + e * columns;
        for (std::size_t j = 0; j < entries; ++j, pads += words) {
            u64 segment = (j + rotation[e]) & (entries - 1);
            const u64* row = table + ((start[e] + segment * step) & (length - 1)) * columns;
            for (int c = 0; c < columns; ++c) {
                u64 d = row[c] - mask[c];  // wraps to a huge number when negative; then the lifted one is smaller
                writer.put(std::min(d, d + modulus) ^ pad_bits(pads, c * width, width), width);
            }
        }
    }
}

}  // namespace

static void mask_tables(In<2> table, In<1> start, u64 step, In<1> rotation, In<2> masks, u64 modulus, In<3> pads,
                        int width, BytesOut out) {
    std::size_t length = table.shape(0), n = start.shape(0), entries = pads.shape(1);
    int columns = static_cast<int>(table.shape(1)), words = static_cast<int>(pads.shape(2));
    require(width >= 1 && width <= 63, "mask_tables: width must be 1 to 63");
    require(std::has_single_bit(length) && std::has_single_bit(entries), "mask_tables: sizes must be powers of two");
    require(rotation.shape(0) == n && masks.shape(0) == n && pads.shape(0) == n, "mask_tables: lengths differ");
    require(static_cast<int>(masks.shape(1)) == columns && words * 64 >= columns * width,
            "mask_tables: masks or pads do not fit the table");
    require(out.shape(0) == packed_size(n * entries * columns, width), "mask_tables: the output has another size");
    nb::gil_scoped_release release;
    BitWriter writer{out.data()};
    write_tables(writer, table.data(), length, columns, start.data(), step, rotation.data(), masks.data(), modulus,
                 pads.data(), words, width, n, entries);
    writer.finish();
}

static void mask_regions(BytesIn table, In<1> start, u64 step, In<1> rotation, BytesIn masks, In<2> pads, int width,
                         BytesOut out) {
    std::size_t length = table.shape(0), n = start.shape(0), entries = pads.shape(1);
    require(width >= 1 && width <= 8, "mask_regions: width must be 1 to 8");
    require(std::has_single_bit(length) && std::has_single_bit(entries), "mask_regions: sizes must be powers of two");
    require(rotation.shape(0) == n && masks.shape(0) == n && pads.shape(0) == n, "mask_regions: lengths differ");
    require(out.shape(0) == packed_size(n * entries, width), "mask_regions: the output has another size");
    nb::gil_scoped_release release;
    BitWriter writer{out.data()};
    const u64* pad = pads.data();
    const u64 keep = (u64{1} << width) - 1;
    for (std::size_t e = 0; e < n; ++e) {
        u64 a = start.data()[e], turn = rotation.data()[e], mask = masks.data()[e];
        for (std::size_t j = 0; j < entries; ++j, ++pad) {
            u64 segment = (j + turn) & (entries - 1);
            writer.put((table.data()[(a + segment * step) & (length - 1)] ^ mask ^ *pad) & keep, width);
        }
    }
    writer.finish();
}

static void open_entries(BytesIn stream, In<1> index, u64 entries, In<2> pads, int width, Out2 out) {
    std::size_t n = index.shape(0), columns = out.shape(1), words = pads.shape(1);
    require(width >= 1 && width <= 64, "open_entries: width must be 1 to 64");
    require(pads.shape(0) == n && out.shape(0) == n && words * 64 >= columns * width, "open_entries: shapes differ");
    require(stream.shape(0) == packed_size(n * entries * columns, width), "open_entries: the stream has another size");
    nb::gil_scoped_release release;
    for (std::size_t e = 0; e < n; ++e) {
        std::size_t at = (e * entries + (index.data()[e] & (entries - 1))) * columns * width;
        for (std::size_t c = 0; c < columns; ++c)
            out.data()[e * columns + c] = read_bits(stream.data(), stream.shape(0), at + c * width, width) ^
                                          pad_bits(pads.data() + e * words, static_cast<int>(c) * width, width);
    }
}

// This party's share of x / 2^shift mod `modulus`: the quotient of its share of x (residues of `source`), plus the one of
// three constants that its known bits select, plus or minus the prepared product (protocols/wrap.py derives it).
static void wrap_shares(In<1> x, u64 source, BytesIn known, BytesIn flip, In<1> product, In<1> constants, int shift,
                        bool ceiling, u64 modulus, Out1 out) {
    std::size_t n = x.shape(0);
    require(known.shape(0) == n && flip.shape(0) == n && product.shape(0) == n && out.shape(0) == n,
            "wrap_shares: lengths differ");
    require(constants.shape(0) == 4 && shift >= 0 && shift < 63 && modulus > 1 && modulus <= u64{1} << 62,
            "wrap_shares: constants, shift or modulus out of range");
    const u64 round = ceiling ? (u64{1} << shift) - 1 : 0;
    const bool ring = std::has_single_bit(modulus), reduce = !ring && (source >> shift) + 1 > modulus;
    nb::gil_scoped_release release;
    for (std::size_t i = 0; i < n; ++i) {
        u64 own = (x.data()[i] + round) >> shift;
        if (reduce) own %= modulus;
        u64 sign = ~u64{0} * (flip.data()[i] & 1);  // all ones: minus the product, as modulus - product
        u64 rest = constants.data()[known.data()[i] & 3] + ((product.data()[i] ^ sign) + ((modulus + 1) & sign));
        if (ring) {
            out.data()[i] = (own + rest) & (modulus - 1);
        } else {
            rest = std::min(rest, rest - modulus);
            u64 sum = own + rest;
            out.data()[i] = std::min(sum, sum - modulus);
        }
    }
}

void register_mpc(nb::module_& m) {
    m.def("mask_tables", &mask_tables, nb::arg("table"), nb::arg("start"), nb::arg("step"), nb::arg("rotation"),
          nb::arg("masks"), nb::arg("modulus"), nb::arg("pads"), nb::arg("width"), nb::arg("out"),
          "Entry j of element e: (table[start + ((j + rotation) mod 2^m)*step] - masks mod modulus) XOR pads[j], packed.");
    m.def("mask_regions", &mask_regions, nb::arg("table"), nb::arg("start"), nb::arg("step"), nb::arg("rotation"),
          nb::arg("masks"), nb::arg("pads"), nb::arg("width"), nb::arg("out"),
          "The same for a table of a few bits an entry, masked by XOR.");
    m.def("wrap_shares", &wrap_shares, nb::arg("x"), nb::arg("source"), nb::arg("known"), nb::arg("flip"),
          nb::arg("product"), nb::arg("constants"), nb::arg("shift"), nb::arg("ceiling"), nb::arg("modulus"),
          nb::arg("out"), "A party's share of x / 2^shift mod modulus once the wrap's bits are open.");
    m.def("open_entries", &open_entries, nb::arg("stream"), nb::arg("index"), nb::arg("entries"), nb::arg("pads"),
          nb::arg("width"), nb::arg("out"), "The receiver's half of both: its entry of each element, unpadded.");
}
