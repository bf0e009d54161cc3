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
#include "ckks_views.h"
#include "module.h"

namespace {

using Bytes = nb::ndarray<const std::uint8_t, nb::c_contig, nb::device::cpu>;

constexpr std::size_t kSeed = 16;                 // bytes of an expansion key
constexpr u64 kRetry = u64{1} << 32;              // blocks between the words of one attempt and those of the next

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

// Rows that one task converts: each run of the inputs is read from memory once for all of them, and the transforms find
// the tables of their primes where the task before (another digit, the same rows) left them.
constexpr std::size_t kGroup = 6;
// As few tasks as that allows, but as many for every thread.
std::size_t group_of(std::size_t rows, std::size_t parts, int threads) {
    const std::size_t workers = static_cast<std::size_t>(std::max(threads, 1));
    const std::size_t rounds = (rows * parts + kGroup * workers - 1) / (kGroup * workers);
    const std::size_t tasks = std::max<std::size_t>(1, (rounds * workers + parts - 1) / parts);
    return std::min(kGroup, (rows + tasks - 1) / tasks);
}
// Primes of one task of a key switch, which also multiplies.
constexpr std::size_t kTargets = 2;
// Rows of a power of two of words would meet in the same few lines of a cache.
constexpr std::size_t kSkew = 64;

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
            k.convert(c.to[rows[r].target], y + at, n, v + at, rows[r].out + at, step);
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

// The digits of x, (L, N) NTT form: digit d is x modulo the primes [d alpha, (d+1) alpha), centred.
struct Digits {
    const Ring& ring;
    const u64* x;
    std::size_t limbs, alpha, count, n;
    std::vector<Modulus> to;
    std::vector<BaseConversion> conversions;
    const CkksKernels& k;
    u64 *y = nullptr, *v = nullptr;

    Digits(const Ring& r, const View& view, std::size_t a)
        : ring(r), x(view.data()), limbs(view.shape(0)), alpha(a), count((limbs + a - 1) / a), n(r.n),
          to(moduli_of(r, 0, r.size())), k(ckks_kernels(50, r.n)) {
        for (std::size_t d = 0; d < count; ++d)
            conversions.emplace_back(moduli_of(r, d * alpha, std::min(limbs, (d + 1) * alpha)), to);
    }
    void prepare(int threads) {
        y = scratch((limbs + count) * n);
        v = y + limbs * n;
        parallel_for(limbs, threads, [&](std::size_t l) {
            to_fractions(ring, l, conversions[l / alpha].from[l % alpha], x + l * n, y + l * n);
        });
        parallel_for(count, threads, [&](std::size_t d) { overflow_row(k, conversions[d], y + d * alpha * n, v + d * n, n); });
    }
    // Digit d modulo the primes [first, last), at most kGroup of them: the t-th at out + (t - first) * stride.
    void rows(std::size_t d, std::size_t first, std::size_t last, u64* out, std::size_t stride) const {
        Row converted[kGroup] = {};
        std::size_t held = 0;
        for (std::size_t t = first; t < last; ++t) {
            u64* row = out + (t - first) * stride;
            if (t < limbs && t / alpha == d)  // modulo its own primes the digit is x itself
                std::memcpy(row, x + t * n, n * sizeof(u64));
            else
                converted[held++] = {t, row};
        }
        convert_rows(k, conversions[d], y + d * alpha * n, v + d * n, converted, held, n);
        for (std::size_t r = 0; r < held; ++r)
            ring_kernels(to[converted[r].target]).ntt(converted[r].out, *ring.limbs[converted[r].target]);
    }
};

// out: (D, L + K, N): the digits of x (L, N) modulo every prime of the ring (L chain primes, then K special ones).
void decompose(const Ring& ring, View x, std::size_t alpha, Words out, int threads) {
    require(x.ndim() == 2 && x.shape(1) == ring.n && rows_contiguous(x) && x.shape(0) < ring.size() && alpha > 0,
            "ckks_decompose: expected x (L, N), contiguous, and a ring with special primes");
    Digits digits(ring, x, alpha);
    const std::size_t all = ring.size(), n = ring.n, count = digits.count;
    require(out.ndim() == 3 && out.shape(0) == count && out.shape(1) == all && out.shape(2) == n,
            "ckks_decompose: expected out (D, L + K, N)");
    u64* res = out.data();
    nb::gil_scoped_release release;
    digits.prepare(threads);
    parallel_for((all + kGroup - 1) / kGroup * count, threads, [&](std::size_t task) {
        const std::size_t d = task % count, first = task / count * kGroup;
        digits.rows(d, first, std::min(all, first + kGroup), res + (d * all + first) * n, n);
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
                    "ckks_switch_keys: a key is of a lower level than the digits");
            require(a[s].ndim() == 3 && a[s].shape(0) == b[s].shape(0) && a[s].shape(1) == b[s].shape(1) && a[s].shape(2) == kSeed,
                    "ckks_switch_keys: expected one expansion key for every row of a key");
            positions.push_back(elements[s] == 1 ? nullptr : automorphism_positions(r.n, elements[s]));
        }
    }
};

// x: (L, N) NTT form, the component to be switched, with D digits of as many primes as there are special ones (K). out: (S, 2,
// L + K, N) = (accumulate ? out : 0) + the automorphism X -> X^elements[s] of [sum_d digit_d * key_d + more]. more: (C, L, N),
// times P, or (C, L + K, N), as it is; C <= 2.
//
// The digits modulo one prime go through all the keys while they are in a cache; they are never in memory.
void switch_keys(const Ring& r, View x, nb::list halves, nb::list seeds, View more, const std::vector<u64>& elements,
                 bool accumulate, Words out, int threads) {
    require(x.ndim() == 2 && x.shape(1) == r.n && rows_contiguous(x) && x.shape(0) < r.size(),
            "ckks_switch_keys: expected x (L, N), contiguous, and a ring with special primes");
    const std::size_t limbs = x.shape(0), all = r.size(), n = r.n, steps = elements.size();
    Digits digits(r, x, all - limbs);
    const std::size_t count = digits.count;
    const Keys keys(halves, seeds, elements, r, count);
    require(out.ndim() == 4 && out.shape(0) == steps && out.shape(1) == 2 && out.shape(2) == all && out.shape(3) == n,
            "ckks_switch_keys: expected out (S, 2, L + K, N)");
    const std::size_t extra = more.ndim() == 3 ? more.shape(0) : 0, extra_limbs = extra ? more.shape(1) : 0;
    require(!extra || (extra <= 2 && (extra_limbs == limbs || extra_limbs == all) && more.shape(2) == n && rows_contiguous(more)),
            "ckks_switch_keys: expected more (C, L, N) or (C, L + K, N)");
    const std::vector<Modulus>& moduli = digits.to;
    std::vector<u64> factor(all, 1);  // P, where `more` lacks it
    if (extra_limbs == limbs)
        for (std::size_t t = 0; t < limbs; ++t)
            for (std::size_t i = limbs; i < all; ++i) factor[t] = moduli[t].mul(factor[t], moduli[t].reduce64(moduli[i].q));
    const CkksKernels& k = ckks_kernels(50, n);
    const std::size_t step = chunk_of(n), plus_stride = extra > 1 ? static_cast<std::size_t>(more.stride(0)) : 0;
    const u64* plus = extra ? more.data() : nullptr;
    u64* res = out.data();

    // One prime and one key; work: 3 rows, uniform: a chunk for every digit, from: the digits, `stride` apart.
    const auto product = [&](std::size_t t, std::size_t s, const u64* from, std::size_t stride, u64* work, u64* uniform) {
        const std::size_t rows = keys.b[s].shape(1), row = t < limbs ? t : rows - all + t;
        const Modulus& m = moduli[t];
        const RingKernels& ring = ring_kernels(m);
        const u64* half = keys.b[s].data();
        const std::uint8_t* seed = keys.a[s].data();
        const bool direct = !keys.positions[s] && !accumulate;
        u64* to[2];
        for (std::size_t c = 0; c < 2; ++c) to[c] = direct ? res + ((s * 2 + c) * all + t) * n : work + c * n;
        for (std::size_t at = 0; at < n; at += step) {
            for (std::size_t d = 0; d < count; ++d)
                Expansion{m, k, seed + (d * rows + row) * kSeed}.fill(at, uniform + d * step, step);
            k.key_run(m, {from + at, stride, half + row * n + at, rows * n, uniform, step, to[0] + at, to[1] + at, count, step,
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
    };

    nb::gil_scoped_release release;
    digits.prepare(threads);
    parallel_for((all + kTargets - 1) / kTargets, threads, [&](std::size_t task) {
        const std::size_t first = task * kTargets, last = std::min(all, first + kTargets), stride = n + kSkew;
        thread_local Workspace converting, turning, expanding;
        u64* rows = converting.words(kTargets * count * stride);
        for (std::size_t d = 0; d < count; ++d) digits.rows(d, first, last, rows + d * stride, count * stride);
        u64 *work = turning.words(3 * n), *uniform = expanding.words(count * step);
        for (std::size_t t = first; t < last; ++t)
            for (std::size_t s = 0; s < steps; ++s) product(t, s, rows + (t - first) * count * stride, stride, work, uniform);
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
    for (const BaseConversion::To& to : c.to) inverses.push_back(to.m.inverse(to.m.neg(to.weights[dropped])));
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
    const std::size_t group = group_of(kept, parts, threads), groups = (kept + group - 1) / group;
    parallel_for(groups * parts, threads, [&](std::size_t task) {
        const std::size_t part = task % parts, first = task / parts * group, count = std::min(group, kept - first);
        thread_local Workspace turning;
        u64* turned = positions ? turning.words(kGroup * n) : nullptr;
        Row rows[kGroup];
        for (std::size_t i = 0; i < count; ++i)
            rows[i] = {first + i, positions ? turned + i * n : res + (part * kept + first + i) * n};
        convert_rows(k, c, y + part * dropped * n, v + part * n, rows, count, n);
        for (std::size_t i = 0; i < count; ++i) {
            const std::size_t l = first + i;
            u64* row = rows[i].out;
            ring_kernels(c.to[l].m).ntt(row, *r.limbs[l]);
            const u64* add = part < extra ? plus + part * plus_stride + l * n : nullptr;
            bgv.sub_scale(c.to[l].m, in + part * stride + l * n, row, inverses[l], add, row, n);
            if (positions) ring_kernels(c.to[l].m).permute(row, positions->data(), res + (part * kept + l) * n, n);
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
    m.def("ckks_switch_keys", &switch_keys, ring, x, nb::arg("b"), nb::arg("a"), nb::arg("more").noconvert(),
          nb::arg("elements"), nb::arg("accumulate"), out, threads);
    m.def("ckks_mod_down", &mod_down, ring, x, nb::arg("more").noconvert(), nb::arg("element"), out, threads);
}
