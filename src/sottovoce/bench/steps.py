"""What a benchmark session does, step by step, and what both parties report of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sottovoce.bench.shaped import Network
from sottovoce.correlations.hints import MatrixKey
from sottovoce.engines.base import EngineOptions
from sottovoce.models import Model
from sottovoce.net import LedgerRow

if TYPE_CHECKING:
    from sottovoce.bench.parties import Party


@dataclass(frozen=True)
class Open:
    """A new session, with fresh keys, that begins with `public` tokens."""

    public: tuple[int, ...]


@dataclass(frozen=True)
class Fill:
    """Cache private tokens without computing them: real keys and values of the text so far, freshly shared.

    They go through the cache's own `append`, encryption included, as those of a prefill would. The masked
    cache takes them without material for queries, which they never ask: once opened, tokens are all alike.
    """

    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Hints:
    """The server's hints for prepared matrix products, which a client gets once and keeps; measured."""


@dataclass(frozen=True)
class Prepare:
    """Make one-time material ahead, each kind in one batch, measured; none is made while there is enough.

    attention: products of masks for so many tokens or more, where the cache is masked. matrices: products of
    matrices for so many tokens (0: none), of `keys` or all. needed: tokens that there must be at least.
    """

    attention: int
    matrices: int = 0
    needed: int = 1
    keys: tuple[MatrixKey, ...] | None = None
    point: str = ""


@dataclass(frozen=True)
class Forward:
    """One pass over private tokens: one token is a decode step, several are a prefill.

    point: the name of the measurement that the pass belongs to; empty if it is none of them.
    """

    tokens: tuple[int, ...]
    point: str = ""


@dataclass(frozen=True)
class Generate:
    """Pass the most likely token after the pass before, `count` times."""

    count: int


@dataclass(frozen=True)
class Truncate:
    """Forget all tokens from a position on."""

    length: int


@dataclass(frozen=True)
class Shape:
    """Another network from here on; only in a job that is `shaped`."""

    network: Network


@dataclass(frozen=True)
class Call:
    """Something else that both parties do in lockstep, measured. `action` is a function of an importable
    module; what it returns at the client becomes the logits of the pass.
    """

    action: Callable[[Party], npt.NDArray[Any] | None]
    point: str = ""


Step = Open | Fill | Hints | Prepare | Forward | Generate | Truncate | Shape | Call


@dataclass(frozen=True)
class Job:
    """What both processes are told. model: as for `load_model`, or a function of an importable module.

    shaped: the channel can emulate networks (`Shape`).
    """

    options: EngineOptions
    model: str | Callable[[], Model]
    steps: tuple[Step, ...]
    shaped: bool = False


@dataclass
class Pass:
    """One measured pass at one party.

    seconds: wall clock at this party, between two moments at which both were idle. cpu_seconds: all threads
    of its process. memory_bytes: largest resident memory during the pass. rows: the ledger. token (the last
    one passed) and logits (float32): the client's. kind, tokens: of a batch of material, and for how many
    tokens it is.
    """

    seconds: float
    cpu_seconds: float
    memory_bytes: int
    rows: list[LedgerRow] = field(default_factory=list)
    token: int = -1
    kind: str = ""
    tokens: int = 1
    logits: npt.NDArray[np.float32] | None = None


@dataclass
class Outcome:
    """What a party reports: for every step its passes; its largest memory; what the last Open cost."""

    passes: list[list[Pass]] = field(default_factory=list)
    peak_memory_bytes: int = 0
    setup: LedgerRow | None = None


def passes_of(job: Job, outcome: Outcome, point: str) -> list[Pass]:
    """All passes of one measurement, in order."""
    return [
        one
        for step, passes in zip(job.steps, outcome.passes, strict=True)
        if isinstance(step, Forward | Call) and step.point == point
        for one in passes
    ]
