"""The named parameter sets of the SIMD scheme."""

from __future__ import annotations

from sottovoce.ring.primes import P_FIELD, SIMD_PRIMES, SPECIAL_PRIME
from sottovoce.rlwe import ParametersSpec

# 8192 slots of the share field; Q of 150 bits and QP of 200, below the 214 that 128-bit security allows.
SIMD = ParametersSpec(8192, SIMD_PRIMES, SPECIAL_PRIME, P_FIELD).checked()
