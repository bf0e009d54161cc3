"""What a protocol costs online, stated as a number that tests compare with the ledger."""

from dataclasses import dataclass

from sottovoce.mpc.field import width
from sottovoce.mpc.requests import packed_size
from sottovoce.mpc.tables import RegionTable, SplineTable
from sottovoce.ring.primes import P_FIELD


@dataclass(frozen=True)
class Cost:
    """rounds as the ledger counts them (an exchange is 1, a look-up 2), payload bytes up (client to server)
    and down."""

    rounds: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.rounds + other.rounds, self.bytes_up + other.bytes_up, self.bytes_down + other.bytes_down
        )


def bits(n: int) -> int:
    """Payload of n bits: a wrap, the conversion of n shared bits."""
    return packed_size(n, 1)


def residues(n: int, modulus: int = P_FIELD) -> int:
    """Payload of n opened residues: masking n elements, n scalars."""
    return packed_size(n, width(modulus))


def ands(n: int) -> int:
    """Payload of n ANDs."""
    return bits(2 * n)


def muxes(n: int, modulus: int = P_FIELD) -> int:
    """Payload of n bit × value products."""
    return bits(n) + residues(n, modulus)


def exchange(*payloads: int) -> Cost:
    """One exchange of these payloads, the same in both directions."""
    return Cost(1, sum(payloads), sum(payloads))


def lookup(*tables: tuple[int, SplineTable | RegionTable]) -> Cost:
    """One look-up of n elements in each (n, table), all in the same two messages."""
    up = down = 0
    for n, table in tables:
        up += packed_size(n, table.segment_bits)
        entries = n << table.segment_bits
        if isinstance(table, SplineTable):
            up += residues(n * table.products, table.modulus)
            down += residues(entries * table.terms, table.modulus)
        else:
            down += packed_size(entries, table.width)
    return Cost(2, up, down)
