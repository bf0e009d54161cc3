// Inner loops of bgv.cpp, one set per instruction set, and the exact fractions that rounding and decoding share.
#pragma once

#include "ring_arith.h"

// out[i] = (accumulate ? out[i] : 0) + sum_k a[k*a_stride + i] * b[k*b_stride + i] modulo one prime.
struct DotArgs {
    const u64* a;
    std::size_t a_stride;
    const u64* b;
    std::size_t b_stride;
    u64* out;
    std::size_t count, n;
    bool accumulate;
};

struct BgvKernels {
    void (*lift)(const u64* x, const Modulus& from, u64 scale, const Modulus* to, std::size_t m, u64* out, std::size_t n);
    void (*dot)(const Modulus& m, const DotArgs& args);
    void (*sub_scale)(const Modulus& m, const u64* x, const u64* y, u64 scale, u64* out, std::size_t n);
};

extern const BgvKernels bgv_portable;
const BgvKernels& bgv_kernels();

// x / Q as a fraction in units of 2^-128 for x given by its residues: sum_l [x_l (Q/q_l)^-1]_{q_l} / q_l modulo 1, with
// an error of at most one unit per prime.
class Fractions {
  public:
    explicit Fractions(std::vector<Modulus> primes);
    void round_pack(const u64* x, std::size_t n, unsigned kappa, std::uint8_t* out) const;
    void scale_to_plain(const u64* x, std::size_t n, const std::uint8_t* added, unsigned kappa, const Modulus& p,
                        u64 factor, u64* out) const;

  private:
    u128 at(const u64* x, std::size_t n, std::size_t j) const;
    std::vector<Modulus> mod_;
    std::vector<u64> inv_, inv_shoup_;  // (Q/q_l)^-1 mod q_l
    std::vector<u64> recip_;            // floor(2^(63+bits) / q_l)
};

void bgv_unpack_lift_row(const std::uint8_t* in, std::size_t n, unsigned kappa, const std::vector<Modulus>& mod, u64* out);
