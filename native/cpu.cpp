#include "cpu.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <atomic>
#include <stdexcept>
#include <string>

#include "module.h"

namespace nb = nanobind;

Isa detected_isa() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512ifma") &&
        __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("gfni") && __builtin_cpu_supports("vaes") &&
        __builtin_cpu_supports("vpclmulqdq"))
        return Isa::avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul"))
        return Isa::avx2;
#endif
    return Isa::portable;
}

static std::atomic<int> g_isa{-1};

Isa active_isa() {
    int v = g_isa.load(std::memory_order_relaxed);
    if (v < 0) {
        v = static_cast<int>(detected_isa());
        g_isa.store(v, std::memory_order_relaxed);
    }
    return static_cast<Isa>(v);
}

static const char* name_of(Isa isa) {
    switch (isa) {
        case Isa::avx512: return "avx512";
        case Isa::avx2: return "avx2";
        default: return "portable";
    }
}

void register_cpu(nb::module_& m) {
    m.def("detected_isa", [] { return std::string(name_of(detected_isa())); },
          "The highest instruction set of this machine: 'avx512', 'avx2' or 'portable'.");
    m.def("active_isa", [] { return std::string(name_of(active_isa())); }, "The instruction set kernels dispatch on.");
    m.def("set_isa", [](const std::string& name) {
        for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512})
            if (name == name_of(isa)) {
                if (isa > detected_isa()) throw std::invalid_argument("this machine has no " + name);
                g_isa.store(static_cast<int>(isa));
                return;
            }
        throw std::invalid_argument("unknown instruction set " + name + ": portable, avx2 or avx512");
    }, nb::arg("name"), "Lower (or restore) the instruction set; tests use it to force each path.");
}
