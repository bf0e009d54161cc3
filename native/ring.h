// A polynomial ring Z_Q[X]/(X^n + 1), Q a product of primes: the object behind sottovoce.ring.RingContext.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>
#include <string>

#include "ring_kernels.h"
#include "ring_pool.h"

namespace nb = nanobind;

using Words = nb::ndarray<u64, nb::c_contig, nb::device::cpu>;         // written to
using Source = nb::ndarray<const u64, nb::c_contig, nb::device::cpu>;  // only read: may be a read-only map

struct Ring {
    u32 n;
    std::vector<std::shared_ptr<const NttPlan>> limbs;

    Ring(u32 n_, const std::vector<u64>& primes) : n(n_) {
        for (u64 q : primes) limbs.push_back(ntt_plan(n, q));
        if (limbs.empty()) throw std::invalid_argument("a ring needs at least one prime");
    }
    std::size_t size() const { return limbs.size(); }
    std::size_t words() const { return limbs.size() * n; }  // of one polynomial

    // How many polynomials the array holds; its last two axes must be (limbs, n).
    template <class Array>
    std::size_t count(const Array& x) const {
        if (x.ndim() < 2 || x.shape(x.ndim() - 1) != n || x.shape(x.ndim() - 2) != size())
            throw std::invalid_argument("expected an array of shape (..., " + std::to_string(size()) + ", " +
                                        std::to_string(n) + ")");
        return x.size() / words();
    }
    template <class A, class B>
    void same(const A& a, const B& b) const {
        if (count(a) != count(b)) throw std::invalid_argument("operands hold different numbers of polynomials");
    }
};
