// Ciphertexts whose coefficients are tokens: matrix products on their words, and the passes over rows of ciphertexts
// before and after them. Words are modulo 2^52; what travels is rounded to its upper bits.
//
// A polynomial of N coefficients lies in memory as c components of N/c tokens: the coefficient of X^(tc + k) is token t of
// component k, at k*(N/c) + t. Input features fill components; results are read from component 0.
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
using Components = nb::ndarray<const u64, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
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

// The two primes of exact products, just below 2^50, and what joins residues modulo both.
class Primes50 {
  public:
    Primes50(std::size_t n, const Primes& primes) {
        require(primes.size() == 1 || primes.size() == 2, "one or two primes");
        for (u64 q : primes) {
            require(q < (u64{1} << 50) && q > (u64{1} << 50) - (u64{1} << 40), "primes lie just below 2^50");
            plans_.push_back(ntt_plan(static_cast<u32>(n), q));
        }
        if (primes.size() == 2) inverse_ = plans_[1]->m.inverse(primes[0] % primes[1]);
    }
    std::size_t limbs() const { return plans_.size(); }
    const NttPlan& plan(std::size_t limb) const { return *plans_[limb]; }

    // n residues modulo each prime, one limb after the other, to centred integers modulo 2^64.
    void join(u64* residues, std::size_t n, u64* out) const {
        const Modulus& m0 = plans_[0]->m;
        if (limbs() == 1) {
            for (std::size_t i = 0; i < n; ++i) out[i] = residues[i] - (m0.q & (u64{0} - ((m0.q / 2 - residues[i]) >> 63)));
            return;
        }
        // r0 + q0 ((r1 - r0) / q0 mod q1), less q0 q1 in the upper half.
        const Modulus& m1 = plans_[1]->m;
        const RingKernels& kernels = ring_kernels(m1);
        const u64 half = m1.q / 2, all = m0.q * m1.q;
        u64 *r0 = residues, *r1 = residues + n;
        for (std::size_t i = 0; i < n; ++i) out[i] = cond_sub(r0[i], m1.q);
        kernels.sub(m1, r1, out, r1, n);
        kernels.mul_scalar(m1, r1, inverse_, r1, n);
        for (std::size_t i = 0; i < n; ++i) out[i] = r0[i] + m0.q * r1[i] - (all & (u64{0} - ((half - r1[i]) >> 63)));
    }

  private:
    std::vector<std::shared_ptr<const NttPlan>> plans_;
    u64 inverse_ = 0;
};

// Exact products in Z[X]/(X^N + 1), modulo 2^64, with a factor known in NTT form (limbs, N).
class Whole {
  public:
    Whole(const Source& factor, const Primes& primes, std::size_t components)
        : n_(factor.shape(1)), c_(components), factor_(factor.data()), primes_(n_, primes) {
        require(factor.shape(0) == primes_.limbs(), "a limb of the factor for each prime");
        require(c_ > 0 && n_ % c_ == 0, "components must divide the degree");
    }
    std::size_t n() const { return n_; }
    std::size_t limbs() const { return primes_.limbs(); }
    std::size_t scratch() const { return n_ * (limbs() + 2); }

    // load(q, out): the N residues modulo q of the other factor. The product is left in the first N words
    // of `work` (scratch() words, on a cache line); the others may be used after that.
    template <class Load>
    void product(const Load& load, u64* work) const {
        const std::size_t block = n_ / c_;
        u64* natural = work + (limbs() + 1) * n_;
        for (std::size_t l = 0; l < limbs(); ++l) {
            const NttPlan& plan = primes_.plan(l);
            const RingKernels& kernels = ring_kernels(plan.m);
            u64* limb = work + (l + 1) * n_;
            load(plan.m.q, limb);
            for (std::size_t t = 0; t < block; ++t)
                for (std::size_t k = 0; k < c_; ++k) natural[t * c_ + k] = limb[k * block + t];
            kernels.ntt(natural, plan);
            kernels.mul(plan.m, natural, factor_ + l * n_, limb, n_);
            kernels.intt(limb, plan);
        }
        primes_.join(work + n_, n_, natural);
        for (std::size_t k = 0; k < c_; ++k)
            for (std::size_t t = 0; t < block; ++t) work[k * block + t] = natural[t * c_ + k];
    }

  private:
    std::size_t n_, c_;
    const u64* factor_;
    Primes50 primes_;
};

// Component 0 of such products: sum_k a_k s'_k in Z[Y]/(Y^(N/c) + 1), Y = X^c, where s'_0 = s_0 and s'_k = Y s_(c-k) are
// known in NTT form (limbs, c, N/c). Short transforms, and one back instead of c.
class First {
  public:
    First(const Components& factor, const Primes& primes)
        : c_(factor.shape(1)), block_(factor.shape(2)), factor_(factor.data()), primes_(block_, primes) {
        require(factor.shape(0) == primes_.limbs() && c_ > 0, "a limb of the factor for each prime");
    }
    std::size_t n() const { return c_ * block_; }
    std::size_t block() const { return block_; }
    std::size_t limbs() const { return primes_.limbs(); }
    std::size_t scratch() const { return block_ * (limbs() + 1) + n(); }

    // As Whole::product, for the N/c tokens of component 0.
    template <class Load>
    void product(const Load& load, u64* work) const {
        u64* other = work + (limbs() + 1) * block_;
        for (std::size_t l = 0; l < limbs(); ++l) {
            const NttPlan& plan = primes_.plan(l);
            const RingKernels& kernels = ring_kernels(plan.m);
            u64* sum = work + (l + 1) * block_;
            load(plan.m.q, other);
            for (std::size_t k = 0; k < c_; ++k) {
                const u64* factor = factor_ + (l * c_ + k) * block_;
                kernels.ntt(other + k * block_, plan);
                if (k == 0)
                    kernels.mul(plan.m, other, factor, sum, block_);
                else
                    kernels.mul_add(plan.m, other + k * block_, factor, sum, block_);
            }
            kernels.intt(sum, plan);
        }
        primes_.join(work + block_, block_, work);
    }

  private:
    std::size_t c_, block_;
    const u64* factor_;
    Primes50 primes_;
};

// Loaders: 52-bit words; ternary coefficients from coins; the upper 40 bits of words, centred.
auto load_words(const u64* x, std::size_t n) {
    return [=](u64 q, u64* out) {
        const u64 gap = (u64{1} << 50) - q;
        for (std::size_t i = 0; i < n; ++i) {
            const u64 v = x[i] & kMask52;
            out[i] = cond_sub((v & ((u64{1} << 50) - 1)) + (v >> 50) * gap, q);
        }
    };
}
auto load_coins(const u32* coins, std::size_t n) {
    return [=](u64 q, u64* out) {
        for (std::size_t i = 0; i < n; ++i) {
            const i64 t = ternary(coins[i]);
            out[i] = static_cast<u64>(t) + (q & static_cast<u64>(t >> 63));
        }
    };
}
auto load_sent(const std::uint8_t* bytes, std::size_t n) {
    return [=](u64 q, u64* out) {
        for (std::size_t i = 0; i < n; ++i) {
            const u64 v = get40(bytes + kSentBytes * i), above = u64{0} - (v >> 39);
            out[i] = v + ((q - (u64{1} << 40)) & above);
        }
    };
}

template <class Factor, class Work>
void each_row(const Factor& by, std::size_t rows, int threads, const Work& work) {
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
                 std::size_t block, Words out, int threads) {
    require(block > 0 && secret.shape(1) % block == 0, "blocks must divide the degree");
    const std::size_t features = message.shape(0), n = message.shape(1), c = secret.shape(1) / block;
    const Whole by(secret, primes, c);
    require(by.limbs() == 2 && a.shape(1) == by.n(), "the product of words and a secret takes two limbs");
    require(a.shape(0) == (features + c - 1) / c && n > 0 && n <= block, "a polynomial for every c features, a block of tokens");
    require(noise.shape(0) == features && noise.shape(1) == n && out.shape(0) == features && out.shape(1) == n,
            "message, noise and out must be (features, n)");
    require(p > (u64{1} << 41) && p < (u64{1} << 44) && drop > 0 && drop < 12, "modulus or width out of range");
    nb::gil_scoped_release release;
    const u64 scale = static_cast<u64>((u128{1} << 104) / p), mask = (u64{1} << (52 - drop)) - 1;
    each_row(by, a.shape(0), threads, [&](std::size_t j, u64* work) {
        by.product(load_words(a.data() + j * by.n(), by.n()), work);
        for (std::size_t k = 0; k < c && j * c + k < features; ++k) {
            const std::size_t at = (j * c + k) * n;
            u64* to = out.data() + at;
            errors(noise.data() + at, to, n);
            for (std::size_t t = 0; t < n; ++t) {
                // 2^52 m / p, rounded but for ties within 2^-9.
                const u64 lifted = static_cast<u64>((u128{message.data()[at + t]} * scale + (u64{1} << 51)) >> 52);
                to[t] = ((lifted + to[t] - work[k * block + t] + (u64{1} << (drop - 1))) >> drop) & mask;
            }
        }
    });
}

void dense_hint(Source sums, Coins coins, Source key, const Primes& primes, Source noise, std::size_t block, Bytes out,
                int threads) {
    require(block > 0 && key.shape(1) % block == 0, "blocks must divide the degree");
    const Whole by(key, primes, key.shape(1) / block);
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

void dense_settle(Source sums, Coins coins, Components key, const Primes& primes, Source masks, Bytes out, int threads) {
    const First by(key, primes);
    const std::size_t rows = sums.shape(0), n = sums.shape(1);
    require(n <= by.block() && masks.shape(0) == rows && masks.shape(1) == n && coins.shape(0) == rows &&
                coins.shape(1) == by.n() && out.shape(0) == rows && out.shape(1) == kSentBytes * n,
            "sums and masks must be (rows, n), coins (rows, N), out (rows, 5 n), key (1 or 2, c, N/c)");
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

void dense_open(ByteSource hint, Components secret, const Primes& primes, ByteSource answer, Words out, int threads) {
    const First by(secret, primes);
    const std::size_t rows = out.shape(0), n = out.shape(1);
    require(by.limbs() == 1 && n <= by.block() && hint.shape(0) == rows && hint.shape(1) == kSentBytes * by.n() &&
                answer.shape(0) == rows && answer.shape(1) == kSentBytes * n,
            "hint must be (rows, 5 N), answer (rows, 5 n), out (rows, n), secret (1, c, N/c)");
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
          nb::arg("noise").noconvert(), "p"_a, "drop"_a, "block"_a, out, threads,
          "Upper 52 - drop bits of round(2^52 m / p) + e - a s: message (features, n) in the components of a (J, N).");
    m.def("dense_hint", &dense_hint, nb::arg("sums").noconvert(), nb::arg("coins").noconvert(), key, "primes"_a,
          nb::arg("noise").noconvert(), "block"_a, out, threads, "Upper 40 bits of sums + u key + e, u ternary from coins, five bytes each.");
    m.def("dense_settle", &dense_settle, nb::arg("sums").noconvert(), nb::arg("coins").noconvert(), key, "primes"_a,
          nb::arg("masks").noconvert(), out, threads,
          "Upper 40 bits of sums + 2^12 (u key) + masks for n tokens of component 0, key of 40 bits (one limb); or of sums +\n"
          "u key + masks, key of 52 bits (two limbs).");
    m.def("dense_open", &dense_open, nb::arg("hint").noconvert(), secret, "primes"_a, nb::arg("answer").noconvert(), out,
          threads, "answer + hint s modulo 2^40 for n tokens of component 0.");
    m.def("dense_store", &dense_store, nb::arg("words").noconvert(), "offset"_a, out,
          "40-bit words (rows, n) to bytes (n, width), transposed.");
    m.def("dense_scale", &dense_scale, nb::arg("words").noconvert(), "bits"_a, "p"_a, "negate"_a, out,
          "round(p x / 2^bits) modulo p, or its negative.");
}
