// Bindings of the field kernels: element products, and the product of a public int16 matrix with shares.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>

#include "cpu.h"
#include "field_kernels.h"
#include "module.h"
#include "ring_kernels.h"
#include "ring_pool.h"

namespace nb = nanobind;

const FieldKernels* field_kernels() {
#if defined(__x86_64__)
    if (active_isa() == Isa::avx512) return &field_avx512;
    if (active_isa() == Isa::avx2) return &field_avx2;
#endif
    return nullptr;
}

namespace {

using Source = nb::ndarray<const u64, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<u64, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const std::int16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Batch = nb::ndarray<const u64, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using BatchOut = nb::ndarray<u64, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

Modulus field(u64 p, unsigned bits) {
    if (p < 2 || p >> bits) throw std::invalid_argument("the modulus is out of range");
    return Modulus(p);
}

void field_mul(Source a, Source b, u64 p, Words out) {
    if (a.size() != b.size() || a.size() != out.size()) throw std::invalid_argument("operands differ in size");
    const Modulus m = field(p, 61);
    nb::gil_scoped_release release;
    ring_kernels(m).mul(m, a.data(), b.data(), out.data(), a.size());
}

void field_matvec_i16(Matrix w, Batch x, u64 p, BatchOut out, int threads) {
    const std::size_t rows = w.shape(0), cols = w.shape(1), batch = x.shape(0);
    if (x.shape(1) != cols || out.shape(0) != batch || out.shape(1) != rows)
        throw std::invalid_argument("shapes must be W (d_out, d_in), x (T, d_in), out (T, d_out)");
    if (cols > kFieldColumns) throw std::invalid_argument("at most 2^17 columns are supported");
    const Modulus m = field(p, kFieldBits);
    nb::gil_scoped_release release;
    const std::size_t step = 64, tasks = (rows + step - 1) / step;
    const FieldKernels* kernels = field_kernels();
    std::vector<std::int16_t> storage;
    FieldDigits digits{};
    if (kernels) digits = field_digits(m, x.data(), cols, batch, kernels->lanes, storage);
    parallel_for(tasks, threads, [&](std::size_t task) {
        const std::size_t begin = task * step, end = begin + step < rows ? begin + step : rows;
        if (kernels)
            kernels->matvec_i16(m, w.data(), digits, out.data(), rows, cols, batch, begin, end);
        else
            field_matvec_portable(m, w.data(), x.data(), out.data(), rows, cols, batch, begin, end);
    });
}

}  // namespace

void register_field(nb::module_& m) {
    m.def("field_mul", &field_mul, nb::arg("a").noconvert(), nb::arg("b").noconvert(), nb::arg("p"),
          nb::arg("out").noconvert(), "out = a * b mod p element by element; p < 2^61, operands reduced.");
    m.def("field_matvec_i16", &field_matvec_i16, nb::arg("w").noconvert(), nb::arg("x").noconvert(), nb::arg("p"),
          nb::arg("out").noconvert(), nb::arg("threads") = 1,
          "out (T, d_out) = x (T, d_in) times the transpose of the signed matrix w (d_out, d_in), mod p < 2^48.");
}
