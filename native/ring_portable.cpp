// Kernels in plain C++: correct on every machine, the fallback for primes of 50 bits and more.
#include "ring_kernels.h"

namespace {

// Cooley-Tukey with Harvey's lazy butterflies: values stay below 4q, one exact reduction at the end.
void ntt(u64* x, const NttPlan& p) {
    const u64 q = p.m.q, two_q = 2 * q;
    for (u32 t = p.n / 2, m = 1; m < p.n; m *= 2, t /= 2)
        for (u32 i = 0; i < m; ++i) {
            const u64 w = p.w[m + i], ws = p.w_shoup[m + i];
            u64* a = x + std::size_t{2} * i * t;
            u64* b = a + t;
            for (u32 j = 0; j < t; ++j) {
                u64 u = cond_sub(a[j], two_q), v = p.m.mul_lazy(b[j], w, ws);
                a[j] = u + v;
                b[j] = u - v + two_q;
            }
        }
    for (u32 i = 0; i < p.n; ++i) x[i] = cond_sub(cond_sub(x[i], two_q), q);
}

// Gentleman-Sande: values stay below 2q; the final pass multiplies by 1/n.
void intt(u64* x, const NttPlan& p) {
    const u64 q = p.m.q, two_q = 2 * q;
    for (u32 t = 1, m = p.n / 2; m >= 1; m /= 2, t *= 2)
        for (u32 i = 0; i < m; ++i) {
            const u64 w = p.iw[m + i], ws = p.iw_shoup[m + i];
            u64* a = x + std::size_t{2} * i * t;
            u64* b = a + t;
            for (u32 j = 0; j < t; ++j) {
                u64 u = a[j], v = b[j];
                a[j] = cond_sub(u + v, two_q);
                b[j] = p.m.mul_lazy(u - v + two_q, w, ws);
            }
        }
    const u64 s = p.m.shoup(p.n_inv);
    for (u32 i = 0; i < p.n; ++i) x[i] = p.m.mul_const(x[i], p.n_inv, s);
}

void add(const Modulus& m, const u64* a, const u64* b, u64* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) out[i] = m.add(a[i], b[i]);
}

void sub(const Modulus& m, const u64* a, const u64* b, u64* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) out[i] = m.sub(a[i], b[i]);
}

void mul(const Modulus& m, const u64* a, const u64* b, u64* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) out[i] = m.mul(a[i], b[i]);
}

void mul_add(const Modulus& m, const u64* a, const u64* b, u64* acc, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) acc[i] = m.reduce128(u128{a[i]} * b[i] + acc[i]);
}

void mul_scalar(const Modulus& m, const u64* a, u64 w, u64* out, std::size_t n) {
    const u64 ws = m.shoup(w);
    for (std::size_t i = 0; i < n; ++i) out[i] = m.mul_const(a[i], w, ws);
}

// Sums of up to 2^(128 - 2 bits) products fit a 128-bit word; one reduction per that many.
void mac(const Modulus& m, const MacArgs& g) {
    const std::size_t lazy = m.bits <= 56 ? std::size_t{1} << 15 : std::size_t{1} << (127 - 2 * m.bits);
    u128 sum[kMacChunk];
    const std::size_t len = g.end - g.begin;
    for (std::size_t gc = 0; gc < g.groups * g.components; ++gc) {
        const std::size_t group = gc / g.components, at = (gc % g.components) * g.stride + g.begin;
        u64* acc = g.acc + group * g.group_stride + at;
        for (std::size_t i = 0; i < len; ++i) sum[i] = acc[i];
        for (std::size_t k = 0; k < g.count; ++k) {
            const u64 *ct = g.ct[k] + at, *pt = g.pt[group * g.count + k];
            for (std::size_t i = 0; i < len; ++i) sum[i] += u128{ct[i]} * pt[(g.begin + i) >> g.shift];
            if ((k + 1) % lazy == 0)
                for (std::size_t i = 0; i < len; ++i) sum[i] = m.reduce128(sum[i]);
        }
        for (std::size_t i = 0; i < len; ++i) acc[i] = m.reduce128(sum[i]);
    }
}

void permute(const u64* x, const u32* perm, u64* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) out[i] = x[perm[i]];
}

}  // namespace

const RingKernels ring_portable = {ntt, intt, add, sub, mul, mul_add, mul_scalar, mac, permute};
