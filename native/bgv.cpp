// Kernels of the RLWE layer between the transforms: lifting a residue to other primes, key-switching products, tensor
// products, and exact scaling of a residue vector to a fraction of Q (recipes Z and F, decoding). One task per
// polynomial (or per limb of one); the arithmetic of one prime is ring_arith.h.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <cstring>
#include <stdexcept>

#include "bgv_kernels.h"
#include "module.h"
#include "ring_pool.h"

namespace nb = nanobind;
using Words = nb::ndarray<u64, nb::c_contig, nb::device::cpu>;
using ConstWords = nb::ndarray<const u64, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<std::uint8_t, nb::c_contig, nb::device::cpu>;
using ConstBytes = nb::ndarray<const std::uint8_t, nb::c_contig, nb::device::cpu>;
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

// x: (R, N) residues mod source; out: (R, M, N) = the centred representative of scale*x mod source, mod each target.
void lift(ConstWords x, u64 source, u64 scale, const Primes& targets, Words out, int threads) {
    require(x.ndim() == 2 && out.ndim() == 3 && out.shape(0) == x.shape(0) && out.shape(1) == targets.size() &&
                out.shape(2) == x.shape(1),
            "bgv_lift: expected x (R, N) and out (R, M, N)");
    auto to = moduli_of(targets);
    Modulus from = moduli_of({source})[0];
    require(scale < source, "bgv_lift: scale must be reduced");
    std::size_t rows = x.shape(0), n = x.shape(1), m = to.size();
    const u64* in = x.data();
    u64* res = out.data();
    nb::gil_scoped_release release;
    parallel_for(rows, threads, [&](std::size_t r) {
        bgv_kernels().lift(in + r * n, from, scale, to.data(), m, res + r * m * n, n);
    });
}

// x: (R, L, N) residues in coefficient form; out: (R, L, M, N): digit i of row r is the centred x[r, i] mod each target.
void digits(ConstWords x, const Primes& sources, const Primes& targets, Words out, int threads) {
    std::size_t l = sources.size(), m = targets.size();
    require(x.ndim() == 3 && out.ndim() == 4 && x.shape(1) == l && out.shape(0) == x.shape(0) && out.shape(1) == l &&
                out.shape(2) == m && out.shape(3) == x.shape(2),
            "bgv_digits: expected x (R, L, N) and out (R, L, M, N)");
    auto from = moduli_of(sources), to = moduli_of(targets);
    std::size_t rows = x.shape(0), n = x.shape(2);
    const u64* in = x.data();
    u64* res = out.data();
    nb::gil_scoped_release release;
    parallel_for(rows * l, threads, [&](std::size_t t) {
        bgv_kernels().lift(in + t * n, from[t % l], 1, to.data(), m, res + t * m * n, n);
    });
}

// digits: (R, D, M, N), keys: (D, 2, M, N), out: (R, 2, M, N) = (out if accumulate else 0) + sum_d digit_d * key_d.
void key_product(ConstWords dig, ConstWords key, const Primes& primes, Words out, bool accumulate, int threads) {
    std::size_t m = primes.size();
    require(dig.ndim() == 4 && key.ndim() == 4 && out.ndim() == 4 && dig.shape(2) == m && key.shape(2) == m &&
                out.shape(2) == m && key.shape(1) == 2 && out.shape(1) == 2 && dig.shape(1) == key.shape(0) &&
                out.shape(0) == dig.shape(0) && dig.shape(3) == key.shape(3) && out.shape(3) == dig.shape(3),
            "bgv_key_product: expected digits (R, D, M, N), keys (D, 2, M, N), out (R, 2, M, N)");
    auto mod = moduli_of(primes);
    std::size_t rows = dig.shape(0), d = dig.shape(1), n = dig.shape(3);
    const u64 *a = dig.data(), *k = key.data();
    u64* res = out.data();
    nb::gil_scoped_release release;
    parallel_for(rows * 2 * m, threads, [&](std::size_t t) {
        std::size_t r = t / (2 * m), c = (t / m) % 2, i = t % m;
        DotArgs args{a + (r * d * m + i) * n, m * n, k + (c * m + i) * n, 2 * m * n, res + t * n, d, n, accumulate};
        bgv_kernels().dot(mod[i], args);
    });
}

// a, b: (K, 2, L, N) in NTT form; out: (3, L, N) = (out if accumulate else 0) + sum_k a_k (x) b_k.
void tensor(ConstWords a, ConstWords b, const Primes& primes, Words out, bool accumulate, int threads) {
    std::size_t l = primes.size();
    require(a.ndim() == 4 && b.ndim() == 4 && out.ndim() == 3 && a.shape(0) == b.shape(0) && a.shape(1) == 2 &&
                b.shape(1) == 2 && out.shape(0) == 3 && a.shape(2) == l && b.shape(2) == l && out.shape(1) == l &&
                a.shape(3) == b.shape(3) && a.shape(3) == out.shape(2),
            "bgv_tensor: expected a, b (K, 2, L, N) and out (3, L, N)");
    auto mod = moduli_of(primes);
    std::size_t k = a.shape(0), n = a.shape(3), size = l * n;
    const u64 *x = a.data(), *y = b.data();
    u64* res = out.data();
    nb::gil_scoped_release release;
    parallel_for(3 * l, threads, [&](std::size_t t) {
        std::size_t part = t / l, i = t % l;
        u64* o = res + part * size + i * n;
        for (std::size_t u = 0; u < 2; ++u) {
            std::size_t v = part - u;  // wraps for part < u, caught by v > 1
            if (v > 1) continue;
            bool add = accumulate || (part == 1 && u == 1);
            DotArgs args{x + u * size + i * n, 2 * size, y + v * size + i * n, 2 * size, o, k, n, add};
            bgv_kernels().dot(mod[i], args);
        }
    });
}

// out = (x - y) * scale_l mod q_l; x: (R, M, N) of which the first L limbs are read, y and out: (R, L, N).
void sub_scale(ConstWords x, ConstWords y, const Primes& primes, const Primes& scales, Words out, int threads) {
    std::size_t l = primes.size();
    require(x.ndim() == 3 && y.ndim() == 3 && out.ndim() == 3 && scales.size() == l && y.shape(1) == l &&
                out.shape(1) == l && x.shape(1) >= l && x.shape(0) == y.shape(0) && out.shape(0) == y.shape(0) &&
                x.shape(2) == y.shape(2) && out.shape(2) == y.shape(2),
            "bgv_sub_scale: expected x (R, >=L, N), y and out (R, L, N)");
    auto mod = moduli_of(primes);
    std::size_t rows = x.shape(0), m = x.shape(1), n = x.shape(2);
    const u64 *a = x.data(), *b = y.data();
    u64* res = out.data();
    nb::gil_scoped_release release;
    parallel_for(rows * l, threads, [&](std::size_t t) {
        std::size_t r = t / l, i = t % l;
        bgv_kernels().sub_scale(mod[i], a + (r * m + i) * n, b + t * n, scales[i] % mod[i].q, res + t * n, n);
    });
}

// x: (R, L, N) in coefficient form; out: (R, N*kappa/8) bytes: round(2^kappa * x / Q) mod 2^kappa, packed densely.
void round_pack(ConstWords x, const Primes& primes, unsigned kappa, Bytes out, int threads) {
    std::size_t l = primes.size();
    require(x.ndim() == 3 && out.ndim() == 2 && x.shape(1) == l && out.shape(0) == x.shape(0) && kappa >= 1 &&
                kappa <= 120 && x.shape(2) % 8 == 0 && out.shape(1) == x.shape(2) / 8 * kappa,
            "bgv_round_pack: expected x (R, L, N) and out (R, N*kappa/8), kappa <= 120");
    Fractions f(moduli_of(primes));
    std::size_t rows = x.shape(0), n = x.shape(2), size = out.shape(1);
    const u64* in = x.data();
    std::uint8_t* res = out.data();
    nb::gil_scoped_release release;
    parallel_for(rows, threads, [&](std::size_t r) { f.round_pack(in + r * l * n, n, kappa, res + r * size); });
}

// bytes: (R, N*kappa/8) as written by round_pack; out: (R, L, N) = round(a * Q / 2^kappa) for the primes given, Q < 2^124.
void unpack_lift(ConstBytes bytes, unsigned kappa, const Primes& primes, Words out, int threads) {
    std::size_t l = primes.size();
    require(bytes.ndim() == 2 && out.ndim() == 3 && out.shape(1) == l && out.shape(0) == bytes.shape(0) && l <= 2 &&
                kappa >= 1 && kappa <= 120 && out.shape(2) % 8 == 0 && bytes.shape(1) == out.shape(2) / 8 * kappa,
            "bgv_unpack_lift: expected bytes (R, N*kappa/8) and out (R, L, N), kappa <= 120, at most two primes");
    auto mod = moduli_of(primes);
    std::size_t rows = out.shape(0), n = out.shape(2), size = bytes.shape(1);
    const std::uint8_t* in = bytes.data();
    u64* res = out.data();
    nb::gil_scoped_release release;
    parallel_for(rows, threads,
                 [&](std::size_t r) { bgv_unpack_lift_row(in + r * size, n, kappa, mod, res + r * l * n); });
}

// x: (R, L, N) in coefficient form, added: (R, N*kappa/8) bytes or an empty array (kappa 0); out: (R, N) =
// factor * round(p * (x/Q + added/2^kappa)) mod p.
void scale_to_plain(ConstWords x, const Primes& primes, ConstBytes added, unsigned kappa, u64 p, u64 factor, Words out,
                    int threads) {
    std::size_t l = primes.size();
    require(x.ndim() == 3 && x.shape(1) == l && out.ndim() == 2 && out.shape(0) == x.shape(0) &&
                out.shape(1) == x.shape(2) && x.shape(2) % 8 == 0 && kappa <= 120,
            "bgv_scale_to_plain: expected x (R, L, N) and out (R, N)");
    require(kappa == 0 || (added.ndim() == 2 && added.shape(0) == x.shape(0) && added.shape(1) == x.shape(2) / 8 * kappa),
            "bgv_scale_to_plain: added must be (R, N*kappa/8)");
    Fractions f(moduli_of(primes));
    Modulus plain = moduli_of({p})[0];
    require(factor < p, "bgv_scale_to_plain: factor must be reduced");
    std::size_t rows = x.shape(0), n = x.shape(2), size = n / 8 * kappa;
    const u64* in = x.data();
    const std::uint8_t* add = kappa ? added.data() : nullptr;
    u64* res = out.data();
    nb::gil_scoped_release release;
    parallel_for(rows, threads, [&](std::size_t r) {
        f.scale_to_plain(in + r * l * n, n, add ? add + r * size : nullptr, kappa, plain, factor, res + r * n);
    });
}

// words: (R, 2, N) random; out: (R, L, N) = the low `bits` of (high:low) minus 2^(bits-1), mod each prime.
void wide_uniform(ConstWords words, unsigned bits, const Primes& primes, Words out, int threads) {
    std::size_t l = primes.size();
    require(words.ndim() == 3 && words.shape(1) == 2 && out.ndim() == 3 && out.shape(0) == words.shape(0) &&
                out.shape(1) == l && out.shape(2) == words.shape(2) && bits >= 1 && bits <= 127,
            "bgv_wide_uniform: expected words (R, 2, N) and out (R, L, N), bits <= 127");
    auto mod = moduli_of(primes);
    std::size_t rows = words.shape(0), n = words.shape(2);
    const u64* in = words.data();
    u64* res = out.data();
    nb::gil_scoped_release release;
    parallel_for(rows * l, threads, [&](std::size_t t) {
        const Modulus& m = mod[t % l];
        const u64 *lo = in + t / l * 2 * n, *hi = lo + n;
        u128 mask = (u128{1} << bits) - 1;
        u64 half = m.reduce128(u128{1} << (bits - 1));
        for (std::size_t j = 0; j < n; ++j)
            res[t * n + j] = m.sub(m.reduce128(((u128{hi[j]} << 64) | lo[j]) & mask), half);
    });
}

}  // namespace

void register_bgv(nb::module_& m) {
    using namespace nb::literals;
    m.def("bgv_lift", &lift, "x"_a, "source"_a, "scale"_a, "targets"_a, "out"_a, "threads"_a = 1);
    m.def("bgv_digits", &digits, "x"_a, "sources"_a, "targets"_a, "out"_a, "threads"_a = 1);
    m.def("bgv_key_product", &key_product, "digits"_a, "key"_a, "primes"_a, "out"_a, "accumulate"_a, "threads"_a = 1);
    m.def("bgv_tensor", &tensor, "a"_a, "b"_a, "primes"_a, "out"_a, "accumulate"_a, "threads"_a = 1);
    m.def("bgv_sub_scale", &sub_scale, "x"_a, "y"_a, "primes"_a, "scales"_a, "out"_a, "threads"_a = 1);
    m.def("bgv_round_pack", &round_pack, "x"_a, "primes"_a, "kappa"_a, "out"_a, "threads"_a = 1);
    m.def("bgv_unpack_lift", &unpack_lift, "data"_a, "kappa"_a, "primes"_a, "out"_a, "threads"_a = 1);
    m.def("bgv_scale_to_plain", &scale_to_plain, "x"_a, "primes"_a, "added"_a, "kappa"_a, "p"_a, "factor"_a, "out"_a,
          "threads"_a = 1);
    m.def("bgv_wide_uniform", &wide_uniform, "words"_a, "bits"_a, "primes"_a, "out"_a, "threads"_a = 1);
}
