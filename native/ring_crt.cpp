// From residues to integers and fractions, and back: rounding x/q to a power of two, exact centred values, wide words.
#include "ring.h"

#include "module.h"

namespace {

struct CrtLimb {
    Modulus m;
    u64 hat_inv, hat_inv_shoup;  // (q/q_i)^-1 mod q_i
    u128 hat;                    // q/q_i mod 2^128
    u128 inv;                    // floor(2^(127 + bits) / q_i), in [2^127, 2^128)
};

struct Crt {
    std::vector<CrtLimb> limbs;
    u128 q = 1;  // mod 2^128

    explicit Crt(const Ring& r) {
        for (const auto& plan : r.limbs) q *= plan->m.q;
        for (std::size_t i = 0; i < r.size(); ++i) {
            CrtLimb c{r.limbs[i]->m, 1, 0, 1, 0};
            u64 hat = 1;
            for (std::size_t j = 0; j < r.size(); ++j)
                if (j != i) {
                    hat = c.m.mul(hat, r.limbs[j]->m.q % c.m.q);
                    c.hat *= r.limbs[j]->m.q;
                }
            c.hat_inv = c.m.inverse(hat);
            c.hat_inv_shoup = c.m.shoup(c.hat_inv);
            const u128 top = u128{1} << (63 + c.m.bits);
            c.inv = ((top / c.m.q) << 64) + (((top % c.m.q) << 64) / c.m.q);
            limbs.push_back(c);
        }
    }
};

// y / q_i as a 128-bit fraction, at most two units too small.
inline u128 fraction(u64 y, const CrtLimb& c) {
    const u128 low = u128{y} * static_cast<u64>(c.inv);
    const u128 high = u128{y} * static_cast<u64>(c.inv >> 64) + (low >> 64);
    const unsigned s = c.m.bits - 1;
    return s == 0 ? high << 63 << 1 : (high << (64 - s)) | (static_cast<u64>(low) >> s);
}

struct Sum {
    u128 frac = 0;     // x/q mod 1
    u64 carries = 0;   // the integer part of sum y_i/q_i
    u128 value = 0;    // sum y_i * (q/q_i) mod 2^128
};

inline Sum gather(const Crt& crt, const u64* x, std::size_t stride) {
    Sum s;
    for (const CrtLimb& c : crt.limbs) {
        const u64 y = c.m.mul_const(*x, c.hat_inv, c.hat_inv_shoup);
        const u128 f = fraction(y, c);
        s.frac += f;
        s.carries += s.frac < f;
        s.value += c.hat * y;
        x += stride;
    }
    return s;
}

// round(t * f / 2^128) mod t
inline u64 scale_fraction(u128 f, u64 t) {
    const u128 high = u128{t} * static_cast<u64>(f >> 64) + ((u128{t} * static_cast<u64>(f)) >> 64);
    return cond_sub(static_cast<u64>((high + (u128{1} << 63)) >> 64), t);
}

template <class Work>  // work(polynomial, coefficient)
void each_coefficient(std::size_t polynomials, std::size_t n, int threads, Work&& work) {
    nb::gil_scoped_release release;
    const std::size_t step = std::min<std::size_t>(n, 1024), chunks = n / step;
    parallel_for(polynomials * chunks, threads, [&](std::size_t task) {
        const std::size_t b = task / chunks, begin = (task % chunks) * step;
        for (std::size_t i = begin; i < begin + step; ++i) work(b, i);
    });
}

void store(Words& out, std::size_t at, u128 v) {
    out.data()[2 * at] = static_cast<u64>(v);
    out.data()[2 * at + 1] = static_cast<u64>(v >> 64);
}

void need(bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(what);
}

void crt_round(const Ring& r, Source x, unsigned bits, Words out, int threads) {
    const std::size_t count = r.count(x);
    need(out.size() == 2 * count * r.n, "the output needs two words per coefficient");
    need(bits >= 1 && bits <= 120, "between 1 and 120 bits can be kept");
    const Crt crt(r);
    const u128 half = u128{1} << (127 - bits);
    each_coefficient(count, r.n, threads, [&](std::size_t b, std::size_t i) {
        store(out, b * r.n + i, (gather(crt, x.data() + b * r.words() + i, r.n).frac + half) >> (128 - bits));
    });
}

void crt_scale(const Ring& r, Source x, u64 t, Words out, int threads) {
    const std::size_t count = r.count(x);
    need(out.size() == count * r.n, "the output needs one word per coefficient");
    need(t >= 2 && t < (u64{1} << 61), "the target modulus must be in [2, 2^61)");
    const Crt crt(r);
    each_coefficient(count, r.n, threads, [&](std::size_t b, std::size_t i) {
        out.data()[b * r.n + i] = scale_fraction(gather(crt, x.data() + b * r.words() + i, r.n).frac, t);
    });
}

// The centred representative is sum y_i q/q_i - k q with k = round(sum y_i / q_i).
inline u64 rounded_carries(const Sum& s) { return s.carries + static_cast<u64>(s.frac >> 127); }

void crt_words(const Ring& r, Source x, Words out, int threads) {
    const std::size_t count = r.count(x);
    need(out.size() == 2 * count * r.n, "the output needs two words per coefficient");
    const Crt crt(r);
    each_coefficient(count, r.n, threads, [&](std::size_t b, std::size_t i) {
        const Sum s = gather(crt, x.data() + b * r.words() + i, r.n);
        store(out, b * r.n + i, s.value - crt.q * rounded_carries(s));
    });
}

void crt_mod(const Ring& r, Source x, u64 t, Words out, int threads) {
    const std::size_t count = r.count(x);
    need(out.size() == count * r.n, "the output needs one word per coefficient");
    need(t >= 2 && t < (u64{1} << 61), "the target modulus must be in [2, 2^61)");
    const Crt crt(r);
    const Modulus mt(t);
    std::vector<u64> hat;
    u64 q = 1;
    for (std::size_t i = 0; i < r.size(); ++i) {
        u64 h = 1;
        for (std::size_t j = 0; j < r.size(); ++j)
            if (j != i) h = mt.mul(h, r.limbs[j]->m.q % t);
        hat.push_back(h);
        q = mt.mul(q, r.limbs[i]->m.q % t);
    }
    each_coefficient(count, r.n, threads, [&](std::size_t b, std::size_t i) {
        const u64* at = x.data() + b * r.words() + i;
        u128 frac = 0, sum = 0;
        u64 carries = 0;
        for (std::size_t l = 0; l < crt.limbs.size(); ++l, at += r.n) {
            const CrtLimb& c = crt.limbs[l];
            const u64 y = c.m.mul_const(*at, c.hat_inv, c.hat_inv_shoup);
            const u128 f = fraction(y, c);
            frac += f;
            carries += frac < f;
            sum += u128{y} * hat[l];
        }
        carries += static_cast<u64>(frac >> 127);
        out.data()[b * r.n + i] = mt.sub(mt.reduce128(sum), mt.mul(carries, q));
    });
}

void from_words(const Ring& r, Source words, Words out, int threads) {
    const std::size_t count = r.count(out);
    need(words.size() == 2 * count * r.n, "the input needs two words per coefficient");
    each_coefficient(count, r.n, threads, [&](std::size_t b, std::size_t i) {
        const u64* w = words.data() + 2 * (b * r.n + i);
        const u128 v = (u128{w[1]} << 64) | w[0];
        for (std::size_t l = 0; l < r.size(); ++l) out.data()[b * r.words() + l * r.n + i] = r.limbs[l]->m.reduce128(v);
    });
}

void scale_words(Source words, unsigned bits, u64 t, Words out) {
    need(words.size() == 2 * out.size(), "the input needs two words per value");
    need(bits >= 1 && bits <= 128 && t >= 2 && t < (u64{1} << 61), "bits must be in [1, 128], the modulus in [2, 2^61)");
    nb::gil_scoped_release release;
    for (std::size_t i = 0; i < out.size(); ++i) {
        const u128 v = (u128{words.data()[2 * i + 1]} << 64) | words.data()[2 * i];
        out.data()[i] = scale_fraction(v << (128 - bits), t);
    }
}

}  // namespace

void register_ring_crt(nb::module_& m) {
    auto r = nb::arg("ring");
    auto x = nb::arg("x").noconvert(), out = nb::arg("out").noconvert(), words = nb::arg("words").noconvert();
    auto threads = nb::arg("threads"), bits = nb::arg("bits"), t = nb::arg("modulus");
    m.def("crt_round", &crt_round, r, x, bits, out, threads, "round(2^bits * x / q) mod 2^bits, two words each.");
    m.def("crt_scale", &crt_scale, r, x, t, out, threads, "round(t * x / q) mod t.");
    m.def("crt_words", &crt_words, r, x, out, threads, "The centred integer modulo 2^128, two words each.");
    m.def("crt_mod", &crt_mod, r, x, t, out, threads, "The centred integer modulo t.");
    m.def("crt_from_words", &from_words, r, words, out, threads, "Residues of unsigned 128-bit integers.");
    m.def("scale_words", &scale_words, words, bits, t, out, "round(t * u / 2^bits) mod t.");
}
