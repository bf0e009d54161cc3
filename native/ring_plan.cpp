// Twiddle tables, built once per (length, prime) and kept for the life of the process.
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "cpu.h"
#include "ring_kernels.h"

namespace {

u64 primitive_root(const Modulus& m, u32 two_n) {
    // Any x with x^((q-1)/2) = -1 gives psi = x^((q-1)/2n) of order exactly 2n; the smallest such psi of the first
    // x found is not canonical, so both parties must (and do) take the first x = 2, 3, 4, ... that works.
    for (u64 x = 2; x < 1000; ++x)
        if (m.pow(x, (m.q - 1) / 2) == m.q - 1) return m.pow(x, (m.q - 1) / two_n);
    throw std::invalid_argument("no quadratic non-residue below 1000: the modulus is not prime");
}

AlignedWords tail_order(const AlignedWords& w, const AlignedWords& w52, u32 n) {
    AlignedWords out;
    out.reserve(std::size_t{n} / 64 * 112);
    for (u32 group = 0; group < n / 64; ++group)
        for (const AlignedWords* table : {&w, &w52})
            for (u32 level = 0; level < 3; ++level)
                for (u32 j = 0; j < (u32{1} << level); ++j)
                    for (u32 b = 0; b < 8; ++b) out.push_back((*table)[(n / 8 << level) + ((8 * group + b) << level) + j]);
    return out;
}

std::shared_ptr<const NttPlan> build(u32 n, u64 q) {
    if (n < 2 || (n & (n - 1)) || n > (u32{1} << 17)) throw std::invalid_argument("ring degree must be a power of two, 2..2^17");
    if (q < 3 || q >= (u64{1} << 61) || (q - 1) % (2 * u64{n}) != 0)
        throw std::invalid_argument("modulus " + std::to_string(q) + " is not below 2^61 and 1 modulo twice the degree");
    auto plan = std::make_shared<NttPlan>();
    NttPlan& p = *plan;
    p.n = n;
    while ((u32{1} << p.lg) < n) ++p.lg;
    p.m = Modulus(q);
    p.psi = primitive_root(p.m, 2 * n);
    p.n_inv = p.m.inverse(n);
    const u64 psi_inv = p.m.inverse(p.psi);
    p.w.resize(n), p.w_shoup.resize(n), p.iw.resize(n), p.iw_shoup.resize(n);
    u64 f = 1, b = 1;
    for (u32 e = 0; e < n; ++e, f = p.m.mul(f, p.psi), b = p.m.mul(b, psi_inv)) {
        const u32 i = bit_reverse(e, p.lg);
        p.w[i] = f, p.iw[i] = b;
        p.w_shoup[i] = p.m.shoup(f), p.iw_shoup[i] = p.m.shoup(b);
    }
    if (q < (u64{1} << 50)) {
        p.w52.resize(n), p.iw52.resize(n);
        for (u32 i = 0; i < n; ++i) {
            p.w52[i] = static_cast<u64>((u128{p.w[i]} << 52) / q);
            p.iw52[i] = static_cast<u64>((u128{p.iw[i]} << 52) / q);
        }
    }
    if (q < (u64{1} << 50) && n >= 64) {
        p.tail = tail_order(p.w, p.w52, n);
        p.itail = tail_order(p.iw, p.iw52, n);
    }
    return plan;
}

}  // namespace

std::shared_ptr<const NttPlan> ntt_plan(u32 n, u64 q) {
    static std::mutex mutex;
    static std::map<std::pair<u32, u64>, std::shared_ptr<const NttPlan>> plans;
    std::lock_guard lock(mutex);
    auto& slot = plans[{n, q}];
    if (!slot) slot = build(n, q);
    return slot;
}

static std::vector<double> as_doubles(const AlignedWords& w, u32 n, double q) {
    std::vector<double> out(2 * n);
    out.reserve(2 * n + n / 16 * 24);
    for (u32 i = 0; i < n; ++i) {
        out[i] = static_cast<double>(w[i]);
        out[n + i] = out[i] / q;
    }
    for (u32 group = 0; group < n / 16; ++group)
        for (u32 part = 0; part < 2; ++part)
            for (u32 factor = 0; factor < 3; ++factor)
                for (u32 b = 0; b < 4; ++b) {
                    const u32 block = 4 * group + b;
                    out.push_back(out[part * n + (factor == 0 ? n / 4 + block : n / 2 + 2 * block + factor - 1)]);
                }
    return out;
}

DoubleTables double_tables(const NttPlan& p, bool inverse) {
    std::call_once(p.doubles_made, [&] {
        p.doubles[0] = as_doubles(p.w, p.n, static_cast<double>(p.m.q));
        p.doubles[1] = as_doubles(p.iw, p.n, static_cast<double>(p.m.q));
    });
    const double* at = p.doubles[inverse].data();
    return {at, at + p.n, at + 2 * p.n};
}

std::shared_ptr<const std::vector<u32>> automorphism_positions(u32 n, u64 k) {
    static std::mutex mutex;
    static std::map<std::pair<u32, u64>, std::shared_ptr<const std::vector<u32>>> tables;
    if (k % 2 == 0) throw std::invalid_argument("an automorphism exponent must be odd");
    k %= 2 * u64{n};
    std::lock_guard lock(mutex);
    auto& slot = tables[{n, k}];
    if (!slot) {
        unsigned lg = 0;
        while ((u32{1} << lg) < n) ++lg;
        auto table = std::make_shared<std::vector<u32>>(n);
        for (u32 i = 0; i < n; ++i) {
            const u64 exponent = (2 * u64{bit_reverse(i, lg)} + 1) * k % (2 * u64{n});
            (*table)[i] = bit_reverse(static_cast<u32>(exponent >> 1), lg);
        }
        slot = table;
    }
    return slot;
}

const RingKernels& ring_kernels(const Modulus& m) {
#if defined(__x86_64__)
    if (active_isa() == Isa::avx512 && m.bits <= 50) return ring_avx512;
    if (active_isa() == Isa::avx2 && m.bits <= 50) return ring_avx2;
#endif
    (void)m;
    return ring_portable;
}
