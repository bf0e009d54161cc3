// Portable inner loops of CKKS (see ckks_kernels.h). Operands are secret: no branch depends on them.
#include "ckks_kernels.h"

#include "bgv_kernels.h"
#include "cpu.h"

BaseConversion::BaseConversion(const std::vector<Modulus>& source, const std::vector<Modulus>& targets) {
    double missing = static_cast<double>(source.size()) + 1;  // what quotients rounded down lack together, at most
    for (const Modulus& p : source) {
        From f{p, 1, 0, 0, 50 - p.bits, 0};
        for (const Modulus& other : source)
            if (other.q != p.q) f.scale = p.mul(f.scale, p.reduce64(other.q));
        f.scale = p.inverse(f.scale);
        f.scale_shoup = p.shoup(f.scale);
        f.scale_shoup52 = static_cast<u64>((u128{f.scale} << 52) / p.q);
        f.recip = static_cast<u64>((u128{1} << 101) / (p.q << f.shift));
        from.push_back(f);
        missing += static_cast<double>(p.q) / 0x1p52;
    }
    for (const Modulus& q : targets) {
        To t{q, {}, {}};
        u64 whole = 1;
        for (std::size_t i = 0; i < source.size(); ++i) {
            whole = q.mul(whole, q.reduce64(source[i].q));
            u64 others = 1;
            for (std::size_t j = 0; j < source.size(); ++j)
                if (j != i) others = q.mul(others, q.reduce64(source[j].q));
            t.weights.push_back(others);
        }
        t.weights.push_back(q.sub(0, whole));
        if ((missing + 0x1p-20) * static_cast<double>(q.q) < 0x1p52)
            for (u64 w : t.weights) t.ratios.push_back(static_cast<u64>((u128{w} << 52) / q.q));
        to.push_back(std::move(t));
    }
}

namespace {

void overflow(const BaseConversion& c, const u64* y, std::size_t stride, u64* v, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
        u64 sum = u64{1} << 48;  // fractions of 49 bits
        for (std::size_t j = 0; j < c.from.size(); ++j)
            sum += static_cast<u64>((u128{y[j * stride + i] << c.from[j].shift} * c.from[j].recip) >> 52);
        v[i] = sum >> 49;
    }
}

void convert(const BaseConversion::To& to, const u64* y, std::size_t stride, const u64* v, u64* out, std::size_t n) {
    const Modulus& m = to.m;
    const u64* w = to.weights.data();
    const std::size_t count = to.weights.size() - 1;
    for (std::size_t i = 0; i < n; ++i) {
        u128 sum = u128{v[i]} * w[count];
        for (std::size_t j = 0; j < count; ++j) sum += u128{y[j * stride + i]} * w[j];
        out[i] = m.reduce128(sum);
    }
}

void key_run(const Modulus& m, const KeyRun& r) {
    bgv_portable.dot(m, {r.digits, r.digit_stride, r.b, r.b_stride, r.out_b, r.count, r.n, false});
    bgv_portable.dot(m, {r.digits, r.digit_stride, r.a, r.a_stride, r.out_a, r.count, r.n, false});
}

bool narrow_words(const Modulus& m, const u64* words, u64* out, std::size_t n) {
    const u64 last = m.inv52 * m.q, twice = m.q << (51 - m.bits);
    bool any = false;
    for (std::size_t i = 0; i < n; ++i) {
        const u64 low = words[i] & kMask52;
        any |= low >= last;
        out[i] = cond_sub(cond_sub(low, twice), twice / 2);
    }
    return any;
}

}  // namespace

const CkksKernels ckks_portable{key_run, overflow, convert, narrow_words};

const CkksKernels& ckks_kernels(unsigned bits, std::size_t n) {
#if defined(__x86_64__)
    if (active_isa() == Isa::avx512 && bits <= 50 && n >= 64) return ckks_avx512;
#endif
    (void)bits, (void)n;
    return ckks_portable;
}
