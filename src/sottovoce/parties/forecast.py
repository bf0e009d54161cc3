"""What a session will cost, before there is one: the client's steps with nobody at the other end."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

from ..engines.base import EngineOptions, Progress
from ..engines.hybrid.counting import CountingParty, nobody
from ..engines.public import PublicModel
from ..net import Channel, Ledger
from .protocol import Command, Verb


@dataclass(frozen=True)
class Course:
    """A session: tokens prepared ahead in it, public and private ones of the prompt, new ones.

    As in a real answer, the last new token is chosen and not sent.
    """

    public: int
    private: int
    new: int
    prepared: int = 0


@dataclass(frozen=True)
class Forecast:
    """ledger: phases setup, prepare, prefill, decode. Handshake and model card are not in it.

    local_seconds: what the client's part of the arithmetic on shares took here, with no cryptography.
    """

    ledger: Ledger
    local_seconds: float


def forecast(
    public: PublicModel,
    options: EngineOptions,
    course: Course,
    progress: Progress = lambda done, total, what: None,
    repeating: bool = True,
) -> Forecast:
    """Bytes and rounds of a session of the hybrid engine, exactly; about the client's own time for
    arithmetic. progress: in new tokens, which take about the same time each. repeating: run one block of
    those that are equal, see `engines.hybrid.repeating`; the figures are the same."""
    channel = nobody(repeating)
    party = CountingParty(options, public)
    with channel.ledger.phase("setup"):
        party.setup(channel)
    start = perf_counter()
    if course.prepared:
        more = True
        while more:
            with channel.ledger.phase("prepare"):
                _order(channel, Command(Verb.PREPARE, course.prepared))
                more = party.prepare_step(course.prepared)
    with channel.ledger.phase("prefill"):
        _order(channel, Command(Verb.PREFILL, course.private, (0,) * course.public))
        party.prefill((0,) * course.public, (0,) * course.private)
    for done in range(course.new - 1):
        progress(done, course.new - 1, f"counting, cache {options.kv}")
        with channel.ledger.phase("decode"):
            _order(channel, Command(Verb.DECODE))
            party.decode(0)
    progress(1, 1, f"counting, cache {options.kv}")
    return Forecast(channel.ledger, perf_counter() - start)


def _order(channel: Channel, command: Command) -> None:
    with channel.ledger.operation("command"):
        channel.send(command.pack())
