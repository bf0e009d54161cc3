"""How many inputs every target has had, over all runs: a file, and a table made from it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from __main__ import Outcome

BEGIN, END = "<!-- tally -->\n", "<!-- end -->"


@dataclass(frozen=True)
class Count:
    """seeds: runs so far, numbered from 1. grown: the most that a run's memory grew, MiB."""

    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    seeds: int = 0
    grown: int = 0


@dataclass(frozen=True)
class Tally:
    """Counts by target. A finding makes a target begin anew: counts are of what today's code withstood."""

    counts: dict[str, Count]

    @classmethod
    def load(cls, path: Path) -> Tally:
        found = json.loads(path.read_text()) if path.exists() else {}
        return cls({name: Count(**fields) for name, fields in found.items()})

    def of(self, name: str) -> Count:
        return self.counts.get(name, Count())

    def add(self, name: str, outcome: Outcome) -> Tally:
        """With one more run."""
        old = self.of(name)
        if outcome.status:
            new = replace(old, inputs=0, refused=0, seconds=0.0, grown=0, seeds=old.seeds + 1)
        else:
            new = Count(
                old.inputs + outcome.inputs,
                old.refused + outcome.refused,
                round(old.seconds + outcome.seconds, 1),
                old.seeds + 1,
                max(old.grown, outcome.grown >> 20),
            )
        return Tally({**self.counts, name: new})

    def store(self, path: Path) -> None:
        """The file, and the table in the README beside it."""
        found = {name: asdict(self.counts[name]) for name in sorted(self.counts)}
        path.write_text(json.dumps(found, indent=1) + "\n")
        readme = path.with_name("README.md")
        if readme.exists() and BEGIN in (text := readme.read_text()):
            before, _, rest = text.partition(BEGIN)
            readme.write_text(before + BEGIN + self.table() + END + rest.partition(END)[2])

    def table(self) -> str:
        """Markdown."""
        rows = [
            "| target | inputs | refused | seconds | runs | memory, MiB |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for name in sorted(self.counts):
            c = self.counts[name]
            rows.append(
                f"| {name} | {c.inputs:,} | {c.refused:,} | {c.seconds:.0f} | {c.seeds} | +{c.grown} |"
            )
        return "\n".join(rows) + "\n"
