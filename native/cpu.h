// Which instruction sets the kernels may use: detected once, and lowered by tests to force each path.
#pragma once

enum class Isa : int { portable = 0, avx2 = 1, avx512 = 2 };

// The highest instruction set this machine has (AVX-512 means F, DQ, BW, VL, IFMA, VBMI, VAES and VPCLMULQDQ together).
Isa detected_isa();

// The instruction set that kernels dispatch on: detected_isa() unless lowered with set_isa.
Isa active_isa();
