"""Faults at random points of a kept session: it goes on with the same tokens, or says clearly why not.

Every point is a session of the tiny model, a prompt and some greedy tokens, between two processes in which
one thing goes wrong at one frame: the connection breaks, a frame is cut, doubled or late, one of the two
processes gets SIGKILL. After an error the user does the obvious thing: opens the saved session again and goes
on. A point is good if the tokens are those of a session without faults, if no frame was ever sent twice
(frames of tokens are masked with one-time values or freshly encrypted: a repeated one would mean a repeated
mask), if no row of a pool was handed out twice, and if both parties' files are whole.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from sottovoce.bench.driven import drive
from sottovoce.bench.faulty import Fault, Plan
from sottovoce.bench.faulty_point import PROMPT, PUBLIC, Course, Point, prepare_pools
from sottovoce.bench.machine import header
from sottovoce.bench.served import options_of
from sottovoce.engines.base import Engine, Progress
from sottovoce.engines.registry import make_engine
from sottovoce.models.tiny import tiny_model
from sottovoce.net import Role

_TOKENS = 4
# A step that is done again takes fresh rows: a pool for so many answers runs dry in no point.
_SPARE = 3


@dataclass(frozen=True)
class Verdict:
    """Of a point. course: None if it did not come to an end."""

    course: Course | None
    failures: list[str]


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

    def add(self, verdict: Verdict) -> None:
        """One more point."""
        self.failures += verdict.failures
        if verdict.course is not None:
            setattr(self, verdict.course.how, getattr(self, verdict.course.how) + 1)
            self.resumed_connections += verdict.course.resumed
            self.errors.update(verdict.course.errors)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "faults": dict(self.faults), "errors": dict(self.errors)}


def run(
    points: int = 1000,
    seed: int = 0,
    kv: str = "clear",
    pool: bool = False,
    jobs: int | None = None,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """For `sottovoce bench faults`. jobs: points at the same time, None for one a processor."""
    jobs = jobs or os.cpu_count() or 1
    return {**run_faults(points, seed, kv, pool, jobs, progress).to_json(), **header()}


def run_faults(
    points: int,
    seed: int = 0,
    kv: str = "clear",
    pool: bool = False,
    jobs: int = 1,
    progress: Progress = lambda done, total, what: None,
) -> Report:
    """kv: a strategy of the engine hybrid, a profile of scx, or `clear` for the engine without cryptography.
    pool: sessions spend what was prepared before. Cost: about a second of a processor for a point with
    cryptography."""
    rng, start = random.Random(seed), perf_counter()
    options = options_of(kv)
    engine = make_engine(options, tiny_model())
    engine.prepare()
    # Tables that are made on first use: the processes of the points inherit them.
    drive(engine, lambda session: (session.prefill(PUBLIC, PROMPT), session.decode(1)))
    name = f"scx, {kv}" if options.engine == "scx" else kv
    report = Report(f"{name}, pool" if pool else name, points, seed)
    with tempfile.TemporaryDirectory(prefix="sottovoce-faults-") as made:
        pools = Path(made) / "pools" if pool else None
        if pool:
            prepare_pools(engine, Path(made), _SPARE * (len(PUBLIC) + len(PROMPT) + _TOKENS))
        expected, frames = _undisturbed(engine, pools)
        plans = []
        for _ in range(points):
            party = rng.choice(list(Role))
            kind, frame = rng.choice(list(Fault)), rng.randint(1, frames[party])
            plans.append(Plan(kind, party, frame, rng.random() * 0.005))
        judge = _Judge(engine, pools, expected, kv)
        for done, (plan, verdict) in enumerate(zip(plans, _verdicts(judge, plans, jobs), strict=True), 1):
            report.faults[f"{plan.fault} {plan.party.name.lower()}"] += 1
            report.add(verdict)
            progress(done, points, "faults")
    report.seconds = perf_counter() - start
    return report


def _verdicts(judge: _Judge, plans: list[Plan], jobs: int) -> Iterator[Verdict]:
    """In the order of the plans."""
    if jobs == 1:
        yield from map(judge, plans)
        return
    # Forked, so that they inherit engine and tables; handed over by inheritance, too.
    _inherited[:] = [judge]
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(jobs, context) as executor:
        yield from executor.map(_judge_inherited, plans)


_inherited: list[_Judge] = []


def _judge_inherited(plan: Plan) -> Verdict:
    return _inherited[0](plan)


def _undisturbed(engine: Engine, pools: Path | None) -> tuple[list[int], dict[Role, int]]:
    """Tokens of a session in which nothing goes wrong, and how many frames each party sends."""
    with tempfile.TemporaryDirectory(prefix="sottovoce-faults-") as directory:
        point = Point(engine, Path(directory), None, _TOKENS, pools)
        return point.run().tokens, point.board.frames


@dataclass
class _Judge:
    """Goes through a point and says what it found."""

    engine: Engine
    pools: Path | None
    expected: list[int]
    kv: str

    def __call__(self, plan: Plan) -> Verdict:
        where = f"{plan.fault} by {plan.party.name.lower()} at frame {plan.frame}"
        with tempfile.TemporaryDirectory(prefix="sottovoce-faults-") as directory:
            point = Point(self.engine, Path(directory), plan, _TOKENS, self.pools)
            try:
                course = point.run()
            except Exception as error:  # noqa: BLE001  (whatever it is, it is a finding)
                return Verdict(None, [f"{where}: {type(error).__name__}: {error}"])
            found = [] if course.tokens == self.expected else ["other tokens"]
            # A doubled frame is the fault itself.
            repeated = point.board.repeated("frame")
            if self.kv != "clear" and repeated > (plan.fault is Fault.DUPLICATE):
                found.append(f"{repeated} frames were sent twice")
            if rows := point.board.repeated("row"):
                found.append(f"{rows} rows of a pool were handed out twice")
            found += point.damage()
            point.board.close()
        return Verdict(course, [f"{where}: {finding}" for finding in found])
