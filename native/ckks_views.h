// What the bindings of CKKS share: operands that may be views of a larger array, and checks.
#pragma once

#include <algorithm>
#include <stdexcept>

#include "ckks_kernels.h"
#include "ring.h"

// Rows of n words next to each other in the last two axes; leading axes may be strided (a ciphertext of a lower level).
using View = nb::ndarray<const u64, nb::device::cpu>;

inline void require(bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(what);
}

inline bool rows_contiguous(const View& x) {
    const std::size_t d = x.ndim();
    return (x.shape(d - 1) == 1 || x.stride(d - 1) == 1) &&
           (x.shape(d - 2) == 1 || x.stride(d - 2) == static_cast<i64>(x.shape(d - 1)));
}

inline std::vector<Modulus> moduli_of(const Ring& r, std::size_t first, std::size_t last) {
    std::vector<Modulus> out;
    for (std::size_t l = first; l < last; ++l) {
        require(r.limbs[l]->m.bits <= 50, "key switching takes primes below 2^50");
        out.push_back(r.limbs[l]->m);
    }
    return out;
}

inline std::size_t chunk_of(std::size_t n) { return std::min(n, kConvertChunk); }
