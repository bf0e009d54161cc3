// Kernels of the RLWE layer: key switching, products of ciphertexts, and exact scaling of a residue vector to a fraction
// of Q, packed densely (recipes Z and F, decoding). Inner loops are in bgv_portable.cpp and bgv_avx512.cpp.
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "bgv_bits.h"
#include "bgv_kernels.h"
#include "module.h"
#include "ring.h"

using Bytes = nb::ndarray<std::uint8_t, nb::c_contig, nb::device::cpu>;
using ByteSource = nb::ndarray<const std::uint8_t, nb::c_contig, nb::device::cpu>;
using Primes = std::vector<u64>;

namespace {

constexpr std::size_t kChunk = 1024;  // coefficients whose fractions are held at a time

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

unsigned widest(const std::vector<Modulus>& moduli) {
    unsigned bits = 0;
    for (const Modulus& m : moduli) bits = std::max(bits, m.bits);
    return bits;
}

// x: (R, N) residues mod source; out: (R, M, N) = the centred representative of scale*x mod source, mod each target.
void lift(Source x, u64 source, u64 scale, const Primes& targets, Words out, int threads) {
    require(x.ndim() == 2 && out.ndim() == 3 && out.shape(0) == x.shape(0) && out.shape(1) == targets.size() &&
                out.shape(2) == x.shape(1),
            "bgv_lift: expected x (R, N) and out (R, M, N)");
    const auto to = moduli_of(targets);
    const Modulus from = moduli_of({source})[0];
    require(scale < source, "bgv_lift: scale must be reduced");
    const std::size_t rows = x.shape(0), n = x.shape(1), m = to.size();
    const BgvKernels& k = bgv_kernels(std::max(widest(to), from.bits), n);
    const u64* in = x.data();
    u64* res = out.data();
    nb::gil_scoped_release release;
    parallel_for(rows, threads, [&](std::size_t r) { k.lift(in + r * n, from, scale, to.data(), m, res + r * m * n, n); });
}

struct KeyRing {  // Q*P: the ciphertext primes and the special one
    const Ring& ring;
    std::vector<Modulus> moduli;
    const BgvKernels& k;
    std::size_t limbs, n;
    explicit KeyRing(const Ring& r) : ring(r), moduli(all(r)), k(bgv_kernels(widest(moduli), r.n)), limbs(r.size() - 1), n(r.n) {
        require(r.size() >= 2, "key switching needs a special prime");
    }
    static std::vector<Modulus> all(const Ring& r) {
        std::vector<Modulus> out;
        for (const auto& p : r.limbs) out.push_back(p->m);
        return out;
    }
    void ntt(u64* x, std::size_t l) const { ring_kernels(moduli[l]).ntt(x, *ring.limbs[l]); }
    void intt(u64* x, std::size_t l) const { ring_kernels(moduli[l]).intt(x, *ring.limbs[l]); }
};

// x: (R, S, L, N) in NTT form, of which component `part` is read -> out: (R, L, L+1, N) in NTT form: digit d is the
// centred component mod q_d, modulo every prime.
void decompose(const Ring& ring, Source x, std::size_t part, Words out, int threads) {
    const KeyRing q(ring);
    const std::size_t limbs = q.limbs, all = limbs + 1, n = q.n;
    require(x.ndim() == 4 && out.ndim() == 4 && part < x.shape(1) && x.shape(2) == limbs && x.shape(3) == n &&
                out.shape(0) == x.shape(0) && out.shape(1) == limbs && out.shape(2) == all && out.shape(3) == n,
            "bgv_decompose: expected x (R, S, L, N), a component of it, and out (R, L, L+1, N)");
    const std::size_t rows = x.shape(0) * limbs, size = x.shape(1);
    const u64* in = x.data();
    u64* res = out.data();
    nb::gil_scoped_release release;
    const auto coefficients = std::make_unique_for_overwrite<u64[]>(rows * n);
    const auto input = [&](std::size_t r) { return in + ((r / limbs * size + part) * limbs + r % limbs) * n; };
    parallel_for(rows, threads, [&](std::size_t r) {
        std::memcpy(&coefficients[r * n], input(r), n * sizeof(u64));
        q.intt(&coefficients[r * n], r % limbs);
    });
    parallel_for(rows * all, threads, [&](std::size_t task) {
        const std::size_t r = task / all, t = task % all, d = r % limbs;
        u64* to = res + task * n;
        if (t == d) {  // modulo its own prime the digit is x itself
            std::memcpy(to, input(r), n * sizeof(u64));
            return;
        }
        q.k.lift(&coefficients[r * n], q.moduli[d], 1, &q.moduli[t], 1, to, n);
        q.ntt(to, t);
    });
}

// digits: (R, L, L+1, N); keys: S arrays (L, 2, L+1, N), each with the inverse of its automorphism X -> X^elements[s]
// applied; more: (R, S', L, N); out: (S, R, 2, L, N) = the automorphism of [sum_d digit_d * key_d divided by P, times p,
// plus `more` on the first `parts` components]. scales: p/P mod q_l.
void switch_many(const Ring& ring, Source digits, nb::list keys, const std::vector<u64>& elements, const Primes& scales,
                 Source more, std::size_t parts, Words out, int threads) {
    const KeyRing q(ring);
    const std::size_t limbs = q.limbs, all = limbs + 1, n = q.n, steps = elements.size();
    require(digits.ndim() == 4 && digits.shape(1) == limbs && digits.shape(2) == all && digits.shape(3) == n,
            "bgv_switch: expected digits (R, L, L+1, N)");
    const std::size_t rows = digits.shape(0);
    require(parts <= 2 && more.ndim() == 4 && more.shape(0) == rows && more.shape(1) >= parts && more.shape(2) == limbs &&
                more.shape(3) == n,
            "bgv_switch: expected more (R, S, L, N) with at least `parts` <= 2 components");
    const std::size_t size = more.shape(1);
    require(out.ndim() == 5 && out.shape(0) == steps && out.shape(1) == rows && out.shape(2) == 2 &&
                out.shape(3) == limbs && out.shape(4) == n && scales.size() == limbs && nb::len(keys) == steps,
            "bgv_switch: expected S keys and elements, and out (S, R, 2, L, N)");
    std::vector<Source> held;
    std::vector<std::shared_ptr<const std::vector<u32>>> positions;
    for (std::size_t s = 0; s < steps; ++s) {
        held.push_back(nb::cast<Source>(keys[s], false));
        const Source& key = held.back();
        require(key.ndim() == 4 && key.shape(0) == limbs && key.shape(1) == 2 && key.shape(2) == all && key.shape(3) == n,
                "bgv_switch: a key must be (L, 2, L+1, N)");
        positions.push_back(elements[s] == 1 ? nullptr : automorphism_positions(ring.n, elements[s]));
    }
    const u64 *in = digits.data(), *plus = more.data();
    u64* res = out.data();
    nb::gil_scoped_release release;
    // One component of one result per task: its sums, a few hundred KB, stay in the second-level cache.
    parallel_for(steps * rows * 2, threads, [&](std::size_t task) {
        const std::size_t s = task / (2 * rows), r = task / 2 % rows, c = task % 2;
        // Kept between calls: fresh memory of this size would cost more than a transform. Nothing secret is in it.
        thread_local std::vector<u64> sums, lifted;
        sums.resize(all * n), lifted.resize(n);
        for (std::size_t i = 0; i < all; ++i) {
            const DotArgs args{in + (r * limbs * all + i) * n, all * n, held[s].data() + (c * all + i) * n, 2 * all * n,
                               &sums[i * n], limbs, n, false};
            q.k.dot(q.moduli[i], args);
        }
        u64* special = &sums[limbs * n];
        q.intt(special, limbs);
        for (std::size_t l = 0; l < limbs; ++l) {
            u64* to = res + (task * limbs + l) * n;
            u64* work = positions[s] ? lifted.data() : to;
            q.k.lift(special, q.moduli[limbs], 1, &q.moduli[l], 1, work, n);
            q.ntt(work, l);
            const u64* add = c < parts ? plus + ((r * size + c) * limbs + l) * n : nullptr;
            q.k.sub_scale(q.moduli[l], &sums[l * n], work, scales[l] % q.moduli[l].q, add, work, n);
            if (positions[s]) ring_kernels(q.moduli[l]).permute(work, positions[s]->data(), to, n);
        }
    });
}

// digits: (R, D, M, N), keys: (D, 2, M, N), out: (R, 2, M, N) = (out if accumulate else 0) + sum_d digit_d * key_d.
void key_product(Source dig, Source key, const Primes& primes, Words out, bool accumulate, int threads) {
    const std::size_t m = primes.size();
    require(dig.ndim() == 4 && key.ndim() == 4 && out.ndim() == 4 && dig.shape(2) == m && key.shape(2) == m &&
                out.shape(2) == m && key.shape(1) == 2 && out.shape(1) == 2 && dig.shape(1) == key.shape(0) &&
                out.shape(0) == dig.shape(0) && dig.shape(3) == key.shape(3) && out.shape(3) == dig.shape(3),
            "bgv_key_product: expected digits (R, D, M, N), keys (D, 2, M, N), out (R, 2, M, N)");
    const auto mod = moduli_of(primes);
    const std::size_t rows = dig.shape(0), d = dig.shape(1), n = dig.shape(3);
    const BgvKernels& kernels = bgv_kernels(widest(mod), n);
    const u64 *a = dig.data(), *k = key.data();
    u64* res = out.data();
    nb::gil_scoped_release release;
    parallel_for(rows * m, threads, [&](std::size_t t) {
        const std::size_t r = t / m, i = t % m;
        for (std::size_t c = 0; c < 2; ++c) {
            const DotArgs args{a + (r * d * m + i) * n, m * n, k + (c * m + i) * n, 2 * m * n,
                               res + ((r * 2 + c) * m + i) * n, d, n, accumulate};
            kernels.dot(mod[i], args);
        }
    });
}

// x: (R, C, L+1, N) modulo Q*P in NTT form -> out: (R, C, L, N) = (x - [x]_P) * scale_l, plus `more` (R, C', L, N), C' <= C,
// on its first C' components (an empty array: nothing).
void mod_down(const Ring& ring, Source x, const Primes& scales, Source more, Words out, int threads) {
    const KeyRing q(ring);
    const std::size_t limbs = q.limbs, n = q.n;
    require(x.ndim() == 4 && out.ndim() == 4 && x.shape(2) == limbs + 1 && x.shape(3) == n && out.shape(0) == x.shape(0) &&
                out.shape(1) == x.shape(1) && out.shape(2) == limbs && out.shape(3) == n && scales.size() == limbs,
            "bgv_mod_down: expected x (R, C, L+1, N) and out (R, C, L, N)");
    const std::size_t parts = x.shape(1), extra = more.size() ? more.shape(1) : 0;
    require(!extra || (more.ndim() == 4 && more.shape(0) == x.shape(0) && extra <= parts && more.shape(2) == limbs &&
                       more.shape(3) == n),
            "bgv_mod_down: expected more (R, C' <= C, L, N)");
    const std::size_t rows = x.shape(0) * parts;
    const u64 *in = x.data(), *plus = more.data();
    u64* res = out.data();
    nb::gil_scoped_release release;
    parallel_for(rows, threads, [&](std::size_t r) {
        const u64* from = in + r * (limbs + 1) * n;
        const std::size_t row = r / parts, part = r % parts;
        std::vector<u64> special(from + limbs * n, from + (limbs + 1) * n);
        q.intt(special.data(), limbs);
        for (std::size_t l = 0; l < limbs; ++l) {
            u64* to = res + (r * limbs + l) * n;
            q.k.lift(special.data(), q.moduli[limbs], 1, &q.moduli[l], 1, to, n);
            q.ntt(to, l);
            const u64* add = part < extra ? plus + ((row * extra + part) * limbs + l) * n : nullptr;
            q.k.sub_scale(q.moduli[l], from + l * n, to, scales[l] % q.moduli[l].q, add, to, n);
        }
    });
}

// a, b: (K, 2, L, N) in NTT form; out: (3, L, N) = (out if accumulate else 0) + sum_k a_k (x) b_k.
void tensor(Source a, Source b, const Primes& primes, Words out, bool accumulate, int threads) {
    const std::size_t l = primes.size();
    require(a.ndim() == 4 && b.ndim() == 4 && out.ndim() == 3 && a.shape(0) == b.shape(0) && a.shape(1) == 2 &&
                b.shape(1) == 2 && out.shape(0) == 3 && a.shape(2) == l && b.shape(2) == l && out.shape(1) == l &&
                a.shape(3) == b.shape(3) && a.shape(3) == out.shape(2),
            "bgv_tensor: expected a, b (K, 2, L, N) and out (3, L, N)");
    const auto mod = moduli_of(primes);
    const std::size_t k = a.shape(0), n = a.shape(3), size = l * n, step = std::min<std::size_t>(n, 512), chunks = n / step;
    const BgvKernels& kernels = bgv_kernels(widest(mod), step);
    const u64 *x = a.data(), *y = b.data();
    u64* res = out.data();
    nb::gil_scoped_release release;
    // A run of every operand at a time, so that its four products find it in the first-level cache.
    parallel_for(l * chunks, threads, [&](std::size_t t) {
        const std::size_t i = t / chunks, at = i * n + t % chunks * step;
        const auto part = [&](std::size_t u, std::size_t v, bool add) {
            const DotArgs args{x + u * size + at, 2 * size, y + v * size + at, 2 * size, res + (u + v) * size + at, k, step, add};
            kernels.dot(mod[i], args);
        };
        part(0, 0, accumulate), part(0, 1, accumulate), part(1, 0, true), part(1, 1, accumulate);
    });
}

// out = (x - y) * scale_l mod q_l; x: (R, M, N) of which the first L limbs are read, y and out: (R, L, N).
void sub_scale(Source x, Source y, const Primes& primes, const Primes& scales, Words out, int threads) {
    const std::size_t l = primes.size();
    require(x.ndim() == 3 && y.ndim() == 3 && out.ndim() == 3 && scales.size() == l && y.shape(1) == l &&
                out.shape(1) == l && x.shape(1) >= l && x.shape(0) == y.shape(0) && out.shape(0) == y.shape(0) &&
                x.shape(2) == y.shape(2) && out.shape(2) == y.shape(2),
            "bgv_sub_scale: expected x (R, >=L, N), y and out (R, L, N)");
    const auto mod = moduli_of(primes);
    const std::size_t rows = x.shape(0), m = x.shape(1), n = x.shape(2);
    const BgvKernels& k = bgv_kernels(widest(mod), n);
    const u64 *a = x.data(), *b = y.data();
    u64* res = out.data();
    nb::gil_scoped_release release;
    parallel_for(rows * l, threads, [&](std::size_t t) {
        const std::size_t r = t / l, i = t % l;
        k.sub_scale(mod[i], a + (r * m + i) * n, b + t * n, scales[i] % mod[i].q, nullptr, res + t * n, n);
    });
}

// A rounded half on the wire, kappa <= 103 bits a coefficient: for kappa > 64 first the low 64 bits of every coefficient,
// then what is left of each, packed densely.
struct Halves {
    unsigned kappa, rest;
    std::size_t n;
    Halves(unsigned kappa_, std::size_t n_) : kappa(kappa_), rest(kappa_ > 64 ? kappa_ - 64 : kappa_), n(n_) {}
    std::size_t low_bytes() const { return kappa > 64 ? 8 * n : 0; }

    // Values from `at` on: as two halves of 52 bits. `step` is a multiple of 8.
    void read(const std::uint8_t* in, std::size_t at, std::size_t step, u64* hi, u64* lo) const {
        unpack_dense(in + low_bytes() + at / 8 * rest, step, rest, hi);
        if (kappa > 64) {
            std::memcpy(lo, in + 8 * at, 8 * step);
            for (std::size_t i = 0; i < step; ++i) hi[i] = (hi[i] << 12) | (lo[i] >> 52), lo[i] &= kMask52;
        } else {
            for (std::size_t i = 0; i < step; ++i) lo[i] = hi[i] & kMask52, hi[i] >>= 52;
        }
    }
    // The fraction's leading kappa bits, rounded; hi and lo are overwritten.
    void write(std::uint8_t* out, std::size_t at, std::size_t step, u64* hi, u64* lo) const {
        const unsigned drop = 104 - kappa;
        const u64 half_lo = drop <= 52 ? u64{1} << (drop - 1) : 0, half_hi = drop > 52 ? u64{1} << (drop - 53) : 0;
        for (std::size_t i = 0; i < step; ++i) {
            lo[i] += half_lo;
            hi[i] = (hi[i] + half_hi + (lo[i] >> 52)) & kMask52;
            lo[i] &= kMask52;
        }
        if (kappa > 64) {
            for (std::size_t i = 0; i < step; ++i) {
                lo[i] = (lo[i] >> drop) | (hi[i] << (52 - drop));
                hi[i] >>= 12 + drop;
            }
            std::memcpy(out + 8 * at, lo, 8 * step);
        } else if (drop < 52) {
            for (std::size_t i = 0; i < step; ++i) hi[i] = (lo[i] >> drop) | (hi[i] << (52 - drop));
        } else {
            for (std::size_t i = 0; i < step; ++i) hi[i] >>= drop - 52;
        }
        pack_dense(hi, step, rest, out + low_bytes() + at / 8 * rest);
    }
};

bool halves_fit(unsigned kappa) { return kappa >= 1 && kappa <= 103 && kappa != 64; }

// x: (R, L, N) in coefficient form; out: (R, N*kappa/8) bytes: round(2^kappa * x / Q) mod 2^kappa, packed as Halves.
void round_pack(Source x, const Primes& primes, unsigned kappa, Bytes out, int threads) {
    const std::size_t l = primes.size();
    require(x.ndim() == 3 && out.ndim() == 2 && x.shape(1) == l && out.shape(0) == x.shape(0) && halves_fit(kappa) && x.shape(2) % 8 == 0 && out.shape(1) == x.shape(2) / 8 * kappa,
            "bgv_round_pack: expected x (R, L, N) and out (R, N*kappa/8), kappa <= 103");
    const auto mod = moduli_of(primes);
    const auto fractions = fraction_primes(mod);
    const std::size_t rows = x.shape(0), n = x.shape(2), size = out.shape(1), step = std::min(n, kChunk);
    const BgvKernels& k = bgv_kernels(widest(mod), n);
    const u64* in = x.data();
    std::uint8_t* res = out.data();
    const Halves wire(kappa, n);
    nb::gil_scoped_release release;
    parallel_for(rows, threads, [&](std::size_t r) {
        std::vector<u64> hi(step), lo(step);
        for (std::size_t at = 0; at < n; at += step) {
            const std::size_t now = std::min(step, n - at);
            k.fraction(fractions.data(), l, in + r * l * n + at, n, hi.data(), lo.data(), now);
            wire.write(res + r * size, at, now, hi.data(), lo.data());
        }
    });
}

// bytes: (R, N*kappa/8) as written by round_pack; out: (R, L, N) = round(a * Q / 2^kappa), Q the product of the primes.
void unpack_lift(ByteSource bytes, unsigned kappa, const Primes& primes, Words out, int threads) {
    const std::size_t l = primes.size();
    require(bytes.ndim() == 2 && out.ndim() == 3 && out.shape(1) == l && out.shape(0) == bytes.shape(0) && halves_fit(kappa) && out.shape(2) % 8 == 0 && bytes.shape(1) == out.shape(2) / 8 * kappa,
            "bgv_unpack_lift: expected bytes (R, N*kappa/8) and out (R, L, N), kappa <= 103");
    const auto mod = moduli_of(primes);
    const LiftFrom from(kappa, mod);
    const std::size_t rows = out.shape(0), n = out.shape(2), size = bytes.shape(1), step = std::min(n, kChunk);
    const BgvKernels& k = bgv_kernels(widest(mod), n);
    const std::uint8_t* in = bytes.data();
    u64* res = out.data();
    const Halves wire(kappa, n);
    nb::gil_scoped_release release;
    parallel_for(rows, threads, [&](std::size_t r) {
        std::vector<u64> hi(step), lo(step);
        for (std::size_t at = 0; at < n; at += step) {
            const std::size_t now = std::min(step, n - at);
            wire.read(in + r * size, at, now, hi.data(), lo.data());
            k.unpack_lift(from, hi.data(), lo.data(), res + r * l * n + at, n, now);
        }
    });
}

// x: (R, L, N) in coefficient form, added: (R, N*kappa/8) bytes or an empty array (kappa 0); out: (R, N) =
// factor * round(p * (x/Q + added/2^kappa)) mod p.
void scale_to_plain(Source x, const Primes& primes, ByteSource added, unsigned kappa, u64 p, u64 factor, Words out, int threads) {
    const std::size_t l = primes.size();
    require(x.ndim() == 3 && x.shape(1) == l && out.ndim() == 2 && out.shape(0) == x.shape(0) &&
                out.shape(1) == x.shape(2) && x.shape(2) % 8 == 0 && (kappa == 0 || halves_fit(kappa)),
            "bgv_scale_to_plain: expected x (R, L, N) and out (R, N)");
    require(kappa == 0 || (added.ndim() == 2 && added.shape(0) == x.shape(0) && added.shape(1) == x.shape(2) / 8 * kappa),
            "bgv_scale_to_plain: added must be (R, N*kappa/8)");
    const auto mod = moduli_of(primes);
    const auto fractions = fraction_primes(mod);
    const Modulus plain = moduli_of({p})[0];
    require(factor < p && plain.bits <= 52, "bgv_scale_to_plain: factor must be reduced, p below 2^52");
    const ScaleTo to{plain, factor, plain.shoup(factor), static_cast<u64>((u128{factor} << 52) / p)};
    const std::size_t rows = x.shape(0), n = x.shape(2), size = n / 8 * kappa, step = std::min(n, kChunk);
    const BgvKernels& k = bgv_kernels(std::max(widest(mod), plain.bits), n);
    const u64* in = x.data();
    const std::uint8_t* add = kappa ? added.data() : nullptr;
    u64* res = out.data();
    const Halves wire(std::max(kappa, 1u), n);
    const unsigned up = 104 - kappa;
    nb::gil_scoped_release release;
    parallel_for(rows, threads, [&](std::size_t r) {
        std::vector<u64> hi(step), lo(step), more_hi(step), more_lo(step);
        for (std::size_t at = 0; at < n; at += step) {
            const std::size_t now = std::min(step, n - at);
            k.fraction(fractions.data(), l, in + r * l * n + at, n, hi.data(), lo.data(), now);
            if (kappa) {
                wire.read(add + r * size, at, now, more_hi.data(), more_lo.data());
                for (std::size_t i = 0; i < now; ++i) {
                    const u64 a = up < 52 ? (more_lo[i] << up) & kMask52 : 0;
                    const u64 b = up < 52 ? (more_hi[i] << up) | (more_lo[i] >> (52 - up)) : more_lo[i] << (up - 52);
                    lo[i] += a;
                    hi[i] = (hi[i] + b + (lo[i] >> 52)) & kMask52;
                    lo[i] &= kMask52;
                }
            }
            k.scale_to(to, hi.data(), lo.data(), res + r * n + at, now);
        }
    });
}

// words: (R, 2, N) random, overwritten; out: (R, L, N) = an integer uniform in [-2^(bits-1), 2^(bits-1)), mod each prime.
void wide_uniform(Words words, unsigned bits, const Primes& primes, Words out, int threads) {
    const std::size_t l = primes.size();
    require(words.ndim() == 3 && words.shape(1) == 2 && out.ndim() == 3 && out.shape(0) == words.shape(0) &&
                out.shape(1) == l && out.shape(2) == words.shape(2) && bits >= 1 && bits <= 104,
            "bgv_wide_uniform: expected words (R, 2, N) and out (R, L, N), bits <= 104");
    const auto mod = moduli_of(primes);
    const std::size_t rows = words.shape(0), n = words.shape(2);
    const BgvKernels& k = bgv_kernels(widest(mod), n);
    u64 *in = words.data(), *res = out.data();
    const u64 low = (u64{1} << std::min(bits, 52u)) - 1, high = (u64{1} << (std::max(bits, 52u) - 52)) - 1;
    nb::gil_scoped_release release;
    parallel_for(rows, threads, [&](std::size_t r) {
        u64 *lo = in + r * 2 * n, *hi = lo + n;
        for (std::size_t i = 0; i < n; ++i) lo[i] &= low, hi[i] &= high;
        for (std::size_t i = 0; i < l; ++i)
            k.wide(mod[i], mod[i].reduce128(u128{1} << (bits - 1)), hi, lo, res + (r * l + i) * n, n);
    });
}

}  // namespace

void register_bgv_wire(nb::module_& m);

void register_bgv(nb::module_& m) {
    register_bgv_wire(m);
    using namespace nb::literals;
    m.def("bgv_lift", &lift, "x"_a, "source"_a, "scale"_a, "targets"_a, "out"_a, "threads"_a = 1);
    m.def("bgv_decompose", &decompose, "ring"_a, "x"_a, "part"_a, "out"_a, "threads"_a = 1);
    m.def("bgv_key_product", &key_product, "digits"_a, "key"_a, "primes"_a, "out"_a, "accumulate"_a, "threads"_a = 1);
    m.def("bgv_mod_down", &mod_down, "ring"_a, "x"_a, "scales"_a, "more"_a, "out"_a, "threads"_a = 1);
    m.def("bgv_switch", &switch_many, "ring"_a, "digits"_a, "keys"_a, "elements"_a, "scales"_a, "more"_a, "parts"_a,
          "out"_a, "threads"_a = 1);
    m.def("bgv_tensor", &tensor, "a"_a, "b"_a, "primes"_a, "out"_a, "accumulate"_a, "threads"_a = 1);
    m.def("bgv_sub_scale", &sub_scale, "x"_a, "y"_a, "primes"_a, "scales"_a, "out"_a, "threads"_a = 1);
    m.def("bgv_round_pack", &round_pack, "x"_a, "primes"_a, "kappa"_a, "out"_a, "threads"_a = 1);
    m.def("bgv_unpack_lift", &unpack_lift, "data"_a, "kappa"_a, "primes"_a, "out"_a, "threads"_a = 1);
    m.def("bgv_scale_to_plain", &scale_to_plain, "x"_a, "primes"_a, "added"_a, "kappa"_a, "p"_a, "factor"_a, "out"_a,
          "threads"_a = 1);
    m.def("bgv_wide_uniform", &wide_uniform, "words"_a, "bits"_a, "primes"_a, "out"_a, "threads"_a = 1);
}
