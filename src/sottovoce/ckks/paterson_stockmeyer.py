"""Polynomials of ciphertexts: Paterson and Stockmeyer's method in the Chebyshev basis, of least depth.

A polynomial is cut into parts, p = Σ_g q_g·T_g + leaf with g = 2^b, 2^(b+1), …, and every q_g is cut in turn
until the leaves are sums of a few T_i, i < 2^b. What differs from the textbook:

- A degree below 2^k takes exactly k levels. A leaf needs no level of its own where it is added to products
  that are not rescaled yet, and along the chain of leading parts the leaves shrink as the depth runs out.
- The products q_g·T_g of one node are added before they are relinearised, so a node costs one key switch.
- Every constant is encoded so that the result has exactly the scale that was asked for.

The plan depends on the polynomial only, not on ciphertexts. Key switches for degrees 7, 15, 31, 63 and 127:
4, 7, 10, 15 and 20.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import log2

import numpy as np

from sottovoce.ckks.chebyshev import Floats, Polynomial
from sottovoce.ckks.ciphertext import Ciphertext
from sottovoce.ckks.evaluator import Evaluator
from sottovoce.errors import ParameterError

# An argument may arrive with a scale that differs from the best one by this factor (lg) at no cost.
_FREE_SCALE = 0.5


@dataclass(frozen=True)
class Node:
    """Σ parts[g]·T_g + Σ leaf[i]·T_i; values are taken before rescaling."""

    parts: Mapping[int, Node]
    leaf: Mapping[int, float]

    @property
    def constant(self) -> float:
        return self.leaf.get(0, 0.0)

    def walk(self) -> Iterator[Node]:
        """Every node of the tree."""
        yield self
        for part in self.parts.values():
            yield from part.walk()


@dataclass(frozen=True)
class Plan:
    """How a polynomial is evaluated. powers: the T_i to compute, each after those it is made from."""

    polynomial: Polynomial
    root: Node
    powers: tuple[int, ...]

    @property
    def depth(self) -> int:
        """Levels between the argument in [−1, 1] and the result."""
        return max(1, self.polynomial.degree.bit_length())

    @cached_property
    def key_switches(self) -> int:
        return len(self.powers) + sum(bool(node.parts) for node in self.root.walk())

    @cached_property
    def products(self) -> int:
        """Products of ciphertexts, relinearised or not."""
        return len(self.powers) + sum(len(node.parts) for node in self.root.walk())

    def best_scale(self, scale: float) -> float:
        """The scale at which x should arrive for its affine map to [−1, 1] to cost no level.

        scale: that of the parameters. A plaintext factor that was encoded for this scale does it.
        """
        return scale / self.polynomial.radius


def plan(polynomial: Polynomial) -> Plan:
    """The plan with the fewest key switches, then products, over all sizes of leaves."""
    if polynomial.degree < 1:
        raise ParameterError("a polynomial of degree 0 needs no evaluation")
    depth = polynomial.degree.bit_length()
    candidates = [_plan(polynomial, bits, depth) for bits in range(1, depth + 1)]
    return min(candidates, key=lambda p: (p.key_switches, p.products))


def _plan(polynomial: Polynomial, bits: int, depth: int) -> Plan:
    root = _split(polynomial.coefficients, depth - 1, bits)
    needed: set[int] = set()
    for node in root.walk():
        for index in (*node.parts, *node.leaf):
            _require(index, needed)
    return Plan(polynomial, root, tuple(sorted(needed)))


def _require(index: int, needed: set[int]) -> None:
    """T_index and what it is made from: T_{a+b} = 2·T_a·T_b − T_{a−b}, a and b as equal as can be."""
    if index < 2 or index in needed:
        return
    needed.add(index)
    small = index // 2
    for other in (small, index - small, index - 2 * small):
        _require(other, needed)


def _depth(index: int) -> int:
    """Levels below the argument at which T_index is available."""
    return max(index - 1, 0).bit_length()


def _split(coefficients: Floats, depth: int, bits: int) -> Node:
    """A node whose operands may be `depth` levels below the argument."""
    parts: dict[int, Node] = {}
    rest = np.trim_zeros(coefficients, "b")
    leaf: dict[int, float] = {}
    while len(rest) > 1:
        degree = len(rest) - 1
        if degree < 1 << bits and _depth(degree) <= depth:
            break
        power = 1 << (degree.bit_length() - 1)
        quotient, rest = _divide(rest, power)
        if len(quotient) == 1:
            leaf[power] = float(quotient[0])
        else:
            parts[power] = _split(quotient, depth - 1, bits)
        rest = np.trim_zeros(rest, "b")
    leaf |= {i: float(c) for i, c in enumerate(rest) if c}
    return Node(parts, leaf)


def _divide(coefficients: Floats, power: int) -> tuple[Floats, Floats]:
    """q and r with p = q·T_power + r, the degree of p below 2·power."""
    quotient, rest = coefficients[power:].copy(), coefficients[:power].copy()
    quotient[1:] *= 2
    upper = coefficients[power + 1 :]
    rest[power - len(upper) : power] -= upper[::-1]
    return quotient, rest


def evaluate(
    evaluator: Evaluator,
    x: Ciphertext,
    how: Plan | Polynomial,
    scale: float | None = None,
    central: bool = False,
) -> Ciphertext:
    """The polynomial at every slot of x.

    x: slots in [low, high]; beyond, the result grows without bound. Takes `how.depth` levels, and one more
    if x's scale is not near `how.best_scale`. scale: of the result (the parameters' if not given). central:
    most arguments are near the middle of the interval; costs little and loses less precision there
    (`_doubled`). LevelError if x has too few levels.
    """
    how = plan(how) if isinstance(how, Polynomial) else how
    t = _normalised(evaluator, x, how)
    powers, raw = {1: t}, dict[int, Ciphertext]()
    for index in how.powers:
        if central and index & (index - 1) == 0:
            product = _doubled(evaluator, index // 2, powers, raw)
            if 2 * index in how.powers:
                raw[index] = evaluator.relinearize(product)
                powers[index] = evaluator.rescale(raw[index])
            else:
                powers[index] = evaluator.relinearize(product, rescale=1)
        else:
            powers[index] = _power(evaluator, powers, index)
    target = evaluator.parameters.scale if scale is None else scale
    return _finish(evaluator, how.root, powers, t.level - how.depth, target)


def _normalised(evaluator: Evaluator, x: Ciphertext, how: Plan) -> Ciphertext:
    """x mapped to [−1, 1], at a scale near that of the parameters."""
    polynomial = how.polynomial
    t = x.with_scale(x.scale * polynomial.radius)
    usual = _usual_scale(evaluator, x.level)
    if abs(log2(t.scale / usual)) > _FREE_SCALE:
        t = evaluator.match(t, x.level - 1, usual)
    if polynomial.centre:
        t = evaluator.add_scalar(t, -polynomial.centre / polynomial.radius)
    return t


def _usual_scale(evaluator: Evaluator, level: int) -> float:
    """Scales squared and divided by the primes below this level stay where they are."""
    return float(evaluator.parameters.primes[level])


def _power(evaluator: Evaluator, powers: Mapping[int, Ciphertext], index: int) -> Ciphertext:
    small = index // 2
    a, b = powers[index - small], powers[small]
    level = min(a.level, b.level)
    if index == 2 * small:
        return evaluator.relinearize(evaluator.tensor(a, b, factor=2, constant=-1.0), rescale=1)
    other = evaluator.drop_to(powers[index - 2 * small], level)
    less = evaluator.combine([other], [-1.0], a.scale * b.scale)
    return evaluator.relinearize(evaluator.tensor(a, b, factor=2, plus=less), rescale=1)


def _doubled(
    evaluator: Evaluator, half: int, powers: Mapping[int, Ciphertext], raw: Mapping[int, Ciphertext]
) -> Ciphertext:
    """T_2k = 2w² + 4ow + 1 with w = T_k − o and o = T_k(0) = ±1, a product still; k = half.

    Near the middle w is small, so the rounding of w hardly matters in w²; 4ow takes w as it was before it was
    rescaled. 2·T_k² − 1 would multiply the rounding by 4, at every doubling. Both are exact in scale: what
    the two scales differ by (some 2^-20) is taken from the rescaled w.
    """
    t = powers[half]
    if half not in raw:
        return evaluator.tensor(t, t, factor=2, constant=-1.0)
    middle = 1 if half % 4 == 0 else -1
    w = evaluator.add_scalar(t, -float(middle))
    scale, exact = w.scale * w.scale, evaluator.drop_to(raw[half], t.level)
    ratio = exact.scale / scale
    # 4o(T_k − o) + 1, T_k exact.
    rest = evaluator.combine(
        [exact.with_scale(scale), w], [4 * middle, 4 * middle * (1 - ratio)], scale, 1 - 4 * ratio
    )
    return evaluator.tensor(w, w, factor=2, plus=rest)


def _finish(
    evaluator: Evaluator, node: Node, powers: Mapping[int, Ciphertext], level: int, scale: float
) -> Ciphertext:
    """The node's value at this level and exact scale."""
    raw_level = level + 1
    raw = _raw(evaluator, node, powers, raw_level, scale * evaluator.parameters.primes[raw_level])
    done = evaluator.relinearize(raw, rescale=1) if node.parts else evaluator.rescale(raw)
    return done.with_scale(scale)


def _raw(
    evaluator: Evaluator, node: Node, powers: Mapping[int, Ciphertext], level: int, scale: float
) -> Ciphertext:
    """The node's value, not relinearised or rescaled."""
    terms = {i: c for i, c in node.leaf.items() if i} or {1: 0.0}
    total = evaluator.combine(
        [evaluator.drop_to(powers[i], level) for i in terms], list(terms.values()), scale, node.constant
    )
    for power, part in node.parts.items():
        operand = evaluator.drop_to(powers[power], level)
        value = _finish(evaluator, part, powers, level, scale / operand.scale)
        total = evaluator.tensor(value, operand, plus=total).with_scale(scale)
    return total
