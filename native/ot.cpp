// Bindings of the oblivious-transfer kernels, and the small ones that need no special instructions.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

#include "aes.h"
#include "module.h"

namespace nb = nanobind;

namespace {

using Bytes = nb::ndarray<uint8_t, nb::c_contig, nb::device::cpu>;
using ConstBytes = nb::ndarray<const uint8_t, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<uint64_t, nb::c_contig, nb::device::cpu>;
using ConstWords = nb::ndarray<const uint64_t, nb::c_contig, nb::device::cpu>;

void require(bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(what);
}

void aes_ctr(ConstBytes keys, uint64_t first, Bytes out) {
    require(keys.ndim() == 2 && keys.shape(1) == 16, "aes_ctr: keys must be (count, 16)");
    require(out.ndim() == 3 && out.shape(0) == keys.shape(0) && out.shape(2) == 16, "aes_ctr: out must be (count, blocks, 16)");
    nb::gil_scoped_release nogil;
    aes_kernels().ctr(keys.data(), keys.shape(0), first, out.shape(1), out.data());
}

void ggm_fold(ConstBytes leaves, uint64_t first, Bytes sums, Bytes weighted, int threads) {
    require(leaves.ndim() == 3 && leaves.shape(1) == kLeaves && leaves.shape(2) == 16, "ggm_fold: leaves must be (trees, 256, 16)");
    const size_t trees = leaves.shape(0), bytes = sums.ndim() == 2 ? sums.shape(1) : 0;
    require(sums.ndim() == 2 && sums.shape(0) == trees && bytes % (16 * kFoldGranule) == 0,
            "ggm_fold: sums must be (trees, bytes), bytes a multiple of 128");
    require(weighted.ndim() == 2 && weighted.shape(0) == trees * kTreeDepth && weighted.shape(1) == bytes,
            "ggm_fold: weighted must be (8 trees, bytes)");
    nb::gil_scoped_release nogil;
    const AesKernels& kernels = aes_kernels();
    auto work = [&](size_t from, size_t to) {
        for (size_t t = from; t < to; ++t)
            kernels.fold(leaves.data() + t * kLeaves * 16, first, bytes / 16, sums.data() + t * bytes,
                         weighted.data() + t * kTreeDepth * bytes, bytes);
    };
    const size_t count = threads < 1 ? 1 : (static_cast<size_t>(threads) < trees ? static_cast<size_t>(threads) : trees);
    std::vector<std::thread> pool;
    for (size_t i = 1; i < count; ++i) pool.emplace_back(work, trees * i / count, trees * (i + 1) / count);
    work(0, trees / count);
    for (auto& thread : pool) thread.join();
}

void ot_hash(ConstBytes key, ConstWords rows, ConstWords offsets, uint64_t first, Words out) {
    require(key.size() == 16, "ot_hash: the key has 16 bytes");
    require(rows.ndim() == 2 && rows.shape(1) == 2, "ot_hash: rows must be (n, 2)");
    require(offsets.ndim() == 2 && offsets.shape(1) == 2, "ot_hash: offsets must be (entries, 2)");
    const size_t n = rows.shape(0), entries = offsets.shape(0);
    require(entries == 1 || entries == 2 || (entries > 0 && entries % 4 == 0), "ot_hash: entries must be 1, 2 or 4k");
    require(out.ndim() == 3 && out.shape(0) == n && out.shape(1) == entries, "ot_hash: out must be (n, entries, words)");
    AesKey expanded;
    aes_expand_key(key.data(), expanded);
    nb::gil_scoped_release nogil;
    aes_kernels().hash(expanded, rows.data(), n, offsets.data(), entries, first, out.shape(2), out.data());
}

void transpose_128(ConstBytes columns, Bytes rows) {
    require(columns.ndim() == 2 && columns.shape(0) == 128 && columns.shape(1) % 64 == 0,
            "transpose_128: columns must be (128, bytes), bytes a multiple of 64");
    require(rows.ndim() == 2 && rows.shape(0) == 8 * columns.shape(1) && rows.shape(1) == 16,
            "transpose_128: rows must be (8 bytes, 16)");
    nb::gil_scoped_release nogil;
    aes_kernels().transpose(columns.data(), columns.shape(1), rows.data());
}

// columns[8 g + j] ^= corrections[g] for the columns whose bit of `selection` is set; same work for every selection.
void xor_selected(Bytes columns, ConstBytes corrections, ConstBytes selection) {
    const size_t bytes = columns.ndim() == 2 ? columns.shape(1) : 0;
    require(columns.ndim() == 2 && columns.shape(0) == 128 && selection.size() == 16, "xor_selected: columns must be (128, bytes)");
    require(corrections.ndim() == 2 && corrections.shape(0) == 16 && corrections.shape(1) == bytes,
            "xor_selected: corrections must be (16, bytes)");
    nb::gil_scoped_release nogil;
    for (size_t c = 0; c < 128; ++c) {
        const uint8_t mask = static_cast<uint8_t>(0 - (selection.data()[c / 8] >> (c % 8) & 1));
        uint8_t* column = columns.data() + c * bytes;
        const uint8_t* correction = corrections.data() + c / 8 * bytes;
        for (size_t i = 0; i < bytes; ++i) column[i] ^= correction[i] & mask;
    }
}

// out[i] = sum over t < m of X^t rows[i m + t] in GF(2^128), x^128 = x^7 + x^2 + x + 1, bit j of the low word is X^j.
void gf_combine(ConstWords rows, size_t m, Words out) {
    require(m > 0 && rows.ndim() == 2 && rows.shape(1) == 2, "gf_combine: rows must be (n m, 2)");
    require(out.ndim() == 2 && out.shape(1) == 2 && out.shape(0) * m == rows.shape(0), "gf_combine: out must be (n, 2)");
    nb::gil_scoped_release nogil;
    for (size_t i = 0; i < out.shape(0); ++i) {
        uint64_t low = 0, high = 0;
        for (size_t t = m; t-- > 0;) {
            const uint64_t carry = high >> 63;
            high = (high << 1 | low >> 63) ^ rows.data()[2 * (i * m + t) + 1];
            low = (low << 1 ^ (0x87 & (0 - carry))) ^ rows.data()[2 * (i * m + t)];
        }
        out.data()[2 * i] = low;
        out.data()[2 * i + 1] = high;
    }
}

// out[i] = floor(x modulus / 2^128), x the 128-bit word of row i at `column`: uniform below the modulus up to 2^-64.
void scale_to_modulus(ConstWords words, size_t column, uint64_t modulus, Words out) {
    require(words.ndim() == 2 && words.shape(0) == out.size(), "scale_to_modulus: one row of words for each result");
    const size_t stride = words.shape(1);
    require(column + 2 <= stride, "scale_to_modulus: two words from the column on");
    nb::gil_scoped_release nogil;
    const uint64_t* x = words.data() + column;
    uint64_t* y = out.data();
    const size_t n = out.size();
    if (modulus == 0) {  // stands for 2^64
        for (size_t i = 0; i < n; ++i) y[i] = x[i * stride + 1];
        return;
    }
    __extension__ typedef unsigned __int128 u128;
    for (size_t i = 0; i < n; ++i) {
        const uint64_t carry = static_cast<uint64_t>(u128{x[i * stride]} * modulus >> 64);
        y[i] = static_cast<uint64_t>((u128{x[i * stride + 1]} * modulus + carry) >> 64);
    }
}

}  // namespace

void register_ot(nb::module_& m) {
    m.def("aes_ctr", &aes_ctr, nb::arg("keys"), nb::arg("first"), nb::arg("out"),
          "out (count, blocks, 16): AES-128 of the little-endian counters first, first + 1, ... under each key (count, 16).");
    m.def("ggm_fold", &ggm_fold, nb::arg("leaves"), nb::arg("first"), nb::arg("sums"), nb::arg("weighted"),
          nb::arg("threads") = 1,
          "For each tree: sums = XOR of the CTR streams of its 256 leaves, weighted[8 t + j] = XOR of those with bit j set.");
    m.def("ot_hash", &ot_hash, nb::arg("key"), nb::arg("rows"), nb::arg("offsets"), nb::arg("first"), nb::arg("out"),
          "out (n, entries, words): correlation-robust hash of rows[i] ^ offsets[e] with tweak (first + i, block).");
    m.def("transpose_128", &transpose_128, nb::arg("columns"), nb::arg("rows"),
          "Bit matrix (128, bytes) to (8 bytes, 16), bits in little-endian order.");
    m.def("xor_selected", &xor_selected, nb::arg("columns"), nb::arg("corrections"), nb::arg("selection"),
          "columns[8 g + j] ^= corrections[g] where bit 8 g + j of selection is set, in constant time.");
    m.def("gf_combine", &gf_combine, nb::arg("rows"), nb::arg("m"), nb::arg("out"),
          "out[i] = sum of X^t rows[i m + t] in GF(2^128).");
    m.def("scale_to_modulus", &scale_to_modulus, nb::arg("words"), nb::arg("column"), nb::arg("modulus"),
          nb::arg("out"), "Words column, column + 1 of each row to a residue (0 means 2^64), with bias below 2^-64.");
}
