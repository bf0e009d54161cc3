// Residues as dense bytes, and random bytes as residues: what every fresh or returned ciphertext passes through.
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "bgv_bits.h"
#include "bgv_kernels.h"
#include "ring.h"

using Bytes = nb::ndarray<std::uint8_t, nb::c_contig, nb::device::cpu>;
using ByteSource = nb::ndarray<const std::uint8_t, nb::c_contig, nb::device::cpu>;
using Primes = std::vector<u64>;

namespace {

void require(bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(what);
}

std::vector<Modulus> moduli_of(const Primes& primes) {
    std::vector<Modulus> out;
    for (u64 q : primes) {
        require(q > 2 && q < (u64{1} << 61), "every modulus must be in (2, 2^61)");
        out.emplace_back(q);
    }
    return out;
}

std::size_t packed_bytes(const std::vector<Modulus>& primes, std::size_t n) {
    std::size_t bits = 0;
    for (const Modulus& m : primes) bits += m.bits;
    return n / 8 * bits;
}

// x: (R, L, N) -> bytes (R, N*sum(bits)/8): limb by limb, each residue at the bit length of its prime.
void pack_residues(Source x, const Primes& primes, Bytes out, int threads) {
    const auto mod = moduli_of(primes);
    require(x.ndim() == 3 && x.shape(1) == mod.size() && x.shape(2) % 8 == 0 && out.ndim() == 2 &&
                out.shape(0) == x.shape(0) && out.shape(1) == packed_bytes(mod, x.shape(2)),
            "bgv_pack_residues: expected x (R, L, N) and its packed size");
    const std::size_t rows = x.shape(0), l = mod.size(), n = x.shape(2), size = out.shape(1);
    const u64* in = x.data();
    std::uint8_t* res = out.data();
    nb::gil_scoped_release release;
    parallel_for(rows, threads, [&](std::size_t r) {
        std::uint8_t* to = res + r * size;
        for (std::size_t i = 0; i < l; ++i) {
            pack_dense(in + (r * l + i) * n, n, mod[i].bits, to);
            to += n / 8 * mod[i].bits;
        }
    });
}

// The inverse into component 0 of out (R, C, L, N); false if some residue is not smaller than its prime.
bool unpack_residues(ByteSource data, const Primes& primes, Words out, int threads) {
    const auto mod = moduli_of(primes);
    require(out.ndim() == 4 && out.shape(2) == mod.size() && out.shape(3) % 8 == 0 && out.shape(1) >= 1 &&
                data.ndim() == 2 && data.shape(0) == out.shape(0) && data.shape(1) == packed_bytes(mod, out.shape(3)),
            "bgv_unpack_residues: expected the packed size of out (R, C, L, N)");
    const std::size_t rows = out.shape(0), l = mod.size(), n = out.shape(3), size = data.shape(1);
    const std::size_t stride = out.shape(1) * l * n;
    const std::uint8_t* in = data.data();
    u64* res = out.data();
    std::vector<std::uint8_t> good(rows, 1);
    nb::gil_scoped_release release;
    parallel_for(rows, threads, [&](std::size_t r) {
        const std::uint8_t* from = in + r * size;
        for (std::size_t i = 0; i < l; ++i) {
            u64* to = res + r * stride + i * n;
            unpack_dense(from, n, mod[i].bits, to);
            from += n / 8 * mod[i].bits;
            u64 largest = 0;
            for (std::size_t j = 0; j < n; ++j) largest = std::max(largest, to[j]);
            good[r] = good[r] && largest < mod[i].q;
        }
    });
    return std::all_of(good.begin(), good.end(), [](std::uint8_t g) { return g; });
}

// The words cut to the bit length of the modulus and smaller than it, in order: how many, at most out.size(), were stored.
std::size_t reject(Source words, u64 modulus, Words out) {
    require(modulus > 1 && modulus < (u64{1} << 63), "bgv_reject: the modulus must be in (1, 2^63)");
    unsigned bits = 0;
    while ((modulus - 1) >> bits) ++bits;
    const std::size_t count = words.size(), wanted = out.size();
    const u64* in = words.data();
    u64* res = out.data();
    nb::gil_scoped_release release;
    std::size_t filled = 0;
    for (std::size_t i = 0; i < count && filled < wanted; ++i) {
        res[filled] = in[i] >> (64 - bits);
        filled += res[filled] < modulus;
    }
    return filled;
}

// words: (R, N) random 32-bit words -> (R, L, N) residues of floor(3 w / 2^32) - 1, uniform in {-1, 0, 1}.
void ternary(nb::ndarray<const u32, nb::c_contig, nb::device::cpu> words, const Primes& primes, Words out) {
    const auto mod = moduli_of(primes);
    require(words.ndim() == 2 && out.ndim() == 3 && out.shape(0) == words.shape(0) && out.shape(1) == mod.size() &&
                out.shape(2) == words.shape(1),
            "bgv_ternary: expected words (R, N) and out (R, L, N)");
    const std::size_t rows = words.shape(0), n = words.shape(1);
    nb::gil_scoped_release release;
    for (std::size_t r = 0; r < rows; ++r)
        for (std::size_t l = 0; l < mod.size(); ++l) {
            const u32* in = words.data() + r * n;
            u64* to = out.data() + (r * mod.size() + l) * n;
            const u64 q = mod[l].q;
            for (std::size_t i = 0; i < n; ++i) {
                const u64 v = ((u64{in[i]} * 3) >> 32) - 1;  // -1 wraps: its top bit selects q
                to[i] = v + (q & (u64{0} - (v >> 63)));
            }
        }
}

// words: (R, N) random words -> (R, L, N) residues of (ones in bits 0..20) - (ones in bits 21..41).
void error(Source words, const Primes& primes, Words out) {
    const auto mod = moduli_of(primes);
    require(words.ndim() == 2 && out.ndim() == 3 && out.shape(0) == words.shape(0) && out.shape(1) == mod.size() &&
                out.shape(2) == words.shape(1),
            "bgv_error: expected words (R, N) and out (R, L, N)");
    const std::size_t rows = words.shape(0), n = words.shape(1), l = mod.size();
    const BgvKernels& k = bgv_kernels(50, n);
    nb::gil_scoped_release release;
    for (std::size_t r = 0; r < rows; ++r) k.error(words.data() + r * n, mod.data(), l, out.data() + r * l * n, n);
}

}  // namespace

void register_bgv_wire(nb::module_& m) {
    using namespace nb::literals;
    m.def("bgv_pack_residues", &pack_residues, "x"_a, "primes"_a, "out"_a, "threads"_a = 1);
    m.def("bgv_unpack_residues", &unpack_residues, "data"_a, "primes"_a, "out"_a, "threads"_a = 1);
    m.def("bgv_reject", &reject, "words"_a, "modulus"_a, "out"_a);
    m.def("bgv_ternary", &ternary, "words"_a, "primes"_a, "out"_a);
    m.def("bgv_error", &error, "words"_a, "primes"_a, "out"_a);
}
