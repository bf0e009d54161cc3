// Portable inner loops of the RLWE kernels (see bgv_kernels.h). Operands are secret: no branch depends on them.
#include "bgv_kernels.h"
#include "cpu.h"

namespace {

void lift(const u64* x, const Modulus& from, u64 scale, const Modulus* to, std::size_t m, u64* out, std::size_t n) {
    const u64 shoup = from.shoup(scale), half = from.q / 2;
    for (std::size_t t = 0; t < m; ++t) {
        const Modulus& q = to[t];
        const u64 wrap = q.reduce64(from.q);
        for (std::size_t i = 0; i < n; ++i) {
            const u64 v = from.mul_const(x[i], scale, shoup);
            const u64 negative = u64{0} - ((half - v) >> 63);  // all ones if v > q/2: the representative is v - q
            out[t * n + i] = q.sub(q.reduce64(v), wrap & negative);
        }
    }
}

void dot(const Modulus& m, const DotArgs& d) {
    for (std::size_t i = 0; i < d.n; ++i) {
        u128 sum = d.accumulate ? d.out[i] : 0;
        for (std::size_t k = 0; k < d.count; ++k) {
            sum += u128{d.a[k * d.a_stride + i]} * d.b[k * d.b_stride + i];
            if ((k & 15) == 15) sum = m.reduce128(sum);  // 17 products below 2^122 fit
        }
        d.out[i] = m.reduce128(sum);
    }
}

void sub_scale(const Modulus& m, const u64* x, const u64* y, u64 scale, const u64* add, u64* out, std::size_t n) {
    const u64 shoup = m.shoup(scale);
    for (std::size_t i = 0; i < n; ++i) {
        const u64 v = m.mul_const(m.sub(x[i], y[i]), scale, shoup);
        out[i] = add ? m.add(v, add[i]) : v;
    }
}

// floor(v * 2^64 / q) for v < q, and what remains: the estimate from the reciprocal is at most two too small.
inline u64 divide_shifted(u64& v, u64 recip, const Modulus& m) {
    u64 est = static_cast<u64>((u128{v} * recip) >> (m.bits - 1));
    u64 rem = u64{0} - est * m.q;
    for (int i = 0; i < 2; ++i) {
        const u64 d = rem - m.q, keep = u64{0} - (d >> 63);  // all ones if rem < q
        est += 1 + keep;
        rem = d + (m.q & keep);
    }
    v = rem;
    return est;
}

void fraction(const FractionPrime* primes, std::size_t count, const u64* x, std::size_t stride, u64* hi, u64* lo,
              std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
        u128 sum = 0;
        for (std::size_t l = 0; l < count; ++l) {
            const FractionPrime& f = primes[l];
            u64 v = f.m.mul_const(x[l * stride + i], f.inv, f.inv_shoup);
            const u64 first = divide_shifted(v, f.recip, f.m), second = divide_shifted(v, f.recip, f.m);
            sum += ((u128{first} << 64) | second) >> 24;
        }
        hi[i] = static_cast<u64>(sum >> 52) & kMask52;
        lo[i] = static_cast<u64>(sum) & kMask52;
    }
}

void scale_to(const ScaleTo& to, const u64* hi, const u64* lo, u64* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
        const u128 y = u128{to.p.q} * hi[i] + static_cast<u64>((u128{to.p.q} * lo[i]) >> 52) + (u64{1} << 51);
        const u64 rounded = cond_sub(static_cast<u64>(y >> 52), to.p.q);
        out[i] = to.p.mul_const(rounded, to.factor, to.factor_shoup);
    }
}

void unpack_lift(const LiftFrom& from, const u64* hi, const u64* lo, u64* out, std::size_t stride, std::size_t n) {
    const u128 mask = (u128{1} << from.kappa) - 1, half = u128{1} << (from.kappa - 1);
    const u128 q = (u128{from.q1} << 52) | from.q0;
    for (std::size_t i = 0; i < n; ++i) {
        const u128 a = (u128{hi[i]} << 52) | lo[i], t = (a * q + half) & mask;
        const u64 t0 = static_cast<u64>(t) & kMask52, t1 = static_cast<u64>(t >> 52);
        for (std::size_t l = 0; l < from.count; ++l) {
            const LiftPrime& f = from.primes[l];
            const u64 sum = f.m.add(f.m.mul_const(t0, f.low, f.low_shoup), f.m.mul_const(t1, f.high, f.high_shoup));
            out[l * stride + i] = f.m.add(sum, f.half);
        }
    }
}

void wide(const Modulus& m, u64 offset, const u64* hi, const u64* lo, u64* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) out[i] = m.sub(m.reduce128((u128{hi[i]} << 52) + lo[i]), offset);
}

// Ones in each half of a word.
inline u64 ones32(u64 x) {
    x -= (x >> 1) & 0x5555555555555555;
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333);
    x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0f;
    x += x >> 8;
    return (x + (x >> 16)) & 0x000000ff000000ff;
}

void error(const u64* words, const Modulus* m, std::size_t count, u64* out, std::size_t n) {
    const u64 mask = (u64{1} << 21) - 1;
    for (std::size_t i = 0; i < n; ++i) {
        const u64 ones = ones32((words[i] & mask) | (((words[i] >> 21) & mask) << 32));
        const u64 v = (ones & 0xff) - (ones >> 32);
        for (std::size_t l = 0; l < count; ++l) out[l * n + i] = v + (m[l].q & (u64{0} - (v >> 63)));
    }
}

}  // namespace

const BgvKernels bgv_portable{lift, dot, sub_scale, fraction, scale_to, unpack_lift, wide, error};

const BgvKernels& bgv_kernels(unsigned bits, std::size_t n) {
#if defined(__x86_64__)
    if (active_isa() == Isa::avx512 && bits <= 50 && n % 8 == 0) return bgv_avx512;
#endif
    (void)bits, (void)n;
    return bgv_portable;
}

std::vector<FractionPrime> fraction_primes(const std::vector<Modulus>& primes) {
    std::vector<FractionPrime> out;
    for (const Modulus& m : primes) {
        u64 rest = 1;
        for (const Modulus& o : primes)
            if (o.q != m.q) rest = m.mul(rest, o.q % m.q);
        FractionPrime f{m, m.inverse(rest), 0, 0, 0, 0};
        f.inv_shoup = m.shoup(f.inv);
        f.inv_shoup52 = static_cast<u64>((u128{f.inv} << 52) / m.q);
        f.recip = static_cast<u64>((u128{1} << (63 + m.bits)) / m.q);
        f.recip52 = static_cast<u64>((u128{1} << (52 + m.bits)) / m.q) - (u64{1} << 52);
        out.push_back(f);
    }
    return out;
}

LiftFrom::LiftFrom(unsigned kappa_, const std::vector<Modulus>& moduli) : kappa(kappa_) {
    u128 big = 1;
    for (const Modulus& m : moduli) big *= m.q;  // modulo 2^128: only the low kappa bits count
    q0 = static_cast<u64>(big) & kMask52, q1 = static_cast<u64>(big >> 52) & kMask52;
    for (const Modulus& m : moduli) {
        const u64 down = m.pow(m.inverse(2), kappa);
        LiftPrime f{m, m.inverse(2), m.neg(down), 0, 0, 0, 0, 0};
        f.high = m.mul(f.low, m.two52);
        f.low_shoup = m.shoup(f.low), f.high_shoup = m.shoup(f.high);
        f.low_shoup52 = static_cast<u64>((u128{f.low} << 52) / m.q);
        f.high_shoup52 = static_cast<u64>((u128{f.high} << 52) / m.q);
        held.push_back(f);
    }
    primes = held.data(), count = held.size();
}
