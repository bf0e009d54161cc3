// Tables under one-time pads: the loops of the look-up protocols (spline and region tables) that touch 2^m entries per
// element. The sender rotates each table by the receiver's public correction, subtracts its own output masks, puts the
// random OT's pads on top and packs the bits; the receiver opens the one entry it has the pad for.
//
// No branch depends on a value. The server reads its table at addresses that are its own uniform share.
#include <algorithm>

#include "module.h"
#include "wire_bits.h"

template <int D>
using Fixed = nb::ndarray<const u64, nb::ndim<D>, nb::c_contig, nb::device::cpu>;
using BytesIn = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using BytesOut = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Out1 = nb::ndarray<u64, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Out2 = nb::ndarray<u64, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

namespace {

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

}  // namespace

// The entries of an element stand side by side in `rolled` (u, 2^m, columns), at row start mod u.
static void mask_tables(Fixed<3> rolled, Fixed<1> start, Fixed<1> rotation, Fixed<2> masks, u64 modulus, Fixed<3> pads,
                        int width, BytesOut out) {
    const std::size_t u = rolled.shape(0), n = start.shape(0), entries = pads.shape(1);
    const int columns = static_cast<int>(rolled.shape(2)), words = static_cast<int>(pads.shape(2));
    require(width >= 1 && width <= 56, "mask_tables: width must be 1 to 56");
    require(std::has_single_bit(u) && std::has_single_bit(entries), "mask_tables: sizes must be powers of two");
    require(rotation.shape(0) == n && masks.shape(0) == n && pads.shape(0) == n, "mask_tables: lengths differ");
    require(rolled.shape(1) == entries && static_cast<int>(masks.shape(1)) == columns && words * 64 >= columns * width,
            "mask_tables: masks or pads do not fit the table");
    require(out.shape(0) == packed_size(n * entries * columns, width), "mask_tables: the output has another size");
    const int shift = std::countr_zero(u);
    nb::gil_scoped_release release;
    Writer writer(out.data(), width);
    const u64* pad = pads.data();
    for (std::size_t e = 0; e < n; ++e) {
        const u64 a = start.data()[e], first = (a >> shift) + rotation.data()[e];
        const u64 *mask = masks.data() + e * columns, *table = rolled.data() + (a & (u - 1)) * entries * columns;
        for (std::size_t j = 0; j < entries; ++j, pad += words) {
            const u64* row = table + ((first + j) & (entries - 1)) * columns;
            for (int c = 0; c < columns; ++c) {
                const u64 d = row[c] - mask[c];  // wraps to a huge number when negative; then the lifted one is smaller
                writer.put(std::min(d, d + modulus) ^ pad_bits(pad, c * width, width));
            }
        }
    }
    writer.finish();
}

// Eight values of two bits in the bytes of a word, to its lowest 16 bits.
static u64 squeeze_pairs(u64 v) {
    v = (v | v >> 6) & 0x000f000f000f000f;
    v = (v | v >> 12) & 0x000000ff000000ff;
    return (v | v >> 24) & 0xffff;
}

// The entries of an element lie in a row of `rolled` from some place on: a row has those of all segments of a share, in
// order and twice. The lower `phase_bits` of the share choose the row, the others the place, which the rotation moves.
static void mask_regions(BytesIn rolled, Fixed<1> start, int phase_bits, Fixed<1> rotation, BytesIn masks,
                         Fixed<2> pads, int width, BytesOut out) {
    const std::size_t n = start.shape(0), entries = pads.shape(1), phases = std::size_t{1} << phase_bits;
    require(width >= 1 && width <= 8 && phase_bits >= 0 && phase_bits < 32, "mask_regions: bits out of range");
    require(std::has_single_bit(entries), "mask_regions: the entries must be a power of two");
    require(rolled.shape(0) == 2 * entries * phases, "mask_regions: the table has another size");
    require(rotation.shape(0) == n && masks.shape(0) == n && pads.shape(0) == n, "mask_regions: lengths differ");
    require(out.shape(0) == packed_size(n * entries, width), "mask_regions: the output has another size");
    nb::gil_scoped_release release;
    const u64* pad = pads.data();
    const u64 keep = (u64{1} << width) - 1;
    const bool pairs = width == 2 && entries % 8 == 0;
    Writer writer(out.data(), width);
    std::uint8_t* at = out.data();
    for (std::size_t e = 0; e < n; ++e) {
        const u64 a = start.data()[e], mask = masks.data()[e];
        const std::size_t place = ((a >> phase_bits) + rotation.data()[e]) & (entries - 1);
        const std::uint8_t* row = rolled.data() + (a & (phases - 1)) * 2 * entries + place;
        if (!pairs) {
            for (std::size_t j = 0; j < entries; ++j, ++pad) writer.put((row[j] ^ mask ^ *pad) & keep);
            continue;
        }
        for (std::size_t j = 0; j < entries; j += 8, pad += 8, at += 2) {
            u64 v, under = 0;
            std::memcpy(&v, row + j, 8);
            for (int i = 0; i < 8; ++i) under |= (pad[i] & 3) << (2 * i);
            v = squeeze_pairs((little_endian(v) ^ mask * 0x0101010101010101) & 0x0303030303030303) ^ under;
            at[0] = static_cast<std::uint8_t>(v);
            at[1] = static_cast<std::uint8_t>(v >> 8);
        }
    }
    writer.finish();
}

static void open_entries(BytesIn stream, Fixed<1> index, u64 entries, Fixed<2> pads, int width, Out2 out) {
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

namespace {

// The client's choice in a 1-of-2^m transfer: its segment minus the random index, packed, and what is left of y below the
// segment. False if a segment does not fit its bits.
bool choose(In y, int segment_bits, int remainder_bits, In index, Out remainder, BitsOut packed) {
    const std::size_t n = y.size();
    require(segment_bits > 0 && remainder_bits >= 0 && segment_bits + remainder_bits < 56, "choose: bits out of range");
    require(index.size() == n && remainder.size() == n && packed.size() == packed_size(n, segment_bits),
            "choose: sizes differ");
    const u64 keep = (u64{1} << remainder_bits) - 1, segments = u64{1} << segment_bits;
    u64 largest = 0;
    const Unlocked unlocked(n);
    Writer writer(packed.data(), segment_bits);
    for (std::size_t i = 0; i < n; ++i) {
        const u64 v = y.data()[i], segment = v >> remainder_bits;
        largest = std::max(largest, segment);
        remainder.data()[i] = v & keep;
        writer.put((segment - index.data()[i]) & (segments - 1));
    }
    writer.finish();
    return largest < segments;
}

// basis[l, remainder] - factors[., l] for all elements, then for the next l.
void basis_open(In basis, In remainder, In factors, u64 modulus, BitsOut packed) {
    const std::size_t n = remainder.size(), products = n ? factors.size() / n : 0, u = products ? basis.size() / products : 0;
    const Modulus m = modulus_of(modulus);
    require(factors.size() == n * products && packed.size() == packed_size(n * products, width_of(modulus)),
            "basis_open: sizes differ");
    require(u == 0 || std::has_single_bit(u), "basis_open: the basis must have a power of two of columns");
    const Unlocked unlocked(n);
    Writer writer(packed.data(), width_of(modulus));
    for (std::size_t l = 0; l < products; ++l)
        for (std::size_t i = 0; i < n; ++i)
            writer.put(m.sub(basis.data()[l * u + (remainder.data()[i] & (u - 1))], factors.data()[i * products + l]));
    writer.finish();
}

// The client's share of a spline from its opened entries (n, terms): [the first] + sum of entry·basis + the prepared product.
// False if an entry is no residue.
bool spline_share(In entries, In basis, In remainder, In cross, u64 modulus, bool constant, Out out) {
    const std::size_t n = out.size(), terms = n ? entries.size() / n : 0, first = constant ? 1 : 0;
    const std::size_t products = terms - (terms ? first : 0), u = products ? basis.size() / products : 0;
    const Modulus m = modulus_of(modulus);
    require(entries.size() == n * terms && (n == 0 || terms >= first) && remainder.size() == n && cross.size() == n,
            "spline_share: sizes differ");
    require(u == 0 || std::has_single_bit(u), "spline_share: the basis must have a power of two of columns");
    require(modulus <= u64{1} << 56 && terms < 256, "spline_share: the sum could overflow");
    u64 worst = 0;
    const Unlocked unlocked(n);
    for (std::size_t i = 0; i < n; ++i) {
        const u64* mine = entries.data() + i * terms;
        u128 sum = cross.data()[i];
        if (constant) sum += mine[0];
        for (std::size_t t = 0; t < terms; ++t) worst = std::max(worst, mine[t]);
        for (std::size_t l = 0; l < products; ++l)
            sum += u128{mine[first + l]} * basis.data()[l * u + (remainder.data()[i] & (u - 1))];
        out.data()[i] = m.reduce128(sum);
    }
    return n == 0 || worst < modulus;
}

// The server's: sum of the client's corrections (products, n), packed, times its masks (n, terms), but for the first of
// these if `constant`, which is added; and the prepared product.
bool spline_masked_share(BitsIn corrections, In masks, In cross, u64 modulus, bool constant, Out out) {
    const std::size_t n = out.size(), terms = n ? masks.size() / n : 0, first = constant ? 1 : 0;
    const std::size_t products = terms - (terms ? first : 0);
    const Modulus m = modulus_of(modulus);
    require(masks.size() == n * terms && (n == 0 || terms >= first) && cross.size() == n &&
                corrections.size() == packed_size(n * products, width_of(modulus)),
            "spline_masked_share: sizes differ");
    const Unlocked unlocked(n);
    Reader reader(corrections.data(), n * products, modulus);
    for (std::size_t i = 0; i < n; ++i)
        out.data()[i] = constant ? m.add(cross.data()[i], masks.data()[i * terms]) : cross.data()[i];
    for (std::size_t l = 0; l < products; ++l)
        for (std::size_t i = 0; i < n; ++i)
            out.data()[i] = m.reduce128(u128{reader.take()} * masks.data()[i * terms + first + l] + out.data()[i]);
    return reader.intact();
}

}  // namespace

void register_mpc(nb::module_& m) {
    m.def("mask_tables", &mask_tables, nb::arg("rolled"), nb::arg("start"), nb::arg("rotation"),
          nb::arg("masks"), nb::arg("modulus"), nb::arg("pads"), nb::arg("width"), nb::arg("out"),
          "Entry j of element e: (rolled[start mod u, start/u + j + rotation mod 2^m] - masks mod modulus) XOR pads[j], packed.");
    m.def("mask_regions", &mask_regions, nb::arg("rolled"), nb::arg("start"), nb::arg("phase_bits"), nb::arg("rotation"),
          nb::arg("masks"), nb::arg("pads"), nb::arg("width"), nb::arg("out"),
          "The same for a table of a few bits an entry, masked by XOR; the table once for every phase of a segment, twice.");
    m.def("open_entries", &open_entries, nb::arg("stream"), nb::arg("index"), nb::arg("entries"), nb::arg("pads"),
          nb::arg("width"), nb::arg("out"), "The receiver's half of both: its entry of each element, unpadded.");
    m.def("choose", &choose, nb::arg("y"), nb::arg("segment_bits"), nb::arg("remainder_bits"), nb::arg("index"),
          nb::arg("remainder").noconvert(), nb::arg("packed").noconvert(),
          "y's segment minus the random index, packed, and the rest of y.");
    m.def("basis_open", &basis_open, nb::arg("basis"), nb::arg("remainder"), nb::arg("factors"), nb::arg("modulus"),
          nb::arg("packed").noconvert(), "basis[:, remainder] minus the transpose of factors mod modulus, packed.");
    m.def("spline_share", &spline_share, nb::arg("entries"), nb::arg("basis"), nb::arg("remainder"), nb::arg("cross"),
          nb::arg("modulus"), nb::arg("constant"), nb::arg("out").noconvert(),
          "The client's share of a spline from its entries.");
    m.def("spline_masked_share", &spline_masked_share, nb::arg("corrections"), nb::arg("masks"), nb::arg("cross"),
          nb::arg("modulus"), nb::arg("constant"), nb::arg("out").noconvert(),
          "The server's share of a spline from the client's corrections.");
}
