"""`correlation-reuse`: can one-time material of `hybrid` be made to serve twice?

Who sees two messages under one mask subtracts them. So the attack rolls one party's pool back to a copy that
was made before material was taken, as a restored backup would, and opens a new session. It succeeds if an
item is handed out a second time. The control has masks in a file and no ledger.

What it does not try: rolling both parties back to the same moment, which nobody but both could notice.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np

from sottovoce.attacks.base import Control, Outcome, Setting
from sottovoce.correlations.producer import store
from sottovoce.correlations.records import Record
from sottovoce.correlations.shelf import ClientShelf, ServerShelf
from sottovoce.errors import SottovoceError
from sottovoce.net import Channel, run_pair
from sottovoce.ring.primes import P_FIELD
from sottovoce.ring.sampling import Stream

_STREAM = "masks"
_ITEMS, _TAKEN = 64, 16


class CorrelationReuse:
    name, target, profiles, samples = "correlation-reuse", "hybrid", ("default",), 100
    says = "one party's pool rolled back to an older copy, so that masks would serve twice"

    def run(self, setting: Setting) -> Outcome:
        reused, refused = 0, 0
        for trial in range(setting.samples):
            setting.progress(trial, setting.samples, "rolled back pools")
            again, was_refused = rolled_back("client" if trial % 2 else "server")
            reused += again
            refused += was_refused
        controls = (Control("the same mask twice", read_through_reuse()),)
        details = {"refused_or_thrown_away": refused}
        return Outcome(reused / setting.samples, controls, setting.samples, details)


def rolled_back(party: str) -> tuple[bool, bool]:
    """(whether an item came twice, whether the old pool was refused or thrown away)."""
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        _session(home, fill=True)
        before = home / "backup"
        shutil.copytree(home / party, before)
        first = _session(home)
        shutil.rmtree(home / party)
        shutil.copytree(before, home / party)
        try:
            second = _session(home)
        except SottovoceError:
            return False, True
        return bool(set(first) & set(second)), not second


def _session(home: Path, fill: bool = False) -> list[int]:
    """Both parties open their halves, and fill them or take items; what the client was handed."""

    def party(channel: Channel, shelf: ClientShelf | ServerShelf) -> list[int]:
        pool = shelf.borrow(channel)
        if pool is None:
            return []
        try:
            if fill:
                items = np.frombuffer(Stream().bytes(8 * _ITEMS).tobytes(), np.uint64)
                store(channel, pool, {_STREAM: Record((items,))})
                return []
            parts = pool.take({_STREAM: _TAKEN})[_STREAM]
            channel.exchange(b"x", 1)
            return [int(v) for part in parts for v in part.arrays[0]]
        finally:
            pool.close()

    client = ClientShelf(home / "client", make=fill)
    handed, _ = run_pair(
        lambda channel: party(channel, client), lambda channel: party(channel, ServerShelf(home / "server"))
    )
    return handed


def read_through_reuse() -> float:
    """Share of the differences of two messages that are read off when both have the same mask."""
    stream = Stream()
    mask, a, b = (stream.uniform(P_FIELD, 256) for _ in range(3))
    sent = [(x + mask) % np.uint64(P_FIELD) for x in (a, b)]
    difference = (sent[0] + np.uint64(P_FIELD) - sent[1]) % np.uint64(P_FIELD)
    return float(np.mean(difference == (a + np.uint64(P_FIELD) - b) % np.uint64(P_FIELD)))
