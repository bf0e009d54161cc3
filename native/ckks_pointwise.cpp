// Passes over ciphertexts of CKKS that need no key: products, sums with plaintexts, and the way to and from integers.
#include <nanobind/stl/vector.h>

#include <cstring>

#include "bgv_kernels.h"
#include "ckks_views.h"
#include "module.h"

namespace {

// a, b: (2, L, N) NTT form; out: (3, L, N) = factor * a * b + constant + more. constant: one value per prime, or empty; more:
// (C, L, N), C <= 3, maybe out itself, or empty. a and b may be the same array.
void tensor(const Ring& r, View a, View b, u64 factor, const std::vector<u64>& constant, View more, Words out, int threads) {
    const auto ok = [&](const View& x) {
        return x.ndim() == 3 && x.shape(1) == r.size() && x.shape(2) == r.n && rows_contiguous(x);
    };
    const std::size_t extra = more.ndim() == 3 ? more.shape(0) : 0;
    require(ok(a) && a.shape(0) == 2 && ok(b) && b.shape(0) == 2 && (!extra || (extra <= 3 && ok(more))) && out.ndim() == 3 &&
                out.shape(0) == 3 && out.shape(1) == r.size() && out.shape(2) == r.n && factor > 0 && factor < 1u << 20 &&
                (constant.empty() || constant.size() == r.size()),
            "ckks_tensor: expected a, b (2, L, N), more (C <= 3, L, N), one constant a prime and out (3, L, N)");
    const std::size_t n = r.n, size = r.words(), step = chunk_of(n), chunks = n / step;
    const auto moduli = moduli_of(r, 0, r.size());
    for (std::size_t l = 0; l < constant.size(); ++l) require(constant[l] < moduli[l].q, "ckks_tensor: a constant is not reduced");
    const BgvKernels& k = bgv_kernels(50, step);
    const u64 *x = a.data(), *y = b.data(), *plus = extra ? more.data() : nullptr;
    const std::size_t sx = static_cast<std::size_t>(a.stride(0)), sy = static_cast<std::size_t>(b.stride(0));
    const std::size_t sp = extra > 1 ? static_cast<std::size_t>(more.stride(0)) : 0;
    u64* res = out.data();
    nb::gil_scoped_release release;
    parallel_for(r.size() * chunks, threads, [&](std::size_t t) {
        const std::size_t l = t / chunks, at = l * n + t % chunks * step;
        const Modulus& m = moduli[l];
        const RingKernels& ring = ring_kernels(m);
        alignas(64) u64 sums[3][kConvertChunk];
        const auto part = [&](std::size_t u, std::size_t v, bool add) {
            k.dot(m, {x + u * sx + at, 0, y + v * sy + at, 0, sums[u + v], 1, step, add});
        };
        part(0, 0, false), part(0, 1, false), part(1, 0, true), part(1, 1, false);
        for (std::size_t c = 0; c < 3; ++c) {
            if (factor != 1) ring.mul_scalar(m, sums[c], factor, sums[c], step);
            if (c == 0 && !constant.empty())
                for (std::size_t i = 0; i < step; ++i) sums[0][i] = cond_sub(sums[0][i] + constant[l], m.q);
            if (c < extra)
                ring.add(m, sums[c], plus + c * sp + at, res + c * size + at, step);
            else
                std::memcpy(res + c * size + at, sums[c], step * sizeof(u64));
        }
    });
}

// x: (S, L, N) and a plaintext (L, M) whose every value stands for N/M neighbours -> out (S, L, N) = x, with the plaintext
// added to its first component; out may be x.
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
        if (task >= limbs) {
            if (to != from) std::memcpy(to, from, n * sizeof(u64));
        } else if (run == 1) {
            ring_kernels(m).add(m, from, values + l * n, to, n);
        } else {
            for (std::size_t j = 0; j < size; ++j) {
                const u64 value = values[l * size + j];
                for (std::size_t i = j * run; i < (j + 1) * run; ++i) to[i] = cond_sub(from[i] + value, m.q);
            }
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
    u64 bits = 0;  // no absolute value is above this; encoders know that themselves, from their scales
    for (std::size_t i = 0; i < n; ++i) bits |= static_cast<u64>(in[i] ^ (in[i] >> 63));
    parallel_for(limbs, threads, [&](std::size_t l) {
        const Modulus& m = moduli[l];
        if (!shift && bits < m.q - 1) {  // the usual case: there is nothing to reduce
            for (std::size_t i = 0; i < n; ++i) res[l * n + i] = static_cast<u64>(in[i]) + (m.q & static_cast<u64>(in[i] >> 63));
            return;
        }
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

void register_ckks_pointwise(nb::module_& m) {
    auto x = nb::arg("x").noconvert(), out = nb::arg("out").noconvert();
    auto ring = nb::arg("ring");
    auto threads = nb::arg("threads");
    m.def("ckks_tensor", &tensor, ring, nb::arg("a").noconvert(), nb::arg("b").noconvert(), nb::arg("factor"),
          nb::arg("constant"), nb::arg("more").noconvert(), out, threads);
    m.def("ckks_add_plain", &add_plain, ring, x, nb::arg("plain").noconvert(), out, threads);
    m.def("ckks_lift", &lift, x, nb::arg("primes"), out, threads);
    m.def("ckks_reduce", &reduce, nb::arg("values").noconvert(), nb::arg("shift"), nb::arg("primes"), out, threads);
}
