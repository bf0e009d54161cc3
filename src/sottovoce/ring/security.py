"""How large a modulus may be: the 128-bit table that every parameter set is checked against."""

from __future__ import annotations

from dataclasses import dataclass

from sottovoce.errors import ParameterError

UNCHECKED = "unchecked"


@dataclass(frozen=True)
class SecurityLimit:
    """The largest lg(QP) at which RLWE of degree n keeps `bits` bits of security, error σ ≥ 3.19."""

    n: int
    secret: str
    log_qp: int
    bits: int
    source: str


_SOURCE = (
    "Bossuat et al., Security Guidelines for Implementing Homomorphic Encryption (IACR CiC 2025), "
    "classical, uniform ternary secret, as used by the lattice estimator"
)

_SPARSE_SOURCE = (
    "no standard table covers sparse secrets; practice of published bootstrapping sets (Bossuat et al., "
    "Bootstrapping for Approximate Homomorphic Encryption with Negligible Failure-Probability by Using "
    "Sparse-Secret Encapsulation, ACNS 2022), hybrid dual and meet-in-the-middle attacks included"
)

# "sparse-192": 192 coefficients are ±1; "ephemeral-32": 32, the secret inside a bootstrap, under which only
# the lowest modulus and one special prime are ever used.
LIMITS = (
    *(
        SecurityLimit(n, "ternary", log_qp, 128, _SOURCE)
        for n, log_qp in ((2048, 53), (4096, 106), (8192, 214), (16384, 430), (32768, 868), (65536, 1747))
    ),
    SecurityLimit(65536, "sparse-192", 1546, 128, _SPARSE_SOURCE),
    SecurityLimit(65536, "ephemeral-32", 121, 128, _SPARSE_SOURCE),
)


def limit(n: int, secret: str = "ternary") -> SecurityLimit:
    """The row of the table for degree n; ParameterError when there is none (a smaller ring is never
    secure)."""
    for row in LIMITS:
        if row.n == n and row.secret == secret:
            return row
    degrees = ", ".join(str(row.n) for row in LIMITS if row.secret == secret)
    raise ParameterError(
        f"the security table has no row for degree {n} with a {secret} secret: use a degree of {degrees}"
    )


def check(n: int, log_qp: float, secret: str = "ternary", security: int | str = 128) -> None:
    """Raise ParameterError unless a modulus of log_qp bits (special primes included) is secure at degree n.

    log_qp: lg of the product of *all* primes under which anything is ever encrypted or keyed. security:
    128, or "unchecked" for tests and experiments, which must then say so themselves.
    """
    if security == UNCHECKED:
        return
    if security != 128:
        raise ParameterError(f"security is 128 or {UNCHECKED!r}, not {security!r}")
    row = limit(n, secret)
    if log_qp > row.log_qp:
        raise ParameterError(
            f"a modulus of {log_qp:.1f} bits at degree {n} is not {security}-bit secure: the limit is "
            f"{row.log_qp} bits; use fewer or smaller primes, or a larger degree"
        )
