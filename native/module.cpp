// The extension module: each source file of native/ registers its kernels through one function declared here.
#include <nanobind/nanobind.h>

#include "module.h"

namespace nb = nanobind;

NB_MODULE(_native, m) {
    // Ring tables are cached for the life of the process; their survival at exit is no leak worth a user's attention.
    nb::set_leak_warnings(false);
    m.doc() = "Kernels of Sottovoce: they work in place over arrays that NumPy owns and release the GIL.";
    register_cpu(m);
    register_mpc(m);
    register_steps(m);
    register_ot(m);
    register_ring(m);
    register_pack(m);
    register_field(m);
    register_field_matmul(m);
    register_bgv(m);
    register_dense(m);
    register_ckks(m);
    register_ckks_pointwise(m);
    register_recycle(m);
}
