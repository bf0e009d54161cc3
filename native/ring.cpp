// Bindings of the polynomial kernels: every function loops over (polynomial, limb) pairs on a few threads, GIL released.
#include "ring.h"

#include <nanobind/stl/vector.h>

#include <cstring>

#include "module.h"

namespace {

template <class Work>  // work(limb index, first word of that limb of that polynomial)
void each_limb(const Ring& r, std::size_t polynomials, int threads, Work&& work) {
    nb::gil_scoped_release release;
    parallel_for(polynomials * r.size(), threads, [&](std::size_t i) { work(i % r.size(), i * r.n); });
}

void ntt(const Ring& r, Words x, int threads) {
    each_limb(r, r.count(x), threads, [&](std::size_t l, std::size_t at) {
        ring_kernels(r.limbs[l]->m).ntt(x.data() + at, *r.limbs[l]);
    });
}

void intt(const Ring& r, Words x, int threads) {
    each_limb(r, r.count(x), threads, [&](std::size_t l, std::size_t at) {
        ring_kernels(r.limbs[l]->m).intt(x.data() + at, *r.limbs[l]);
    });
}

template <auto Kernel>
void binary(const Ring& r, Source a, Source b, Words out, int threads) {
    r.same(a, out);
    const bool broadcast = r.count(b) == 1;  // one right operand for a whole batch
    if (!broadcast) r.same(a, b);
    each_limb(r, r.count(a), threads, [&](std::size_t l, std::size_t at) {
        const Modulus& m = r.limbs[l]->m;
        (ring_kernels(m).*Kernel)(m, a.data() + at, b.data() + (broadcast ? l * r.n : at), out.data() + at, r.n);
    });
}

void mul_scalar(const Ring& r, Source a, Source scalars, Words out, int threads) {
    r.same(a, out);
    if (scalars.size() != r.size()) throw std::invalid_argument("one scalar per prime is needed");
    for (std::size_t l = 0; l < r.size(); ++l)
        if (scalars.data()[l] >= r.limbs[l]->m.q) throw std::invalid_argument("a scalar is not reduced");
    each_limb(r, r.count(a), threads, [&](std::size_t l, std::size_t at) {
        const Modulus& m = r.limbs[l]->m;
        ring_kernels(m).mul_scalar(m, a.data() + at, scalars.data()[l], out.data() + at, r.n);
    });
}

void automorphism_ntt(const Ring& r, Source x, u64 k, Words out, int threads) {
    r.same(x, out);
    if (x.data() == out.data()) throw std::invalid_argument("an automorphism cannot work in place");
    const auto perm = automorphism_positions(r.n, k);
    each_limb(r, r.count(x), threads, [&](std::size_t l, std::size_t at) {
        ring_kernels(r.limbs[l]->m).permute(x.data() + at, perm->data(), out.data() + at, r.n);
    });
}

// X -> X^k on coefficients: coefficient i moves to i*k mod 2n, with a sign when that passes n.
void automorphism_coeff(const Ring& r, Source x, u64 k, Words out, int threads) {
    r.same(x, out);
    if (k % 2 == 0) throw std::invalid_argument("an automorphism exponent must be odd");
    if (x.data() == out.data()) throw std::invalid_argument("an automorphism cannot work in place");
    each_limb(r, r.count(x), threads, [&](std::size_t l, std::size_t at) {
        const u64* a = x.data() + at;
        u64* o = out.data() + at;
        const u32 mask = 2 * r.n - 1;
        u32 e = 0;
        for (u32 i = 0; i < r.n; ++i, e = (e + static_cast<u32>(k)) & mask) {
            const bool wraps = e >= r.n;
            o[e & (r.n - 1)] = wraps ? r.limbs[l]->m.neg(a[i]) : a[i];
        }
    });
}

struct Operands {  // the k-th array of a list, checked to hold `words` words
    std::vector<Source> arrays;
    std::vector<const u64*> at;
    Operands(nb::list list, std::size_t words, const char* what) {
        for (nb::handle h : list) {
            arrays.push_back(nb::cast<Source>(h, false));
            if (arrays.back().size() != words) throw std::invalid_argument(std::string(what) + " has the wrong size");
            at.push_back(arrays.back().data());
        }
    }
};

std::size_t plain_length(const Ring& r, nb::list pts) {
    if (nb::len(pts) == 0) return r.n;
    Source first = nb::cast<Source>(pts[0], false);
    const std::size_t len = first.size() / r.size();
    if (first.size() % r.size() || len == 0 || len > r.n || (len & (len - 1)))
        throw std::invalid_argument("a plaintext must have (limbs, n/r) words, r a power of two");
    return len;
}

// acc[g] = (accumulate ? acc[g] : 0) + sum_k cts[k] * pts[g][k]; acc (G, C, L, n), cts: K arrays (C, L, n), pts: G*K arrays
// (L, n/r).
void mac(const Ring& r, Words acc, nb::list cts, nb::list pts, std::size_t groups, int threads, bool accumulate) {
    const std::size_t polys = r.count(acc), count = nb::len(cts);
    if (groups == 0 || polys % groups || nb::len(pts) != groups * count)
        throw std::invalid_argument("the accumulator needs one entry per group and every group one plaintext per ciphertext");
    const std::size_t components = polys / groups, len = plain_length(r, pts);
    Operands ct(cts, components * r.words(), "a ciphertext"), pt(pts, r.size() * len, "a plaintext");
    unsigned shift = 0;
    while ((len << shift) < r.n) ++shift;
    const std::size_t step = std::min<std::size_t>(kMacChunk, r.n), chunks = r.n / step;
    nb::gil_scoped_release release;
    parallel_for(r.size() * chunks, threads, [&](std::size_t task) {
        const std::size_t l = task / chunks, begin = (task % chunks) * step;
        std::vector<const u64*> c(ct.at), p(pt.at);
        for (auto& at : c) at += l * r.n;
        for (auto& at : p) at += l * len;
        const Modulus& m = r.limbs[l]->m;
        // While the run is on its way to a cache anyway.
        for (std::size_t p = 0; p < (accumulate ? 0 : polys); ++p)
            std::memset(acc.data() + p * r.words() + l * r.n + begin, 0, step * sizeof(u64));
        AlignedWords scratch(groups > 1 ? count * components * step : 0);
        MacArgs args{acc.data() + l * r.n, components * r.words(), r.words(), c.data(), p.data(),
                     groups, count, components, begin, begin + step, shift, groups > 1 ? scratch.data() : nullptr};
        ring_kernels(m).mac(m, args);
    });
}

std::vector<u64> primes_of(const Ring& r) {
    std::vector<u64> out;
    for (const auto& p : r.limbs) out.push_back(p->m.q);
    return out;
}

std::vector<u64> roots_of(const Ring& r) {
    std::vector<u64> out;
    for (const auto& p : r.limbs) out.push_back(p->psi);
    return out;
}

}  // namespace

void register_ring(nb::module_& m) {
    auto x = nb::arg("x").noconvert(), a = nb::arg("a").noconvert(), b = nb::arg("b").noconvert();
    auto out = nb::arg("out").noconvert(), acc = nb::arg("acc").noconvert();
    auto threads = nb::arg("threads");
    nb::class_<Ring>(m, "Ring", "Tables of Z_Q[X]/(X^n + 1) for a list of primes that are 1 modulo 2n.")
        .def(nb::init<u32, const std::vector<u64>&>(), nb::arg("n"), nb::arg("primes"))
        .def_ro("n", &Ring::n)
        .def_prop_ro("primes", &primes_of)
        .def_prop_ro("roots", &roots_of, "The primitive 2n-th root of unity used for each prime.")
        .def("ntt", &ntt, x, threads)
        .def("intt", &intt, x, threads)
        .def("add", &binary<&RingKernels::add>, a, b, out, threads)
        .def("sub", &binary<&RingKernels::sub>, a, b, out, threads)
        .def("mul", &binary<&RingKernels::mul>, a, b, out, threads)
        .def("mul_add", &binary<&RingKernels::mul_add>, a, b, acc, threads)
        .def("mul_scalar", &mul_scalar, a, nb::arg("scalars").noconvert(), out, threads)
        .def("automorphism_ntt", &automorphism_ntt, x, nb::arg("k"), out, threads)
        .def("automorphism_coeff", &automorphism_coeff, x, nb::arg("k"), out, threads)
        .def("mac", &mac, acc, nb::arg("cts"), nb::arg("pts"), nb::arg("groups"), threads,
             nb::arg("accumulate") = true);
}
