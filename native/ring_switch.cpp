// The two halves of key switching: digits of a polynomial over all primes, and exact division by the last prime.
#include <memory>

#include "ring.h"

#include "module.h"

namespace {

// Residues modulo m of the centred representative of values modulo p: v, or v - p when v > p/2.
void recentre(const u64* values, u64 p, const Modulus& m, u64* out, std::size_t n) {
    const u64 half = p / 2, p_mod = m.reduce64(p);
    for (std::size_t i = 0; i < n; ++i) {
        const u64 above = u64{0} - ((half - values[i]) >> 63);
        out[i] = m.sub(m.reduce64(values[i]), p_mod & above);
    }
}

// x: (B, L, n) in NTT form over the first L primes -> out: (B, L, L + 1, n): digit i is the centred x mod q_i.
void decompose(const Ring& r, Source x, Words out, int threads) {
    const std::size_t all = r.size(), limbs = all - 1, n = r.n;
    if (limbs < 1 || x.size() % (limbs * n)) throw std::invalid_argument("decompose needs polynomials without the last prime");
    const std::size_t count = x.size() / (limbs * n);
    if (out.size() != count * limbs * all * n) throw std::invalid_argument("decompose needs (L, L + 1, n) words per polynomial");
    nb::gil_scoped_release release;
    parallel_for(count * limbs, threads, [&](std::size_t task) {
        const std::size_t i = task % limbs;
        const NttPlan& own = *r.limbs[i];
        std::vector<u64> digit(x.data() + task * n, x.data() + (task + 1) * n);
        u64* to = out.data() + task * all * n;
        std::copy(digit.begin(), digit.end(), to + i * n);  // the digit modulo its own prime: already transformed
        ring_kernels(own.m).intt(digit.data(), own);
        for (std::size_t j = 0; j < all; ++j) {
            if (j == i) continue;
            recentre(digit.data(), own.m.q, r.limbs[j]->m, to + j * n, n);
            ring_kernels(r.limbs[j]->m).ntt(to + j * n, *r.limbs[j]);
        }
    });
}

// x: (B, L, n) in NTT form -> out: (B, L-1, n): (x - t*d) / q_last, d the centred x/t mod q_last: unchanged modulo t
// up to the factor q_last^-1.
void mod_down(const Ring& r, Source x, u64 t, Words out, int threads) {
    const std::size_t count = r.count(x), limbs = r.size() - 1, n = r.n;
    if (limbs < 1) throw std::invalid_argument("mod_down needs at least two primes");
    if (out.size() != count * limbs * n) throw std::invalid_argument("mod_down needs an output without the last prime");
    const NttPlan& last = *r.limbs[limbs];
    const u64 p = last.m.q;
    if (t % p == 0) throw std::invalid_argument("the plaintext modulus must be invertible modulo the dropped prime");
    const u64 t_inv = last.m.inverse(t % p);
    nb::gil_scoped_release release;
    parallel_for(count, threads, [&](std::size_t b) {
        const u64* in = x.data() + b * r.words();
        std::vector<u64> digit(in + limbs * n, in + (limbs + 1) * n), lifted(n);
        ring_kernels(last.m).intt(digit.data(), last);
        ring_kernels(last.m).mul_scalar(last.m, digit.data(), t_inv, digit.data(), n);
        for (std::size_t l = 0; l < limbs; ++l) {
            const Modulus& m = r.limbs[l]->m;
            const RingKernels& k = ring_kernels(m);
            const u64 p_inv = m.inverse(p % m.q);
            u64* to = out.data() + (b * limbs + l) * n;
            recentre(digit.data(), p, m, lifted.data(), n);
            k.ntt(lifted.data(), *r.limbs[l]);
            k.mul_scalar(m, lifted.data(), m.reduce64(t), lifted.data(), n);
            k.sub(m, in + l * n, lifted.data(), to, n);
            k.mul_scalar(m, to, p_inv, to, n);
        }
    });
}

}  // namespace

void register_ring_switch(nb::module_& m) {
    auto x = nb::arg("x").noconvert(), out = nb::arg("out").noconvert();
    m.def("ring_decompose", &decompose, nb::arg("ring"), x, out, nb::arg("threads"));
    m.def("ring_mod_down", &mod_down, nb::arg("ring"), x, nb::arg("plain_modulus"), out, nb::arg("threads"));
}
