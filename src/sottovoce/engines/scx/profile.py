"""The two ways to run the engine, and what each of them can honestly promise."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sottovoce.errors import ParameterMismatchError, ProtocolError

_ALL = 1 << 30  # more blocks than a model has


@dataclass(frozen=True)
class Privacy:
    """A machine-readable privacy statement: part of the handshake, printed when a party starts.

    kind: "statistical" or "none". server_reads: what an honest but curious server can work out with the
    attacks in `sottovoce.attacks`. hidden: what it cannot, as far as they show. trusts: whom the user must
    trust beside itself.
    """

    kind: str
    server_reads: tuple[str, ...]
    hidden: tuple[str, ...]
    trusts: str
    cryptographic: bool = False

    def to_json(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Profile:
    """first_blocks: the early blocks whose attention in generation stays with the user (l_s). As published,
    one; in `hardened` what `attacks.scx_gram.blocks_to_keep` makes of the attack's success, which is all of
    them. noise: scale of the Laplace noise, in units of the root mean square of what it covers. redundant
    rows: this share of the tokens, at least `rows`.
    """

    name: str
    first_blocks: int
    noise: float
    redundant_share: float
    redundant_rows: int
    privacy: Privacy

    def blocks_at_user(self, layers: int) -> int:
        """l_s of a model with so many blocks."""
        return min(self.first_blocks, layers)

    def redundant(self, tokens: int) -> int:
        """Redundant rows for so many tokens; both parties compute it, so it says nothing new."""
        return max(self.redundant_rows, -int(-self.redundant_share * tokens // 1))


PROFILES = {
    "paper": Profile(
        "paper",
        first_blocks=1,
        noise=1.0,
        redundant_share=0.125,
        redundant_rows=4,
        privacy=Privacy(
            "none",
            server_reads=("prompt", "answer", "keys and values of the middle blocks"),
            hidden=(),
            trusts="nobody can be trusted with less than everything: the published encoding is broken",
        ),
    ),
    "hardened": Profile(
        "hardened",
        first_blocks=_ALL,
        noise=0.0,
        redundant_share=0.0,
        redundant_rows=0,
        privacy=Privacy(
            "statistical",
            server_reads=("number of tokens", "times"),
            hidden=("prompt", "answer", "keys and values"),
            trusts="whoever runs the user side, which holds all weights",
        ),
    ),
}
NAMES = tuple(PROFILES)


def profile_of(name: str) -> Profile:
    if name not in PROFILES:
        raise ParameterMismatchError(
            f"unknown profile {name!r:.40}; this version knows {', '.join(PROFILES)}"
        )
    return PROFILES[name]


def check_statement(name: str, statement: Any) -> None:
    """ProtocolError if a server states something else about a profile than this release does."""
    if statement != profile_of(name).privacy.to_json():
        raise ProtocolError(
            f"the server's privacy statement for profile {name!r} is not the one this release makes; "
            "install the same release on both"
        )


def statement_lines(name: str) -> list[str]:
    """The statement in words."""
    privacy = profile_of(name).privacy
    hidden = ", ".join(privacy.hidden) or "nothing"
    return [
        f"engine scx, profile {name}: NOT cryptography. Privacy: {privacy.kind}",
        f"the server can read: {', '.join(privacy.server_reads)}; hidden from it: {hidden}",
        f"you trust: {privacy.trusts}",
    ]
