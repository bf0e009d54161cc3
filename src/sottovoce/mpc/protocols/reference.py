"""The kernels of `native/steps.cpp` in NumPy, to be read and compared with: what they compute, without the
packing. Bits are uint8 arrays, residues uint64. `mine` and `theirs` are what the parties opened."""

import numpy as np

from sottovoce.mpc import field
from sottovoce.mpc.field import Bits, Field
from sottovoce.mpc.protocols.wrap import multiple


def lower_half(x: Field, p: int) -> Bits:
    """[x < (p + 1)/2]."""
    return (x < np.uint64((p + 1) // 2)).astype(np.uint8)


def wrap_share(
    x: Field,
    p: int,
    mine: Bits,
    theirs: Bits,
    product: Field,
    shift: int,
    is_client: bool,
    modulus: int,
    offset: int,
) -> Field:
    """A share of (x − offset)/2^shift mod `modulus`; x: this party's share, at the server with the offset."""
    low, worth = lower_half(x, p), multiple(p, shift) % modulus
    round_up = 0 if is_client else (1 << shift) - 1
    own = ((x + np.uint64(round_up)) >> np.uint64(shift)) % np.uint64(modulus)
    known = (low & theirs).astype(np.int64)
    if not is_client:
        known -= (theirs & mine).astype(np.int64) + 1
    constant = (known.astype(object) * worth - (0 if is_client else offset >> shift)) % modulus
    sign = field.negate_where(mine ^ theirs, product, modulus) % np.uint64(modulus)
    total: Field = ((own.astype(object) + constant + sign.astype(object)) % modulus).astype(np.uint64)
    return total


def and_share(mine: Bits, theirs: Bits, ta: Bits, tb: Bits, tc: Bits, is_client: bool) -> Bits:
    """mine, theirs: (2n,), the opened halves of a, then of b."""
    d, e = np.split(mine ^ theirs, 2)
    share: Bits = tc ^ (d & tb) ^ (e & ta)
    return share ^ (d & e) if is_client else share


def bit_share(mine: Bits, theirs: Bits, values: Field, modulus: int, is_client: bool) -> Field:
    c = mine ^ theirs
    own = c.astype(np.uint64) if is_client else np.zeros(len(c), np.uint64)
    return field.add(own % np.uint64(modulus), field.negate_where(c, values, modulus), modulus)


def mux_share(value: Field, c: Bits, d: Field, arithmetic: Field, products: Field, modulus: int) -> Field:
    """c, d: the opened bit and value."""
    inner = field.add(field.mul(d, arithmetic, modulus), products, modulus)
    return field.add(value * c, field.negate_where(c, inner, modulus), modulus)


def mul_share(d: Field, e: Field, a: Field, b: Field, c: Field, modulus: int, is_client: bool) -> Field:
    """d, e: the opened x − a and y − b."""
    if is_client:
        b = field.add(b, e, modulus)
    return field.add(field.add(field.mul(d, b, modulus), field.mul(e, a, modulus), modulus), c, modulus)


def scale_share(
    opened: Field, vectors: Field, products: Field, scalars: Field, masked: Field, modulus: int
) -> Field:
    """opened, vectors, products: (rows, n); scalars and masked, the opened s − t: (rows,)."""
    left = field.mul(opened, scalars[:, None], modulus)
    return field.add(
        field.add(left, field.mul(vectors, masked[:, None], modulus), modulus), products, modulus
    )


def squares_share(opened: Field, r: Field, products: Field, modulus: int, is_client: bool) -> Field:
    """opened, r: (rows, n); products: (rows,)."""

    def inner(x: Field, y: Field) -> Field:
        return field.total(field.mul(x, y, modulus), -1, modulus)

    cross = field.add(inner(opened, r), products, modulus)
    share = field.add(field.add(cross, cross, modulus), inner(r, r), modulus)
    return field.add(share, inner(opened, opened), modulus) if is_client else share


def spline_share(entries: Field, powers: Field, cross: Field, modulus: int, constant: bool) -> Field:
    """The client's share: entries (n, terms), powers (products, n) of its remainders."""
    factors = entries[:, 1:] if constant else entries
    share = field.add(field.total(field.mul(factors, powers.T, modulus), -1, modulus), cross, modulus)
    return field.add(share, entries[:, 0], modulus) if constant else share


def spline_masked_share(
    corrections: Field, masks: Field, cross: Field, modulus: int, constant: bool
) -> Field:
    """The server's: corrections (products, n), masks (n, terms). The same formula with its own masks."""
    return spline_share(masks, corrections, cross, modulus, constant)


def take_bits(y: Field, low: int, high: int, ceiling: bool) -> Field:
    kept = y & np.uint64((1 << high) - 1)
    if ceiling:
        kept = kept + np.uint64((1 << low) - 1)
    return (kept >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
