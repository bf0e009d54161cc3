"""Faults at random points of a kept session: it goes on with the same tokens, or says clearly why not.

Every point is a session of the tiny model, a prompt and some greedy tokens, between two processes in which
one thing goes wrong at one frame: the connection breaks, a frame is cut, doubled or late, one of the two
processes gets SIGKILL. After an error the user does the obvious thing: opens the saved session again and goes
on. A point is good if the tokens are those of a session without faults, if no frame was ever sent twice
(frames of tokens are masked with one-time values or freshly encrypted: a repeated one would mean a repeated
mask), if no row of a pool was handed out twice, and if both parties' files are whole.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from sottovoce.bench.driven import drive
from sottovoce.bench.faulty import Fault, Plan
from sottovoce.bench.faulty_point import PROMPT, PUBLIC, Point, prepare_pools
from sottovoce.bench.machine import header
from sottovoce.engines.base import Engine, EngineOptions, Progress
from sottovoce.engines.registry import make_engine
from sottovoce.models.tiny import tiny_model
from sottovoce.net import Role

_TOKENS = 4
# A step that is done again takes fresh rows: a pool for so many answers runs dry in no point.
_SPARE = 3


@dataclass
class Report:
    """seamless: nobody noticed. reopened: after a clear error the saved session went on. restarted: it had
    not been saved yet, and the user began anew. failures: everything that must not be."""

    kv: str
    points: int
    seed: int
    seamless: int = 0
    reopened: int = 0
    restarted: int = 0
    resumed_connections: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "faults": dict(self.faults), "errors": dict(self.errors)}


def run(
    points: int = 1000,
    seed: int = 0,
    kv: str = "clear",
    pool: bool = False,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """For `sottovoce bench faults`."""
    return {**run_faults(points, seed, kv, pool, progress).to_json(), **header()}


def run_faults(
    points: int,
    seed: int = 0,
    kv: str = "clear",
    pool: bool = False,
    progress: Progress = lambda done, total, what: None,
) -> Report:
    """kv: a strategy of the engine hybrid, or `clear` for the engine without cryptography. pool: sessions
    spend what was prepared before. Cost: about a second a point with cryptography."""
    rng, start = random.Random(seed), perf_counter()
    options = EngineOptions("clear") if kv == "clear" else EngineOptions("hybrid", kv)
    engine = make_engine(options, tiny_model())
    engine.prepare()
    # Tables that are made on first use: the processes of the points inherit them.
    drive(engine, lambda session: (session.prefill(PUBLIC, PROMPT), session.decode(1)))
    report = Report(f"{kv}, pool" if pool else kv, points, seed)
    with tempfile.TemporaryDirectory(prefix="sottovoce-faults-") as made:
        pools = Path(made) / "pools" if pool else None
        if pool:
            prepare_pools(engine, Path(made), _SPARE * (len(PUBLIC) + len(PROMPT) + _TOKENS))
        expected, frames = _undisturbed(engine, pools)
        for point in range(points):
            party = rng.choice(list(Role))
            plan = Plan(rng.choice(list(Fault)), party, rng.randint(1, frames[party]), rng.random() * 0.005)
            report.faults[f"{plan.fault} {party.name.lower()}"] += 1
            _judge(report, engine, plan, pools, expected)
            progress(point + 1, points, "faults")
    report.seconds = perf_counter() - start
    return report


def _undisturbed(engine: Engine, pools: Path | None) -> tuple[list[int], dict[Role, int]]:
    """Tokens of a session in which nothing goes wrong, and how many frames each party sends."""
    with tempfile.TemporaryDirectory(prefix="sottovoce-faults-") as directory:
        point = Point(engine, Path(directory), None, _TOKENS, pools)
        return point.run().tokens, point.board.frames


def _judge(report: Report, engine: Engine, plan: Plan, pools: Path | None, expected: list[int]) -> None:
    where = f"{plan.fault} by {plan.party.name.lower()} at frame {plan.frame}"
    with tempfile.TemporaryDirectory(prefix="sottovoce-faults-") as directory:
        point = Point(engine, Path(directory), plan, _TOKENS, pools)
        try:
            course = point.run()
        except Exception as error:  # noqa: BLE001  (whatever it is, it is a finding)
            report.failures.append(f"{where}: {type(error).__name__}: {error}")
            return
        setattr(report, course.how, getattr(report, course.how) + 1)
        report.resumed_connections += course.resumed
        report.errors.update(course.errors)
        if course.tokens != expected:
            report.failures.append(f"{where}: other tokens")
        # A doubled frame is the fault itself.
        repeated = point.board.repeated("frame")
        if report.kv != "clear" and repeated > (plan.fault is Fault.DUPLICATE):
            report.failures.append(f"{where}: {repeated} frames were sent twice")
        if rows := point.board.repeated("row"):
            report.failures.append(f"{where}: {rows} rows of a pool were handed out twice")
        report.failures += [f"{where}: {finding}" for finding in point.damage()]
        point.board.close()
