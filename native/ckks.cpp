// Kernels of CKKS: hybrid key switching in its three steps, with keys whose uniform half is expanded on the fly. Inner
// loops are in ckks_portable.cpp and ckks_avx512.cpp; those that BGV has too are taken from there.
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "aes.h"
#include "bgv_kernels.h"
#include "ckks_kernels.h"
#include "module.h"
#include "ring.h"

namespace {

// Rows of n words next to each other in the last two axes; leading axes may be strided (a ciphertext of a lower level).
using View = nb::ndarray<const u64, nb::device::cpu>;
using Bytes = nb::ndarray<const std::uint8_t, nb::c_contig, nb::device::cpu>;

constexpr std::size_t kSeed = 16;                 // bytes of an expansion key
constexpr u64 kRetry = u64{1} << 32;              // blocks between the words of one attempt and those of the next

void require(bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(what);
}

bool rows_contiguous(const View& x) {
    const std::size_t d = x.ndim();
    return (x.shape(d - 1) == 1 || x.stride(d - 1) == 1) &&
           (x.shape(d - 2) == 1 || x.stride(d - 2) == static_cast<i64>(x.shape(d - 1)));
}

// Memory of one thread for one purpose, kept between calls: fresh pages would cost more than the work on them. On huge pages,
// since rows a multiple of 4 KiB apart are read side by side.
class Workspace {
  public:
    Workspace() = default;
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
    ~Workspace() { release(); }
    u64* words(std::size_t count) {
        if (held_ < count) {
            release();
            at_ = static_cast<u64*>(::operator new(count * sizeof(u64), kHuge));
            held_ = count;
#if defined(__linux__)
            if (count * sizeof(u64) >= static_cast<std::size_t>(kHuge)) madvise(at_, count * sizeof(u64), MADV_HUGEPAGE);
#endif
        }
        return at_;
    }

  private:
    static constexpr std::align_val_t kHuge{std::size_t{2} << 20};
    void release() {
        if (at_) ::operator delete(at_, kHuge);
        at_ = nullptr, held_ = 0;
    }
    u64* at_ = nullptr;
    std::size_t held_ = 0;
};

u64* scratch(std::size_t words) {  // of the calling thread, read by its helpers
    thread_local Workspace held;
    return held.words(words);
}

std::vector<Modulus> moduli_of(const Ring& r, std::size_t first, std::size_t last) {
    std::vector<Modulus> out;
    for (std::size_t l = first; l < last; ++l) {
        require(r.limbs[l]->m.bits <= 50, "key switching takes primes below 2^50");
        out.push_back(r.limbs[l]->m);
    }
    return out;
}

std::size_t chunk_of(std::size_t n) { return std::min(n, kConvertChunk); }

// Rows that one task converts: each run of the inputs is read from memory once for all of them, and the transforms find
// the tables of their primes where the task before (another digit, the same rows) left them.
constexpr std::size_t kGroup = 6;

struct Row {
    std::size_t target;
    u64* out;
};

// Some rows of a conversion; y and v are complete.
void convert_rows(const CkksKernels& k, const BaseConversion& c, const u64* y, const u64* v, const Row* rows, std::size_t count,
                  std::size_t n) {
    const std::size_t step = chunk_of(n);
    for (std::size_t at = 0; at < n; at += step)
        for (std::size_t r = 0; r < count; ++r)
            k.convert(c.to[rows[r].target], c.weights.data() + rows[r].target * c.terms(), c.from.size(), y + at, n, v + at,
                      rows[r].out + at, step);
}

void overflow_row(const CkksKernels& k, const BaseConversion& c, const u64* y, u64* v, std::size_t n) {
    const std::size_t step = chunk_of(n);
    for (std::size_t at = 0; at < n; at += step) k.overflow(c, y + at, n, v + at, step);
}

// NTT form modulo p_i -> y_i = coefficients times (P/p_i)^-1.
void to_fractions(const Ring& r, std::size_t limb, const BaseConversion::From& from, const u64* x, u64* y) {
    const RingKernels& k = ring_kernels(from.m);
    std::memcpy(y, x, r.n * sizeof(u64));
    k.intt(y, *r.limbs[limb]);
    k.mul_scalar(from.m, y, from.scale, y, r.n);
}

// x: (L, N) NTT form, the component to be switched. out: (D, L + K, N): digit d is x modulo the primes [d alpha, (d+1) alpha),
// centred, modulo every prime of the ring (L chain primes, then K special ones).
void decompose(const Ring& ring, View x, std::size_t alpha, Words out, int threads) {
    require(x.ndim() == 2 && x.shape(1) == ring.n && rows_contiguous(x) && x.shape(0) < ring.size() && alpha > 0,
            "ckks_decompose: expected x (L, N), contiguous, and a ring with special primes");
    const std::size_t limbs = x.shape(0), all = ring.size(), n = ring.n, digits = (limbs + alpha - 1) / alpha;
    require(out.ndim() == 3 && out.shape(0) == digits && out.shape(1) == all && out.shape(2) == n,
            "ckks_decompose: expected out (D, L + K, N)");
    const CkksKernels& k = ckks_kernels(50, n);
    const auto to = moduli_of(ring, 0, all);
    std::vector<BaseConversion> conversions;
    for (std::size_t d = 0; d < digits; ++d)
        conversions.emplace_back(moduli_of(ring, d * alpha, std::min(limbs, (d + 1) * alpha)), to);
    const u64* in = x.data();
    u64* res = out.data();
    nb::gil_scoped_release release;
    u64* y = scratch((limbs + digits) * n);
    u64* v = y + limbs * n;
    parallel_for(limbs, threads, [&](std::size_t l) {
        to_fractions(ring, l, conversions[l / alpha].from[l % alpha], in + l * n, y + l * n);
    });
    parallel_for(digits, threads, [&](std::size_t d) { overflow_row(k, conversions[d], y + d * alpha * n, v + d * n, n); });
    const std::size_t groups = (all + kGroup - 1) / kGroup;
    parallel_for(groups * digits, threads, [&](std::size_t task) {
        const std::size_t d = task % digits, first = task / digits * kGroup;
        Row rows[kGroup];
        std::size_t count = 0;
        for (std::size_t t = first; t < std::min(all, first + kGroup); ++t) {
            u64* row = res + (d * all + t) * n;
            if (t < limbs && t / alpha == d)  // modulo its own primes the digit is x itself
                std::memcpy(row, in + t * n, n * sizeof(u64));
            else
                rows[count++] = {t, row};
        }
        convert_rows(k, conversions[d], y + d * alpha * n, v + d * n, rows, count, n);
        for (std::size_t r = 0; r < count; ++r) ring_kernels(to[rows[r].target]).ntt(rows[r].out, *ring.limbs[rows[r].target]);
    });
}

// Uniform residues of positions [begin, begin + n) under an AES-128 key: the low 52 bits of word i of counter blocks 0, 1, ...
// modulo q, or, if they lie in the last incomplete multiple of q below 2^52, of word i of the blocks kRetry further, and so
// on. Left as `narrow_words` leaves them: small enough for a product, not reduced.
struct Expansion {
    const Modulus& m;
    const CkksKernels& k;
    const std::uint8_t* key;

    static void words(const std::uint8_t* key, u64 block, u64* out, std::size_t n) {
        aes_kernels().ctr(key, 1, block, n / 2, reinterpret_cast<std::uint8_t*>(out));
    }
    u64 again(std::size_t i) const {
        const u64 last = m.inv52 * m.q;
        for (u64 attempt = 1;; ++attempt) {
            u64 pair[2];
            words(key, attempt * kRetry + i / 2, pair, 2);
            if ((pair[i % 2] & kMask52) < last) return m.reduce64(pair[i % 2] & kMask52);
        }
    }
    void fill(std::size_t begin, u64* out, std::size_t n) const {
        alignas(64) u64 raw[kConvertChunk];
        words(key, begin / 2, raw, n);
        if (!k.narrow_words(m, raw, out, n)) return;
        const u64 last = m.inv52 * m.q;
        for (std::size_t i = 0; i < n; ++i)
            if ((raw[i] & kMask52) >= last) out[i] = again(begin + i);
    }
};

// keys: (R, 16), out: (R, N); row r modulo primes[r mod count].
void expand(Bytes keys, const std::vector<u64>& primes, Words out, int threads) {
    require(keys.ndim() == 2 && keys.shape(1) == kSeed && out.ndim() == 2 && out.shape(0) == keys.shape(0) &&
                !primes.empty() && out.shape(1) % 2 == 0 && (out.shape(1) & (out.shape(1) - 1)) == 0,
            "ckks_expand: expected keys (R, 16) and out (R, N), N a power of two");
    std::vector<Modulus> moduli;
    for (u64 q : primes) {
        require(q > 2 && q < u64{1} << 50, "ckks_expand: every prime must be below 2^50");
        moduli.emplace_back(q);
    }
    const std::size_t rows = keys.shape(0), n = out.shape(1), step = chunk_of(n);
    const CkksKernels& k = ckks_kernels(50, n);
    const std::uint8_t* key = keys.data();
    u64* res = out.data();
    nb::gil_scoped_release release;
    parallel_for(rows, threads, [&](std::size_t r) {
        const Expansion e{moduli[r % moduli.size()], k, key + r * kSeed};
        for (std::size_t at = 0; at < n; at += step) e.fill(at, res + r * n + at, step);
        ring_kernels(e.m).mul_scalar(e.m, res + r * n, 1, res + r * n, n);
    });
}

// The keys of several switches: stored halves b (D', L' + K, N) and expansion keys of the uniform halves a (D', L' + K, 16).
struct Keys {
    std::vector<Source> b;
    std::vector<Bytes> a;
    std::vector<std::shared_ptr<const std::vector<u32>>> positions;  // of the automorphism, null for none
    Keys(nb::list halves, nb::list seeds, const std::vector<u64>& elements, const Ring& r, std::size_t count) {
        require(nb::len(halves) == elements.size() && nb::len(seeds) == elements.size(), "one element for each key is needed");
        for (std::size_t s = 0; s < elements.size(); ++s) {
            b.push_back(nb::cast<Source>(halves[s], false));
            a.push_back(nb::cast<Bytes>(seeds[s], false));
            require(b[s].ndim() == 3 && b[s].shape(0) >= count && b[s].shape(1) >= r.size() && b[s].shape(2) == r.n,
                    "ckks_key_products: a key is of a lower level than the digits");
            require(a[s].ndim() == 3 && a[s].shape(0) == b[s].shape(0) && a[s].shape(1) == b[s].shape(1) && a[s].shape(2) == kSeed,
                    "ckks_key_products: expected one expansion key for every row of a key");
            positions.push_back(elements[s] == 1 ? nullptr : automorphism_positions(r.n, elements[s]));
        }
    }
};

// digits: (D, L + K, N) at a level of L chain primes. out: (S, 2, L + K, N) = (accumulate ? out : 0) + the automorphism
// X -> X^elements[s] of [sum_d digit_d * key_d + more]. more: (C, L, N), times P, or (C, L + K, N), as it is; C <= 2.
void key_products(const Ring& r, Source digits, nb::list halves, nb::list seeds, std::size_t special, View more,
                  const std::vector<u64>& elements, bool accumulate, Words out, int threads) {
    require(digits.ndim() == 3 && digits.shape(1) == r.size() && digits.shape(2) == r.n && special < r.size(),
            "ckks_key_products: expected digits (D, L + K, N)");
    const std::size_t count = digits.shape(0), all = r.size(), n = r.n, limbs = all - special, steps = elements.size();
    const Keys keys(halves, seeds, elements, r, count);
    require(out.ndim() == 4 && out.shape(0) == steps && out.shape(1) == 2 && out.shape(2) == all && out.shape(3) == n,
            "ckks_key_products: expected out (S, 2, L + K, N)");
    const std::size_t extra = more.ndim() == 3 ? more.shape(0) : 0, extra_limbs = extra ? more.shape(1) : 0;
    require(!extra || (extra <= 2 && (extra_limbs == limbs || extra_limbs == all) && more.shape(2) == n && rows_contiguous(more)),
            "ckks_key_products: expected more (C, L, N) or (C, L + K, N)");
    const auto moduli = moduli_of(r, 0, all);
    std::vector<u64> factor(all, 1);  // P, where `more` lacks it
    if (extra_limbs == limbs)
        for (std::size_t t = 0; t < limbs; ++t)
            for (std::size_t i = limbs; i < all; ++i) factor[t] = moduli[t].mul(factor[t], moduli[t].reduce64(moduli[i].q));
    const CkksKernels& k = ckks_kernels(50, n);
    const std::size_t step = chunk_of(n), plus_stride = extra > 1 ? static_cast<std::size_t>(more.stride(0)) : 0;
    const u64 *in = digits.data(), *plus = extra ? more.data() : nullptr;
    u64* res = out.data();
    nb::gil_scoped_release release;
    // The keys of one row follow each other, so that its digits come from a cache.
    parallel_for(all * steps, threads, [&](std::size_t task) {
        const std::size_t t = task / steps, s = task % steps, rows = keys.b[s].shape(1), row = t < limbs ? t : rows - all + t;
        const Modulus& m = moduli[t];
        const RingKernels& ring = ring_kernels(m);
        const u64* half = keys.b[s].data();
        const std::uint8_t* seed = keys.a[s].data();
        const bool direct = !keys.positions[s] && !accumulate;
        thread_local Workspace turning, expanding;
        u64 *work = turning.words(3 * n), *uniform = expanding.words(count * step);
        u64* to[2];
        for (std::size_t c = 0; c < 2; ++c) to[c] = direct ? res + ((s * 2 + c) * all + t) * n : work + c * n;
        for (std::size_t at = 0; at < n; at += step) {
            for (std::size_t d = 0; d < count; ++d)
                Expansion{m, k, seed + (d * rows + row) * kSeed}.fill(at, uniform + d * step, step);
            const u64* digit = in + t * n + at;
            k.key_run(m, {digit, all * n, half + row * n + at, rows * n, uniform, step, to[0] + at, to[1] + at, count, step,
                          at + step < n ? step : 0});
            for (std::size_t c = 0; c < (t < extra_limbs ? extra : 0); ++c) {
                const u64* add = plus + c * plus_stride + t * n + at;
                if (factor[t] != 1) {
                    ring.mul_scalar(m, add, factor[t], uniform, step);
                    add = uniform;
                }
                ring.add(m, to[c] + at, add, to[c] + at, step);
            }
        }
        for (std::size_t c = 0; c < 2 && !direct; ++c) {
            u64 *final = res + ((s * 2 + c) * all + t) * n, *turned = accumulate ? work + 2 * n : final;
            if (keys.positions[s])
                ring.permute(to[c], keys.positions[s]->data(), turned, n);
            else
                turned = to[c];
            if (accumulate) ring.add(m, final, turned, final, n);
        }
    });
}

// x: (C, kept + dropped, N) NTT form modulo the primes of the ring, in this order -> out (C, kept, N): x divided by the product
// of the dropped primes and rounded, plus `more` (C', kept, N) on the first C' components, then X -> X^element.
void mod_down(const Ring& r, View x, View more, u64 element, Words out, int threads) {
    require(x.ndim() == 3 && x.shape(1) == r.size() && x.shape(2) == r.n && rows_contiguous(x) && out.ndim() == 3 &&
                out.shape(0) == x.shape(0) && out.shape(1) < r.size() && out.shape(1) > 0 && out.shape(2) == r.n,
            "ckks_mod_down: expected x (C, L + K, N) and out (C, L, N)");
    const std::size_t parts = x.shape(0), all = r.size(), kept = out.shape(1), dropped = all - kept, n = r.n;
    const std::size_t extra = more.ndim() == 3 ? more.shape(0) : 0;
    require(!extra || (extra <= parts && more.shape(1) == kept && more.shape(2) == n && rows_contiguous(more)),
            "ckks_mod_down: expected more (C' <= C, L, N)");
    const auto positions = element == 1 ? nullptr : automorphism_positions(r.n, element);
    const BaseConversion c(moduli_of(r, kept, all), moduli_of(r, 0, kept));
    std::vector<u64> inverses;
    for (std::size_t l = 0; l < kept; ++l) inverses.push_back(c.to[l].inverse(c.to[l].neg(c.weights[l * c.terms() + dropped])));
    const CkksKernels& k = ckks_kernels(50, n);
    const BgvKernels& bgv = bgv_kernels(50, n);
    const u64 *in = x.data(), *plus = extra ? more.data() : nullptr;
    const std::size_t stride = parts > 1 ? static_cast<std::size_t>(x.stride(0)) : 0;
    const std::size_t plus_stride = extra > 1 ? static_cast<std::size_t>(more.stride(0)) : 0;
    u64* res = out.data();
    nb::gil_scoped_release release;
    u64* y = scratch(parts * (dropped + 1) * n);
    u64* v = y + parts * dropped * n;
    parallel_for(parts * dropped, threads, [&](std::size_t task) {
        const std::size_t part = task / dropped, i = task % dropped;
        to_fractions(r, kept + i, c.from[i], in + part * stride + (kept + i) * n, y + task * n);
    });
    parallel_for(parts, threads, [&](std::size_t part) { overflow_row(k, c, y + part * dropped * n, v + part * n, n); });
    const std::size_t groups = (kept + kGroup - 1) / kGroup;
    parallel_for(groups * parts, threads, [&](std::size_t task) {
        const std::size_t part = task % parts, first = task / parts * kGroup, count = std::min(kGroup, kept - first);
        thread_local Workspace turning;
        u64* turned = positions ? turning.words(kGroup * n) : nullptr;
        Row rows[kGroup];
        for (std::size_t i = 0; i < count; ++i)
            rows[i] = {first + i, positions ? turned + i * n : res + (part * kept + first + i) * n};
        convert_rows(k, c, y + part * dropped * n, v + part * n, rows, count, n);
        for (std::size_t i = 0; i < count; ++i) {
            const std::size_t l = first + i;
            u64* row = rows[i].out;
            ring_kernels(c.to[l]).ntt(row, *r.limbs[l]);
            const u64* add = part < extra ? plus + part * plus_stride + l * n : nullptr;
            bgv.sub_scale(c.to[l], in + part * stride + l * n, row, inverses[l], add, row, n);
            if (positions) ring_kernels(c.to[l]).permute(row, positions->data(), res + (part * kept + l) * n, n);
        }
    });
}

// a, b: (2, L, N) NTT form; out: (3, L, N), their product. a and b may be the same array.
void tensor(const Ring& r, View a, View b, Words out, int threads) {
    const auto ok = [&](const View& x) {
        return x.ndim() == 3 && x.shape(0) == 2 && x.shape(1) == r.size() && x.shape(2) == r.n && rows_contiguous(x);
    };
    require(ok(a) && ok(b) && out.ndim() == 3 && out.shape(0) == 3 && out.shape(1) == r.size() && out.shape(2) == r.n,
            "ckks_tensor: expected a, b (2, L, N) and out (3, L, N)");
    const std::size_t n = r.n, size = r.words(), step = chunk_of(n), chunks = n / step;
    const auto moduli = moduli_of(r, 0, r.size());
    const BgvKernels& k = bgv_kernels(50, step);
    const u64 *x = a.data(), *y = b.data();
    const std::size_t sx = static_cast<std::size_t>(a.stride(0)), sy = static_cast<std::size_t>(b.stride(0));
    u64* res = out.data();
    nb::gil_scoped_release release;
    parallel_for(r.size() * chunks, threads, [&](std::size_t t) {
        const std::size_t l = t / chunks, at = l * n + t % chunks * step;
        const auto part = [&](std::size_t u, std::size_t v, bool add) {
            k.dot(moduli[l], {x + u * sx + at, 0, y + v * sy + at, 0, res + (u + v) * size + at, 1, step, add});
        };
        part(0, 0, false), part(0, 1, false), part(1, 0, true), part(1, 1, false);
    });
}

// x: (S, L, N) and a plaintext (L, M) whose every value stands for N/M neighbours -> out (S, L, N) = x, with the plaintext
// added to its first component.
void add_plain(const Ring& r, View x, Source plain, Words out, int threads) {
    require(x.ndim() == 3 && x.shape(0) > 0 && x.shape(1) == r.size() && x.shape(2) == r.n && rows_contiguous(x) &&
                plain.ndim() == 2 && plain.shape(0) == r.size() && plain.shape(1) > 0 && r.n % plain.shape(1) == 0,
            "ckks_add_plain: expected x (S, L, N) and a plaintext (L, M), M dividing N");
    require(out.ndim() == 3 && out.shape(0) == x.shape(0) && out.shape(1) == r.size() && out.shape(2) == r.n,
            "ckks_add_plain: expected out of the shape of x");
    const std::size_t n = r.n, size = plain.shape(1), run = n / size, limbs = r.size();
    const std::size_t stride = x.shape(0) > 1 ? static_cast<std::size_t>(x.stride(0)) : 0;
    const u64 *in = x.data(), *values = plain.data();
    u64* res = out.data();
    nb::gil_scoped_release release;
    parallel_for(x.shape(0) * limbs, threads, [&](std::size_t task) {
        const std::size_t l = task % limbs;
        const u64* from = in + task / limbs * stride + l * n;
        u64* to = res + task * n;
        const Modulus& m = r.limbs[l]->m;
        if (task >= limbs)
            std::memcpy(to, from, n * sizeof(u64));
        else if (run == 1)
            ring_kernels(m).add(m, from, values + l * n, to, n);
        else
            for (std::size_t j = 0; j < size; ++j) {
                const u64 value = values[l * size + j];
                for (std::size_t i = j * run; i < (j + 1) * run; ++i) to[i] = cond_sub(from[i] + value, m.q);
            }
    });
}

// r or -r modulo q: sign is 0 or all ones.
u64 negate_if(const Modulus& m, u64 r, u64 sign) { return cond_sub((r ^ sign) - sign + (m.q & sign), m.q); }

// values: (M,) signed, times 2^shift, modulo every prime -> out (L, M).
void reduce(nb::ndarray<const i64, nb::ndim<1>, nb::c_contig, nb::device::cpu> values, unsigned shift,
            const std::vector<u64>& primes, Words out, int threads) {
    const std::size_t n = values.size(), limbs = primes.size();
    require(out.ndim() == 2 && out.shape(0) == limbs && out.shape(1) == n && shift < 1024, "ckks_reduce: expected out (L, M)");
    std::vector<Modulus> moduli;
    for (u64 q : primes) {
        require(q > 2 && q < u64{1} << 61, "ckks_reduce: every prime must be below 2^61");
        moduli.emplace_back(q);
    }
    const i64* in = values.data();
    u64* res = out.data();
    nb::gil_scoped_release release;
    parallel_for(limbs, threads, [&](std::size_t l) {
        const Modulus& m = moduli[l];
        const u64 power = m.pow(2, shift), power_shoup = m.shoup(power);
        for (std::size_t i = 0; i < n; ++i) {
            const u64 sign = static_cast<u64>(in[i] >> 63);
            const u64 r = m.reduce64((static_cast<u64>(in[i]) ^ sign) - sign);
            res[l * n + i] = negate_if(m, shift ? m.mul_const(r, power, power_shoup) : r, sign);
        }
    });
}

// x: (L, M) residues modulo Q = q_1...q_L -> out (M,): the centred representative as a double, by mixed radix.
void lift(nb::ndarray<const u64, nb::ndim<2>, nb::c_contig, nb::device::cpu> x, const std::vector<u64>& primes,
          nb::ndarray<double, nb::ndim<1>, nb::c_contig, nb::device::cpu> out, int threads) {
    const std::size_t limbs = x.shape(0), n = x.shape(1);
    require(limbs == primes.size() && limbs > 0 && limbs <= 16 && out.size() == n, "ckks_lift: expected x (L, M) and out (M,)");
    std::vector<Modulus> moduli;
    for (u64 q : primes) {
        require(q > 2 && q < u64{1} << 61, "ckks_lift: every prime must be below 2^61");
        moduli.emplace_back(q);
    }
    std::vector<std::vector<u64>> inverse(limbs);  // of q_j modulo q_l, j < l
    for (std::size_t l = 0; l < limbs; ++l)
        for (std::size_t j = 0; j < l; ++j) inverse[l].push_back(moduli[l].inverse(moduli[l].reduce64(primes[j])));
    const u64* in = x.data();
    double* res = out.data();
    nb::gil_scoped_release release;
    const std::size_t step = chunk_of(n);
    parallel_for((n + step - 1) / step, threads, [&](std::size_t task) {
        for (std::size_t i = task * step; i < std::min(n, (task + 1) * step); ++i) {
            i64 digit[16];
            for (std::size_t l = 0; l < limbs; ++l) {
                const Modulus& m = moduli[l];
                u64 r = in[l * n + i];
                for (std::size_t j = 0; j < l; ++j) {
                    const u64 sign = static_cast<u64>(digit[j] >> 63), size = (static_cast<u64>(digit[j]) ^ sign) - sign;
                    r = m.mul(m.sub(r, negate_if(m, m.reduce64(size), sign)), inverse[l][j]);
                }
                digit[l] = static_cast<i64>(r - (m.q & (u64{0} - ((m.q / 2 - r) >> 63))));
            }
            double total = 0;
            for (std::size_t l = limbs; l-- > 0;) total = total * static_cast<double>(moduli[l].q) + static_cast<double>(digit[l]);
            res[i] = total;
        }
    });
}

}  // namespace

void register_ckks(nb::module_& m) {
    auto x = nb::arg("x").noconvert(), out = nb::arg("out").noconvert();
    auto ring = nb::arg("ring");
    auto threads = nb::arg("threads");
    m.def("ckks_decompose", &decompose, ring, x, nb::arg("alpha"), out, threads);
    m.def("ckks_expand", &expand, nb::arg("keys").noconvert(), nb::arg("primes"), out, threads);
    m.def("ckks_key_products", &key_products, ring, nb::arg("digits").noconvert(), nb::arg("b"), nb::arg("a"),
          nb::arg("special"), nb::arg("more").noconvert(), nb::arg("elements"), nb::arg("accumulate"), out, threads);
    m.def("ckks_mod_down", &mod_down, ring, x, nb::arg("more").noconvert(), nb::arg("element"), out, threads);
    m.def("ckks_tensor", &tensor, ring, nb::arg("a").noconvert(), nb::arg("b").noconvert(), out, threads);
    m.def("ckks_add_plain", &add_plain, ring, x, nb::arg("plain").noconvert(), out, threads);
    m.def("ckks_lift", &lift, x, nb::arg("primes"), out, threads);
    m.def("ckks_reduce", &reduce, nb::arg("values").noconvert(), nb::arg("shift"), nb::arg("primes"), out, threads);
}
