// The extension module: each source file of native/ registers its kernels through one function declared here.
#include <nanobind/nanobind.h>

#include "module.h"

namespace nb = nanobind;

NB_MODULE(_native, m) {
    m.doc() = "Kernels of Sottovoce: they work in place over arrays that NumPy owns and release the GIL.";
    register_cpu(m);
    register_mpc(m);
    register_ot(m);
    register_ring(m);
    register_pack(m);
    register_field(m);
    register_bgv(m);
}
