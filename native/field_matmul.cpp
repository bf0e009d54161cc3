// Products of small matrices of shares: attention scores and mixing on opened values, and local terms of correlations.
#include "field_matmul.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>

#include "cpu.h"
#include "module.h"
#include "ring_pool.h"

namespace nb = nanobind;

void field_matmul_portable(const Modulus& p, const MatmulArgs& a) {
    constexpr std::size_t kBlock = 8;
    for (std::size_t r = 0; r < a.m; ++r)
        for (std::size_t first = 0; first < a.n; first += kBlock) {
            const std::size_t width = a.n - first < kBlock ? a.n - first : kBlock;
            u128 sums[kBlock] = {};
            for (std::size_t i = 0; i < a.k; ++i) {
                const u64 left = a.x[r * a.k + i], *right = a.y + i * a.y_stride + first;
                for (std::size_t j = 0; j < width; ++j) sums[j] += u128{left} * right[j];
            }
            for (std::size_t j = 0; j < width; ++j) a.out[r * a.n + first + j] = p.reduce128(sums[j]);
        }
}

namespace {

using Left = nb::ndarray<const u64, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Right = nb::ndarray<const u64, nb::ndim<3>, nb::device::cpu>;
using Out = nb::ndarray<u64, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

void field_matmul(Left x, Right y, u64 p, Out out, int threads) {
    const std::size_t batch = x.shape(0), m = x.shape(1), k = x.shape(2), n = y.shape(2);
    if (y.shape(0) != batch || y.shape(1) != k || out.shape(0) != batch || out.shape(1) != m || out.shape(2) != n)
        throw std::invalid_argument("shapes must be x (S, m, k), y (S, k, n), out (S, m, n)");
    if (n > 1 && y.stride(2) != 1) throw std::invalid_argument("the last axis of y must be dense");
    if (y.stride(0) < 0 || y.stride(1) < 0) throw std::invalid_argument("y must not run backwards");
    if (p < 2 || p >> kMatmulBits) throw std::invalid_argument("the modulus must be below 2^44");
    const Modulus modulus(p);
    const std::size_t step = 16, blocks = (m + step - 1) / step;
    nb::gil_scoped_release release;
    parallel_for(batch * blocks, threads, [&](std::size_t task) {
        const std::size_t s = task / blocks, row = task % blocks * step;
        const MatmulArgs args{x.data() + (s * m + row) * k, y.data() + s * static_cast<std::size_t>(y.stride(0)),
                              static_cast<std::size_t>(y.stride(1)), out.data() + (s * m + row) * n,
                              m - row < step ? m - row : step, k, n};
#if defined(__x86_64__)
        if (active_isa() == Isa::avx512) return field_matmul_avx512(modulus, args);
#endif
        field_matmul_portable(modulus, args);
    });
}

}  // namespace

void register_field_matmul(nb::module_& m) {
    m.def("field_matmul", &field_matmul, nb::arg("x").noconvert(), nb::arg("y").noconvert(), nb::arg("p"),
          nb::arg("out").noconvert(), nb::arg("threads") = 1,
          "out (S, m, n) = x (S, m, k) times y (S, k, n) mod p < 2^44, operands reduced; only y's last axis must be dense.");
}
