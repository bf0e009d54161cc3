// Ciphertexts whose coefficients are tokens: matrix products on their words, and the passes over rows of ciphertexts
// before and after them. Words are modulo 2^52; what travels is rounded to its upper bits.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <stdexcept>

#include "cpu.h"
#include "dense_kernels.h"
#include "module.h"
#include "ring_kernels.h"
#include "ring_pool.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Matrix = nb::ndarray<const std::int16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Source = nb::ndarray<const u64, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<u64, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Coins = nb::ndarray<const u32, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ByteSource = nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Primes = std::vector<u64>;

constexpr u64 kMask40 = (u64{1} << 40) - 1;
constexpr std::size_t kSentBytes = 5;  // a word's upper 40 bits

void require(bool fine, const char* complaint) {
    if (!fine) throw std::invalid_argument(complaint);
}

// A value modulo 2^52 to its upper 40 bits.
u64 upper40(u64 x) { return ((x + (1 << 11)) >> 12) & kMask40; }

void put40(std::uint8_t* to, u64 value) {
    const u32 low = static_cast<u32>(value);
    to[0] = static_cast<std::uint8_t>(low), to[1] = static_cast<std::uint8_t>(low >> 8);
    to[2] = static_cast<std::uint8_t>(low >> 16), to[3] = static_cast<std::uint8_t>(low >> 24);
    to[4] = static_cast<std::uint8_t>(value >> 32);
}

u64 get40(const std::uint8_t* from) {
    return u64{from[0]} | u64{from[1]} << 8 | u64{from[2]} << 16 | u64{from[3]} << 24 | u64{from[4]} << 32;
}

// Errors for a row of ciphertexts.
void errors(const u64* words, u64* out, std::size_t n) {
#if defined(__x86_64__)
    if (active_isa() == Isa::avx512) return dense_errors_avx512(words, out, n);
    if (active_isa() == Isa::avx2) return dense_errors_avx2(words, out, n);
#endif
    dense_errors_portable(words, out, n);
}

// Uniform in {-1, 0, 1} up to 2^-31.
i64 ternary(u32 coin) { return static_cast<i64>(u64{coin} * 3 >> 32) - 1; }

// Exact products in Z[X]/(X^n + 1), modulo 2^64, with one factor known in NTT form: its transforms modulo one prime
// just below 2^50, or two where the product needs more room. The other factor is small, or 52-bit words.
class Multiplier {
  public:
    Multiplier(const Source& factor, const Primes& primes) : n_(factor.shape(1)), factor_(factor.data()) {
        require(primes.size() == factor.shape(0) && (primes.size() == 1 || primes.size() == 2), "one or two limbs");
        for (u64 q : primes) {
            require(q < (u64{1} << 50) && q > (u64{1} << 50) - (u64{1} << 40), "primes lie just below 2^50");
            plans_.push_back(ntt_plan(static_cast<u32>(n_), q));
        }
        if (primes.size() == 2) inverse_ = plans_[1]->m.inverse(primes[0] % primes[1]);
    }
    std::size_t n() const { return n_; }
    std::size_t limbs() const { return plans_.size(); }
    std::size_t scratch() const { return n_ * (limbs() + 1); }

    // load(q, gap, limb): writes the n residues modulo q = 2^50 - gap. The product, centred and modulo 2^64, is left
    // in the first n words of `work` (scratch() words, on a cache line); the others may be used after that.
    template <class Load>
    void product(const Load& load, u64* work) const {
        for (std::size_t l = 0; l < limbs(); ++l) {
            const Modulus& m = plans_[l]->m;
            const RingKernels& kernels = ring_kernels(m);
            u64* limb = work + (l + 1) * n_;
            load(m.q, (u64{1} << 50) - m.q, limb);
            kernels.ntt(limb, *plans_[l]);
            kernels.mul(m, limb, factor_ + l * n_, limb, n_);
            kernels.intt(limb, *plans_[l]);
        }
        limbs() == 1 ? centre(work) : combine(work);
    }

  private:
    void centre(u64* work) const {
        const u64 q = plans_[0]->m.q;
        const u64* x = work + n_;
        for (std::size_t i = 0; i < n_; ++i) work[i] = x[i] - (q & (u64{0} - ((q / 2 - x[i]) >> 63)));
    }
    // x = r0 + q0 ((r1 - r0) / q0 mod q1), less q0 q1 in the upper half.
    void combine(u64* work) const {
        const Modulus &m0 = plans_[0]->m, &m1 = plans_[1]->m;
        const RingKernels& kernels = ring_kernels(m1);
        const u64 *r0 = work + n_, half = m1.q / 2, all = m0.q * m1.q;
        u64* r1 = work + 2 * n_;
        for (std::size_t i = 0; i < n_; ++i) work[i] = cond_sub(r0[i], m1.q);
        kernels.sub(m1, r1, work, r1, n_);
        kernels.mul_scalar(m1, r1, inverse_, r1, n_);
        for (std::size_t i = 0; i < n_; ++i) work[i] = r0[i] + m0.q * r1[i] - (all & (u64{0} - ((half - r1[i]) >> 63)));
    }
    std::size_t n_;
    const u64* factor_;
    std::vector<std::shared_ptr<const NttPlan>> plans_;
    u64 inverse_ = 0;
};

// Loaders: 52-bit words; ternary coefficients from coins; the upper 40 bits of words, centred.
auto load_words(const u64* x, std::size_t n) {
    return [=](u64 q, u64 gap, u64* out) {
        for (std::size_t i = 0; i < n; ++i) {
            const u64 v = x[i] & kMask52;
            out[i] = cond_sub((v & ((u64{1} << 50) - 1)) + (v >> 50) * gap, q);
        }
    };
}
auto load_coins(const u32* coins, std::size_t n) {
    return [=](u64 q, u64, u64* out) {
        for (std::size_t i = 0; i < n; ++i) {
            const i64 t = ternary(coins[i]);
            out[i] = static_cast<u64>(t) + (q & static_cast<u64>(t >> 63));
        }
    };
}
auto load_sent(const std::uint8_t* bytes, std::size_t n) {
    return [=](u64 q, u64, u64* out) {
        for (std::size_t i = 0; i < n; ++i) {
            const u64 v = get40(bytes + kSentBytes * i), above = u64{0} - (v >> 39);
            out[i] = v + ((q - (u64{1} << 40)) & above);
        }
    };
}

template <class Work>
void each_row(const Multiplier& by, std::size_t rows, int threads, const Work& work) {
    const std::size_t step = 8;
    parallel_for((rows + step - 1) / step, threads, [&](std::size_t task) {
        AlignedWords scratch(by.scratch());
        for (std::size_t r = task * step; r < rows && r < (task + 1) * step; ++r) work(r, scratch.data());
    });
}

void dense_matmul(Matrix w, std::size_t first, Source x, Words out, bool accumulate, int threads) {
    const std::size_t rows = w.shape(0), stride = w.shape(1), depth = x.shape(0), cols = x.shape(1);
    require(first <= stride && depth <= stride - first, "the words have more rows than the matrix has columns left");
    require(out.shape(0) == rows && out.shape(1) == cols, "shapes must be w (d_out, d_in), x (k, n), out (d_out, n)");
    if (!depth) throw std::invalid_argument("a product needs at least one row of words");
    nb::gil_scoped_release release;
    void (*block)(const DenseBlock&) = dense_block_portable;
#if defined(__x86_64__)
    if (active_isa() == Isa::avx2) block = dense_block_avx2;
    if (active_isa() == Isa::avx512) block = dense_block_avx512;
#endif
    const std::size_t panels = (cols + kPanel - 1) / kPanel, padded = panels * kPanel;
    // Panels in blocks of kDenseDepth rows: block k at k*kDenseDepth*padded, its panel p at p*kPanel*(rows in the block).
    AlignedWords packed(depth * padded);
    const std::size_t blocks = (depth + kDenseDepth - 1) / kDenseDepth;
    const auto rows_in = [&](std::size_t k) { return k + 1 < blocks ? kDenseDepth : depth - k * kDenseDepth; };
    parallel_for(blocks * panels, threads, [&](std::size_t task) {
        const std::size_t k = task / panels, p = task % panels, count = rows_in(k);
        u64* to = packed.data() + k * kDenseDepth * padded + p * kPanel * count;
        const std::size_t width = cols - p * kPanel < kPanel ? cols - p * kPanel : kPanel;
        for (std::size_t i = 0; i < count; ++i)
            std::memcpy(to + i * kPanel, x.data() + (k * kDenseDepth + i) * cols + p * kPanel, width * sizeof(u64));
    });
    // A group of panels stays in the second-level cache while all rows of a task pass over it.
    const std::size_t group = 4, groups = (panels + group - 1) / group, step = 192, chunks = (rows + step - 1) / step;
    parallel_for(groups * chunks, threads, [&](std::size_t task) {
        const std::size_t g = task / chunks * group, r = task % chunks * step;
        for (std::size_t k = 0; k < blocks; ++k) {
            DenseBlock b{};
            b.w = w.data() + r * stride + first + k * kDenseDepth;
            b.w_stride = stride;
            b.rows = rows - r < step ? rows - r : step;
            b.depth = rows_in(k);
            b.panels = packed.data() + k * kDenseDepth * padded + g * kPanel * b.depth;
            b.out = out.data() + r * cols + g * kPanel;
            b.stride = cols;
            b.cols = cols - g * kPanel < group * kPanel ? cols - g * kPanel : group * kPanel;
            b.fresh = k == 0 && !accumulate;
            block(b);
        }
    });
}

void dense_fresh(Source a, Source secret, const Primes& primes, Source message, Source noise, u64 p, unsigned drop,
                 Words out, int threads) {
    const Multiplier by(secret, primes);
    const std::size_t features = message.shape(0), n = message.shape(1);
    require(by.limbs() == 2 && a.shape(1) == by.n(), "the product of words and a secret takes two limbs");
    require(a.shape(0) > 0 && features <= a.shape(0) * by.n(), "too few polynomials");
    const std::size_t blocks = (features + a.shape(0) - 1) / a.shape(0), block = by.n() / blocks;
    require(block * blocks == by.n() && n > 0 && n <= block, "tokens must fit a block, and blocks fill a polynomial");
    require(noise.shape(0) == features && noise.shape(1) == n && out.shape(0) == features && out.shape(1) == n,
            "message, noise and out must be (features, n)");
    require(p > (u64{1} << 41) && p < (u64{1} << 44) && drop > 0 && drop < 12, "modulus or width out of range");
    nb::gil_scoped_release release;
    const u64 scale = static_cast<u64>((u128{1} << 104) / p), mask = (u64{1} << (52 - drop)) - 1;
    each_row(by, a.shape(0), threads, [&](std::size_t j, u64* work) {
        by.product(load_words(a.data() + j * by.n(), by.n()), work);
        for (std::size_t b = 0; b < blocks && j * blocks + b < features; ++b) {
            const std::size_t at = (j * blocks + b) * n;
            u64* to = out.data() + at;
            errors(noise.data() + at, to, n);
            for (std::size_t t = 0; t < n; ++t) {
                // 2^52 m / p, rounded but for ties within 2^-9.
                const u64 lifted = static_cast<u64>((u128{message.data()[at + t]} * scale + (u64{1} << 51)) >> 52);
                to[t] = ((lifted + to[t] - work[b * block + t] + (u64{1} << (drop - 1))) >> drop) & mask;
            }
        }
    });
}

void dense_hint(Source sums, Coins coins, Source key, const Primes& primes, Source noise, Bytes out, int threads) {
    const Multiplier by(key, primes);
    const std::size_t rows = sums.shape(0), n = by.n();
    require(by.limbs() == 2 && sums.shape(1) == n && noise.shape(0) == rows && noise.shape(1) == n &&
                coins.shape(0) == rows && coins.shape(1) == n && out.shape(0) == rows && out.shape(1) == kSentBytes * n,
            "sums, coins and noise must be (rows, N), out (rows, 5 N), key (2, N)");
    nb::gil_scoped_release release;
    each_row(by, rows, threads, [&](std::size_t r, u64* work) {
        by.product(load_coins(coins.data() + r * n, n), work);
        const u64* sum = sums.data() + r * n;
        std::uint8_t* to = out.data() + r * kSentBytes * n;
        errors(noise.data() + r * n, work + n, n);
        for (std::size_t i = 0; i < n; ++i) put40(to + kSentBytes * i, upper40(sum[i] + work[i] + work[n + i]));
    });
}

void dense_settle(Source sums, Coins coins, Source key, const Primes& primes, Source masks, Bytes out, int threads) {
    const Multiplier by(key, primes);
    const std::size_t rows = sums.shape(0), n = sums.shape(1);
    require(n <= by.n() && masks.shape(0) == rows && masks.shape(1) == n && coins.shape(0) == rows &&
                coins.shape(1) == by.n() && out.shape(0) == rows && out.shape(1) == kSentBytes * n,
            "sums and masks must be (rows, n), coins (rows, N), out (rows, 5 n), key (1 or 2, N)");
    // One limb has room for the upper 40 bits of the key, two for all of it.
    const unsigned shift = by.limbs() == 1 ? 12 : 0;
    nb::gil_scoped_release release;
    each_row(by, rows, threads, [&](std::size_t r, u64* work) {
        by.product(load_coins(coins.data() + r * by.n(), by.n()), work);
        const u64 *sum = sums.data() + r * n, *mask = masks.data() + r * n;
        std::uint8_t* to = out.data() + r * kSentBytes * n;
        for (std::size_t t = 0; t < n; ++t) put40(to + kSentBytes * t, upper40(sum[t] + (work[t] << shift) + mask[t]));
    });
}

void dense_open(ByteSource hint, Source secret, const Primes& primes, ByteSource answer, Words out, int threads) {
    const Multiplier by(secret, primes);
    const std::size_t rows = out.shape(0), n = out.shape(1);
    require(by.limbs() == 1 && n <= by.n() && hint.shape(0) == rows && hint.shape(1) == kSentBytes * by.n() &&
                answer.shape(0) == rows && answer.shape(1) == kSentBytes * n,
            "hint must be (rows, 5 N), answer (rows, 5 n), out (rows, n), secret (1, N)");
    nb::gil_scoped_release release;
    each_row(by, rows, threads, [&](std::size_t r, u64* work) {
        by.product(load_sent(hint.data() + r * kSentBytes * by.n(), by.n()), work);
        const std::uint8_t* from = answer.data() + r * kSentBytes * n;
        for (std::size_t t = 0; t < n; ++t) out.data()[r * n + t] = (work[t] + get40(from + kSentBytes * t)) & kMask40;
    });
}

// 40-bit words (rows, n) into a token-major store: token t's row begins at byte t*width, this block at `offset` in it.
void dense_store(Source words, std::size_t offset, Bytes out) {
    const std::size_t rows = words.shape(0), n = words.shape(1), width = out.shape(1);
    require(out.shape(0) == n && offset + kSentBytes * rows <= width, "out must be (n, bytes) with room at the offset");
    nb::gil_scoped_release release;
    constexpr std::size_t kTile = 16;
    for (std::size_t first = 0; first < n; first += kTile)
        for (std::size_t r = 0; r < rows; ++r)
            for (std::size_t t = first; t < n && t < first + kTile; ++t)
                put40(out.data() + t * width + offset + kSentBytes * r, words.data()[r * n + t]);
}

// out = round(p x / 2^bits) mod p, or its negative.
void dense_scale(Source words, unsigned bits, u64 p, bool negate, Words out) {
    require(bits > 0 && bits <= 52 && p > 1 && p < (u64{1} << 60), "modulus or width out of range");
    require(out.shape(0) == words.shape(0) && out.shape(1) == words.shape(1), "out must have the shape of the words");
    nb::gil_scoped_release release;
    const u64 mask = (u64{1} << bits) - 1;
    for (std::size_t i = 0; i < words.size(); ++i) {
        const u64 x = words.data()[i] & mask;
        const u64 y = cond_sub(static_cast<u64>((u128{x} * p + (u64{1} << (bits - 1))) >> bits), p);
        out.data()[i] = negate ? cond_sub(p - y, p) : y;
    }
}

}  // namespace

void register_dense(nb::module_& m) {
    auto out = nb::arg("out").noconvert(), key = nb::arg("key").noconvert(), secret = nb::arg("secret").noconvert();
    auto threads = nb::arg("threads") = 1;
    m.def("dense_matmul", &dense_matmul, nb::arg("w").noconvert(), "first"_a, nb::arg("x").noconvert(), out,
          "accumulate"_a, threads, "out (d_out, n) (+)= w[:, first : first + k] times x (k, n), words modulo 2^52.");
    m.def("dense_fresh", &dense_fresh, nb::arg("a").noconvert(), secret, "primes"_a, nb::arg("message").noconvert(),
          nb::arg("noise").noconvert(), "p"_a, "drop"_a, out, threads,
          "Upper 52 - drop bits of round(2^52 m / p) + e - a s: message (features, n) in blocks of a (J, N).");
    m.def("dense_hint", &dense_hint, nb::arg("sums").noconvert(), nb::arg("coins").noconvert(), key, "primes"_a,
          nb::arg("noise").noconvert(), out, threads, "Upper 40 bits of sums + u key + e, u ternary from coins, five bytes each.");
    m.def("dense_settle", &dense_settle, nb::arg("sums").noconvert(), nb::arg("coins").noconvert(), key, "primes"_a,
          nb::arg("masks").noconvert(), out, threads,
          "Upper 40 bits of sums + 2^12 (u key) + masks for the first n coefficients, key of 40 bits (one limb); or of sums +\n"
          "u key + masks, key of 52 bits (two limbs).");
    m.def("dense_open", &dense_open, nb::arg("hint").noconvert(), secret, "primes"_a, nb::arg("answer").noconvert(), out,
          threads, "answer + hint s modulo 2^40 for the first n coefficients.");
    m.def("dense_store", &dense_store, nb::arg("words").noconvert(), "offset"_a, out,
          "40-bit words (rows, n) to bytes (n, width), transposed.");
    m.def("dense_scale", &dense_scale, nb::arg("words").noconvert(), "bits"_a, "p"_a, "negate"_a, out,
          "round(p x / 2^bits) modulo p, or its negative.");
}
