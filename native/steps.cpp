// What a party computes around an opening: before it, its masked share, packed as it travels; after it, its share of the
// result, from the other party's packed share. One pass over the elements each, where NumPy takes ten.
//
// Messages are as in pack.cpp: dense bits, little endian. A function that reads one returns false if the message holds
// padding that is not zero or a number that is no residue; its output is then worthless. No branch depends on a value that
// is secret: what is compared and tested is what travelled.
#include "wire_bits.h"

#include <algorithm>

#include "module.h"

namespace {

void pack(const std::uint8_t* bits, std::size_t n, std::uint8_t* out) {
    for (std::size_t i = 0; i < n; i += 8, ++out) {
        unsigned byte = 0;
        for (std::size_t j = 0; j < 8 && i + j < n; ++j) byte |= unsigned{bits[i + j]} << j;
        *out = static_cast<std::uint8_t>(byte);
    }
}

u64 bit(const std::uint8_t* packed, std::size_t i) { return packed[i / 8] >> (i % 8) & 1; }

bool clean(const std::uint8_t* packed, std::size_t n) { return n % 8 == 0 || packed[n / 8] >> (n % 8) == 0; }

// x + offset modulo p, whether it is in the lower half, under the mask.
void wrap_open(In x, u64 p, u64 offset, BitsIn beta, Out shifted, BitsOut mine, BitsOut packed) {
    const std::size_t n = x.size();
    require(beta.size() == n && shifted.size() == n && mine.size() == n && packed.size() == packed_size(n, 1),
            "wrap_open: sizes differ");
    require(p > 1 && p <= u64{1} << 60 && offset < p, "wrap_open: modulus or offset out of range");
    const u64 half = (p + 1) / 2;
    const Unlocked unlocked(n);
    for (std::size_t i = 0; i < n; ++i) {
        const u64 v = cond_sub(x.data()[i] + offset, p);
        shifted.data()[i] = v;
        mine.data()[i] = static_cast<std::uint8_t>((v - half) >> 63 ^ beta.data()[i]);
    }
    pack(mine.data(), n, packed.data());
}

// This party's share of x / 2^shift mod `modulus`: the quotient of its share of x (residues of `source`), plus the one of
// three constants that its known bits select, plus or minus the prepared product (protocols/wrap.py derives it).
bool wrap_share(In x, u64 source, BitsIn mine, BitsIn theirs, In product, In constants, int shift, bool is_client,
                 u64 modulus, Out out) {
    const std::size_t n = x.size();
    require(mine.size() == n && theirs.size() == packed_size(n, 1) && product.size() == n && out.size() == n,
            "wrap_share: sizes differ");
    require(constants.size() == 4 && shift >= 0 && shift < 60 && modulus > 1 && modulus <= u64{1} << 60 && source > 1 &&
                source <= u64{1} << 60,
            "wrap_share: constants, shift or modulus out of range");
    const u64 round = is_client ? 0 : (u64{1} << shift) - 1, half = (source + 1) / 2, server = is_client ? 0 : 1;
    const bool ring = std::has_single_bit(modulus), reduce = !ring && (source >> shift) + 1 > modulus;
    const Modulus target(modulus);
    const Unlocked unlocked(n);
    for (std::size_t i = 0; i < n; ++i) {
        const u64 low = (x.data()[i] - half) >> 63, m = mine.data()[i], t = bit(theirs.data(), i);
        const u64 known = (low & t) + server * (1 - (t & m));
        u64 own = (x.data()[i] + round) >> shift;
        if (reduce) own = target.reduce64(own);
        const u64 sign = u64{0} - (m ^ t);  // all ones: minus the product, as modulus - product
        u64 rest = constants.data()[known] + ((product.data()[i] ^ sign) + ((modulus + 1) & sign));
        if (ring) {
            out.data()[i] = (own + rest) & (modulus - 1);
        } else {
            rest = std::min(rest, rest - modulus);
            const u64 sum = own + rest;
            out.data()[i] = std::min(sum, sum - modulus);
        }
    }
    return clean(theirs.data(), n);
}

void bits_open(BitsIn x, BitsIn mask, BitsOut mine, BitsOut packed) {
    const std::size_t n = x.size();
    require(mask.size() == n && mine.size() == n && packed.size() == packed_size(n, 1), "bits_open: sizes differ");
    const Unlocked unlocked(n);
    for (std::size_t i = 0; i < n; ++i) mine.data()[i] = x.data()[i] ^ mask.data()[i];
    pack(mine.data(), n, packed.data());
}

void and_open(BitsIn a, BitsIn b, BitsIn ta, BitsIn tb, BitsOut mine, BitsOut packed) {
    const std::size_t n = a.size();
    require(b.size() == n && ta.size() == n && tb.size() == n && mine.size() == 2 * n &&
                packed.size() == packed_size(2 * n, 1),
            "and_open: sizes differ");
    const Unlocked unlocked(n);
    for (std::size_t i = 0; i < n; ++i) {
        mine.data()[i] = a.data()[i] ^ ta.data()[i];
        mine.data()[n + i] = b.data()[i] ^ tb.data()[i];
    }
    pack(mine.data(), 2 * n, packed.data());
}

bool and_share(BitsIn mine, BitsIn theirs, BitsIn ta, BitsIn tb, BitsIn tc, bool is_client, BitsOut out) {
    const std::size_t n = ta.size();
    require(mine.size() == 2 * n && theirs.size() == packed_size(2 * n, 1) && tb.size() == n && tc.size() == n &&
                out.size() == n,
            "and_share: sizes differ");
    const u64 client = is_client;
    const Unlocked unlocked(n);
    for (std::size_t i = 0; i < n; ++i) {
        const u64 d = mine.data()[i] ^ bit(theirs.data(), i), e = mine.data()[n + i] ^ bit(theirs.data(), n + i);
        out.data()[i] = static_cast<std::uint8_t>(tc.data()[i] ^ (d & tb.data()[i]) ^ (e & ta.data()[i]) ^ (d & e & client));
    }
    return clean(theirs.data(), 2 * n);
}

// c + (1 - 2c)·value with the opened bit c; the first c is the client's.
bool bit_share(BitsIn mine, BitsIn theirs, In values, u64 modulus, bool is_client, Out out) {
    const std::size_t n = mine.size();
    require(theirs.size() == packed_size(n, 1) && values.size() == n && out.size() == n, "bit_share: sizes differ");
    const Modulus m = modulus_of(modulus);
    const u64 client = is_client;
    const Unlocked unlocked(n);
    for (std::size_t i = 0; i < n; ++i) {
        const u64 c = mine.data()[i] ^ bit(theirs.data(), i), sign = u64{0} - c, v = values.data()[i];
        out.data()[i] = m.add(c & client, m.add((v & ~sign) | (m.neg(v) & sign), 0));
    }
    return clean(theirs.data(), n);
}

// x - mask modulo `modulus`, and the same packed.
void residues_open(In x, In mask, u64 modulus, Out mine, BitsOut packed) {
    const std::size_t n = x.size();
    const Modulus m = modulus_of(modulus);
    require(mask.size() == n && mine.size() == n && packed.size() == packed_size(n, width_of(modulus)),
            "residues_open: sizes differ");
    const Unlocked unlocked(n);
    Writer writer(packed.data(), width_of(modulus));
    for (std::size_t i = 0; i < n; ++i) writer.put(mine.data()[i] = m.sub(x.data()[i], mask.data()[i]));
    writer.finish();
}

bool residues_opened(In mine, BitsIn theirs, u64 modulus, Out out) {
    const std::size_t n = mine.size();
    const Modulus m = modulus_of(modulus);
    require(theirs.size() == packed_size(n, width_of(modulus)) && out.size() == n, "residues_opened: sizes differ");
    const Unlocked unlocked(n);
    Reader reader(theirs.data(), n, modulus);
    for (std::size_t i = 0; i < n; ++i) out.data()[i] = m.add(mine.data()[i], reader.take());
    return reader.intact();
}

// bit · value: c·v + (1 - 2c)·(d·β + β·ν) with c and d opened; theirs: n bits, then n residues.
bool mux_share(In value, BitsIn my_bits, In my_values, BitsIn theirs, In arithmetic, In products, u64 modulus, Out out) {
    const std::size_t n = value.size(), bits = packed_size(n, 1);
    const Modulus m = modulus_of(modulus);
    require(my_bits.size() == n && my_values.size() == n && arithmetic.size() == n && products.size() == n &&
                out.size() == n && theirs.size() == bits + packed_size(n, width_of(modulus)),
            "mux_share: sizes differ");
    const Unlocked unlocked(n);
    Reader reader(theirs.data() + bits, n, modulus);
    for (std::size_t i = 0; i < n; ++i) {
        const u64 sign = u64{0} - (my_bits.data()[i] ^ bit(theirs.data(), i));
        const u64 d = m.add(my_values.data()[i], reader.take());
        const u64 inner = m.reduce128(u128{d} * arithmetic.data()[i] + products.data()[i]);
        out.data()[i] = m.add(value.data()[i] & sign, cond_sub((inner & ~sign) | ((m.q - inner) & sign), m.q));
    }
    return clean(theirs.data(), n) & reader.intact();
}

// x - a, then y - b.
void mul_open(In x, In y, In a, In b, u64 modulus, Out mine, BitsOut packed) {
    const std::size_t n = x.size();
    const Modulus m = modulus_of(modulus);
    require(y.size() == n && a.size() == n && b.size() == n && mine.size() == 2 * n &&
                packed.size() == packed_size(2 * n, width_of(modulus)),
            "mul_open: sizes differ");
    const Unlocked unlocked(n);
    Writer writer(packed.data(), width_of(modulus));
    for (std::size_t i = 0; i < n; ++i) writer.put(mine.data()[i] = m.sub(x.data()[i], a.data()[i]));
    for (std::size_t i = 0; i < n; ++i) writer.put(mine.data()[n + i] = m.sub(y.data()[i], b.data()[i]));
    writer.finish();
}

// c + d·b + e·a, and at the client d·e.
bool mul_share(In mine, BitsIn theirs, In a, In b, In c, u64 modulus, bool is_client, Out out) {
    const std::size_t n = a.size();
    const Modulus m = modulus_of(modulus);
    require(mine.size() == 2 * n && theirs.size() == packed_size(2 * n, width_of(modulus)) && b.size() == n &&
                c.size() == n && out.size() == n,
            "mul_share: sizes differ");
    const u64 client = flag(is_client);
    const Unlocked unlocked(n);
    Reader reader(theirs.data(), 2 * n, modulus);
    for (std::size_t i = 0; i < n; ++i) out.data()[i] = m.add(mine.data()[i], reader.take());
    for (std::size_t i = 0; i < n; ++i) {
        const u64 d = out.data()[i], e = m.add(mine.data()[n + i], reader.take());
        const u64 left = m.mul(d, m.add(b.data()[i], e & client));
        out.data()[i] = m.reduce128(u128{e} * a.data()[i] + left + c.data()[i]);
    }
    return reader.intact();
}

// Rows of v, opened as v - r, times one scalar each: (v - r)·s + r·(s - t) + r·t, with s - t opened.
bool scale_share(In opened, In vectors, In products, In scalars, In mine, BitsIn theirs, u64 modulus, Out out) {
    const std::size_t rows = scalars.size(), length = rows ? opened.size() / rows : 0;
    const Modulus m = modulus_of(modulus);
    require(opened.size() == rows * length && vectors.size() == opened.size() && products.size() == opened.size() &&
                out.size() == opened.size() && mine.size() == rows &&
                theirs.size() == packed_size(rows, width_of(modulus)),
            "scale_share: sizes differ");
    const Unlocked unlocked(out.size());
    Reader reader(theirs.data(), rows, modulus);
    for (std::size_t r = 0, i = 0; r < rows; ++r) {
        const u64 s = scalars.data()[r], masked = m.add(mine.data()[r], reader.take());
        for (const std::size_t end = i + length; i < end; ++i) {
            const u64 left = m.mul(opened.data()[i], s);
            out.data()[i] = m.reduce128(u128{vectors.data()[i]} * masked + left + products.data()[i]);
        }
    }
    return reader.intact();
}

// Sums of squares of rows opened as x - r: 2(x - r)·r + r² summed, twice the prepared product, at the client (x - r)².
bool squares_share(In mine, BitsIn theirs, In r, In products, u64 modulus, bool is_client, Out out) {
    const std::size_t rows = out.size(), length = rows ? mine.size() / rows : 0;
    const Modulus m = modulus_of(modulus);
    require(modulus <= u64{1} << 48 && length < std::size_t{1} << 24, "squares_share: the sum could overflow");
    require(mine.size() == rows * length && r.size() == mine.size() && products.size() == rows &&
                theirs.size() == packed_size(mine.size(), width_of(modulus)),
            "squares_share: sizes differ");
    const u64 client = flag(is_client);
    const Unlocked unlocked(mine.size());
    Reader reader(theirs.data(), mine.size(), modulus);
    for (std::size_t row = 0, i = 0; row < rows; ++row) {
        u128 sum = 2 * u128{products.data()[row]};
        for (const std::size_t end = i + length; i < end; ++i) {
            const u64 opened = m.add(mine.data()[i], reader.take()), own = r.data()[i];
            sum += u128{opened} * (2 * own + (opened & client)) + u128{own} * own;
        }
        out.data()[row] = m.reduce128(sum);
    }
    return reader.intact();
}

// (y mod 2^high) / 2^low, rounded up if `ceiling`, mod 2^(high - low).
void take_bits(In y, int low, int high, bool ceiling, Out out) {
    const std::size_t n = y.size();
    require(out.size() == n && low >= 0 && low < high && high < 63, "take_bits: sizes or bits out of range");
    const u64 keep = (u64{1} << high) - 1, mask = (u64{1} << (high - low)) - 1;
    const u64 round = ceiling ? (u64{1} << low) - 1 : 0;
    const Unlocked unlocked(n);
    for (std::size_t i = 0; i < n; ++i) out.data()[i] = ((y.data()[i] & keep) + round) >> low & mask;
}

// For each number h of `highs` the upper `bits` bits of y mod 2^h, as take_bits, or all of it in the upper ones of so many.
void take_windows(In y, In highs, int bits, bool ceiling, Out out) {
    const std::size_t n = y.size(), windows = highs.size();
    require(out.size() == n * windows && bits > 0 && bits < 62, "take_windows: sizes or bits out of range");
    for (std::size_t w = 0; w < windows; ++w) require(highs.data()[w] < 62, "take_windows: a window is out of range");
    const u64 mask = (u64{1} << bits) - 1, width = static_cast<u64>(bits);
    const Unlocked unlocked(n * windows);
    for (std::size_t i = 0; i < n; ++i)
        for (std::size_t w = 0; w < windows; ++w) {
            const u64 high = highs.data()[w], kept = y.data()[i] & ((u64{1} << high) - 1);
            const u64 low = high > width ? high - width : 0, round = ceiling ? (u64{1} << low) - 1 : 0;
            out.data()[i * windows + w] = high < width ? kept << (width - high) : (kept + round) >> low & mask;
        }
}

}  // namespace

void register_steps(nb::module_& m) {
    const auto out = nb::arg("out").noconvert(), mine = nb::arg("mine").noconvert(), packed = nb::arg("packed").noconvert();
    m.def("wrap_open", &wrap_open, nb::arg("x"), nb::arg("p"), nb::arg("offset"), nb::arg("beta"),
          nb::arg("shifted").noconvert(), mine, packed, "x + offset mod p, its lower-half bits under beta, and these packed.");
    m.def("wrap_share", &wrap_share, nb::arg("x"), nb::arg("source"), nb::arg("mine"), nb::arg("theirs"),
          nb::arg("product"), nb::arg("constants"), nb::arg("shift"), nb::arg("is_client"), nb::arg("modulus"), out,
          "A party's share of x / 2^shift mod modulus from the other party's packed bits.");
    m.def("bits_open", &bits_open, nb::arg("x"), nb::arg("mask"), mine, packed, "x ^ mask, and the same packed.");
    m.def("and_open", &and_open, nb::arg("a"), nb::arg("b"), nb::arg("ta"), nb::arg("tb"), mine, packed,
          "a ^ ta and b ^ tb one after the other, and the same packed.");
    m.def("and_share", &and_share, nb::arg("mine"), nb::arg("theirs"), nb::arg("ta"), nb::arg("tb"), nb::arg("tc"),
          nb::arg("is_client"), out, "A party's share of a & b.");
    m.def("bit_share", &bit_share, nb::arg("mine"), nb::arg("theirs"), nb::arg("values"), nb::arg("modulus"),
          nb::arg("is_client"), out, "A party's arithmetic share of a bit.");
    m.def("residues_open", &residues_open, nb::arg("x"), nb::arg("mask"), nb::arg("modulus"), mine, packed,
          "x - mask mod modulus, and the same packed.");
    m.def("residues_opened", &residues_opened, nb::arg("mine"), nb::arg("theirs"), nb::arg("modulus"), out,
          "mine + theirs mod modulus, theirs packed.");
    m.def("mux_share", &mux_share, nb::arg("value"), nb::arg("my_bits"), nb::arg("my_values"), nb::arg("theirs"),
          nb::arg("arithmetic"), nb::arg("products"), nb::arg("modulus"), out, "A party's share of bit * value.");
    m.def("mul_open", &mul_open, nb::arg("x"), nb::arg("y"), nb::arg("a"), nb::arg("b"), nb::arg("modulus"), mine, packed,
          "x - a and y - b one after the other, and the same packed.");
    m.def("mul_share", &mul_share, nb::arg("mine"), nb::arg("theirs"), nb::arg("a"), nb::arg("b"), nb::arg("c"),
          nb::arg("modulus"), nb::arg("is_client"), out, "A party's share of x * y.");
    m.def("scale_share", &scale_share, nb::arg("opened"), nb::arg("vectors"), nb::arg("products"), nb::arg("scalars"),
          nb::arg("mine"), nb::arg("theirs"), nb::arg("modulus"), out, "A party's share of rows times one scalar each.");
    m.def("squares_share", &squares_share, nb::arg("mine"), nb::arg("theirs"), nb::arg("r"), nb::arg("products"),
          nb::arg("modulus"), nb::arg("is_client"), out, "A party's shares of sums of squares of rows.");
    m.def("take_bits", &take_bits, nb::arg("y"), nb::arg("low"), nb::arg("high"), nb::arg("ceiling"), out,
          "(y mod 2^high) / 2^low mod 2^(high - low), rounded down or up.");
    m.def("take_windows", &take_windows, nb::arg("y"), nb::arg("highs"), nb::arg("bits"), nb::arg("ceiling"), out,
          "The upper bits of y mod 2^h for every h of highs: (n, highs).");
}
