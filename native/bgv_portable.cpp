// Portable inner loops of the RLWE kernels (see bgv_kernels.h). Operands are secret: no branch depends on them.
#include "bgv_kernels.h"

#include <cstring>

#include "cpu.h"

namespace {

void lift_portable(const u64* x, const Modulus& from, u64 scale, const Modulus* to, std::size_t m, u64* out, std::size_t n) {
    u64 shoup = from.shoup(scale), half = from.q / 2;
    for (std::size_t t = 0; t < m; ++t) {
        const Modulus& q = to[t];
        u64 wrap = q.reduce64(from.q);
        for (std::size_t i = 0; i < n; ++i) {
            u64 v = scale == 1 ? x[i] : from.mul_const(x[i], scale, shoup);
            u64 negative = u64{0} - ((half - v) >> 63);  // all ones if v > q/2: the representative is v - q
            out[t * n + i] = q.sub(q.reduce64(v), wrap & negative);
        }
    }
}

void dot_portable(const Modulus& m, const DotArgs& d) {
    // Products of residues below 2^61 leave room for 16 of them (and an accumulator) in 128 bits only below 2^62 each:
    // reduce after every eight.
    for (std::size_t i = 0; i < d.n; ++i) {
        u128 sum = d.accumulate ? d.out[i] : 0;
        for (std::size_t k = 0; k < d.count; ++k) {
            sum += u128{d.a[k * d.a_stride + i]} * d.b[k * d.b_stride + i];
            if ((k & 7) == 7) sum = m.reduce128(sum);
        }
        d.out[i] = m.reduce128(sum);
    }
}

void sub_scale_portable(const Modulus& m, const u64* x, const u64* y, u64 scale, u64* out, std::size_t n) {
    u64 shoup = m.shoup(scale);
    for (std::size_t i = 0; i < n; ++i) out[i] = m.mul_const(m.sub(x[i], y[i]), scale, shoup);
}

// Dense little-endian bit stream of values of up to 120 bits.
class BitWriter {
  public:
    explicit BitWriter(std::uint8_t* out) : out_(out) {}
    void put(u128 v, unsigned bits) {
        for (; bits > 56; bits -= 56, v >>= 56) put56(static_cast<u64>(v) & ((u64{1} << 56) - 1), 56);
        put56(static_cast<u64>(v), bits);
    }

  private:
    void put56(u64 v, unsigned bits) {
        acc_ |= u128{v} << fill_;
        for (fill_ += bits; fill_ >= 8; fill_ -= 8, acc_ >>= 8) *out_++ = static_cast<std::uint8_t>(acc_);
    }
    std::uint8_t* out_;
    u128 acc_ = 0;
    unsigned fill_ = 0;
};

class BitReader {
  public:
    explicit BitReader(const std::uint8_t* in) : in_(in) {}
    u128 get(unsigned bits) {
        u128 v = 0;
        unsigned at = 0;
        for (; bits > 56; bits -= 56, at += 56) v |= u128{get56(56)} << at;
        return v | (u128{get56(bits)} << at);
    }

  private:
    u64 get56(unsigned bits) {
        for (; fill_ < bits; fill_ += 8) acc_ |= u128{*in_++} << fill_;
        u64 v = static_cast<u64>(acc_) & ((u64{1} << bits) - 1);
        acc_ >>= bits;
        fill_ -= bits;
        return v;
    }
    const std::uint8_t* in_;
    u128 acc_ = 0;
    unsigned fill_ = 0;
};

// floor(v * 2^64 / q) for v < q, and what remains: the estimate from the reciprocal is at most two too small.
inline u64 divide_shifted(u64& v, u64 recip, const Modulus& m) {
    u64 est = static_cast<u64>((u128{v} * recip) >> (m.bits - 1));
    u64 rem = u64{0} - est * m.q;
    for (int i = 0; i < 2; ++i) {
        u64 d = rem - m.q, keep = u64{0} - (d >> 63);  // all ones if rem < q
        est += 1 + keep;
        rem = d + (m.q & keep);
    }
    v = rem;
    return est;
}

}  // namespace

const BgvKernels bgv_portable{lift_portable, dot_portable, sub_scale_portable};

const BgvKernels& bgv_kernels() { return bgv_portable; }

Fractions::Fractions(std::vector<Modulus> primes) : mod_(std::move(primes)) {
    for (const Modulus& m : mod_) {
        u64 rest = 1;
        for (const Modulus& o : mod_)
            if (o.q != m.q) rest = m.mul(rest, o.q % m.q);
        inv_.push_back(m.inverse(rest));
        inv_shoup_.push_back(m.shoup(inv_.back()));
        recip_.push_back(static_cast<u64>((u128{1} << (63 + m.bits)) / m.q));
    }
}

u128 Fractions::at(const u64* x, std::size_t n, std::size_t j) const {
    u128 sum = 0;
    for (std::size_t l = 0; l < mod_.size(); ++l) {
        u64 v = mod_[l].mul_const(x[l * n + j], inv_[l], inv_shoup_[l]);
        u64 hi = divide_shifted(v, recip_[l], mod_[l]), lo = divide_shifted(v, recip_[l], mod_[l]);
        sum += (u128{hi} << 64) | lo;
    }
    return sum;
}

void Fractions::round_pack(const u64* x, std::size_t n, unsigned kappa, std::uint8_t* out) const {
    BitWriter bits(out);
    u128 half = u128{1} << (127 - kappa);
    for (std::size_t j = 0; j < n; ++j) bits.put((at(x, n, j) + half) >> (128 - kappa), kappa);
}

void Fractions::scale_to_plain(const u64* x, std::size_t n, const std::uint8_t* added, unsigned kappa, const Modulus& p,
                               u64 factor, u64* out) const {
    u64 shoup = p.shoup(factor);
    BitReader bits(added);
    for (std::size_t j = 0; j < n; ++j) {
        u128 f = at(x, n, j);
        if (kappa) f += bits.get(kappa) << (128 - kappa);
        u128 y = u128{p.q} * static_cast<u64>(f >> 64) + mulhi(p.q, static_cast<u64>(f)) + (u64{1} << 63);
        out[j] = p.mul_const(cond_sub(static_cast<u64>(y >> 64), p.q), factor, shoup);
    }
}

void bgv_unpack_lift_row(const std::uint8_t* in, std::size_t n, unsigned kappa, const std::vector<Modulus>& mod, u64* out) {
    u128 big = 1;
    for (const Modulus& m : mod) big *= m.q;
    u64 q0 = static_cast<u64>(big), q1 = static_cast<u64>(big >> 64);
    BitReader bits(in);
    for (std::size_t j = 0; j < n; ++j) {
        // (a * Q) >> kappa over four words, rounded; a < 2^kappa keeps the result at most Q.
        u128 a = bits.get(kappa);
        u64 a0 = static_cast<u64>(a), a1 = static_cast<u64>(a >> 64);
        u128 low = u128{a0} * q0, mid1 = u128{a0} * q1, mid2 = u128{a1} * q0, high = u128{a1} * q1;
        u128 carry = (low >> 64) + static_cast<u64>(mid1) + static_cast<u64>(mid2);
        u128 lo = (carry << 64) | static_cast<u64>(low);
        u128 hi = high + (mid1 >> 64) + (mid2 >> 64) + (carry >> 64);
        u128 half = u128{1} << (kappa - 1), rounded = lo + half;
        hi += rounded < lo;
        u128 value = (rounded >> kappa) | (hi << (128 - kappa));
        for (std::size_t l = 0; l < mod.size(); ++l) out[l * n + j] = mod[l].reduce128(value);
    }
}
