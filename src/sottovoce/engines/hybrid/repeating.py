"""Counting a pass through equal blocks: one is run and written down, the others are played back from that.

What a block sends, receives and takes of one-time material follows from its shapes, the ranges of its two
norms and the number of tokens. Blocks that have these in common do the same things in the same order; only
whether a stock has to be filled depends on what came before, so stocks are asked anew at every play. The
first block is never played back: it makes material for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from time import thread_time
from typing import Any

import numpy as np

from sottovoce.correlations import PairSource
from sottovoce.correlations.stock import Arrays
from sottovoce.correlations.stocked import Kind
from sottovoce.engines.decoder import Decoder
from sottovoce.mpc.requests import Share
from sottovoce.net.ledger import Ledger, LedgerRow

# Where in the ledger, and what happens there when it is played for a layer.
Event = tuple[tuple[str, list[str]], Callable[[int], object]]


class TapedLedger(Ledger):
    """A ledger that also writes down what it is told, while `tape` is a list.

    Its seconds are the thread's own, since nobody is waited for: other work on the machine does not count.
    They stand still while a tape is played.
    """

    def __init__(self) -> None:
        self.tape: list[Event] | None = None
        self._playing = False
        super().__init__()
        self._mark = thread_time()

    def write(self, event: Callable[[int], object]) -> None:
        if self.tape is not None:
            self.tape.append(((self._phase, self._path), event))

    def message(self, direction: int, size: int) -> None:
        self.write(lambda layer: Ledger.message(self, direction, size))
        super().message(direction, size)

    def exchange(self, up: int, down: int) -> None:
        self.write(lambda layer: Ledger.exchange(self, up, down))
        super().exchange(up, down)

    def count(self, name: str, n: int = 1) -> None:
        self.write(lambda layer: Ledger.count(self, name, n))
        super().count(name, n)

    def play(self, tape: list[Event], spent: list[LedgerRow], layer: int) -> None:
        """Everything on the tape once more, at the seconds that it took (`spent`)."""
        phase, path = self._phase, self._path
        self._tick()
        self._playing = True
        for place, event in tape:
            if place[1] is not self._path or place[0] != self._phase:
                self._switch(*place)
            event(layer)
        self._switch(phase, path)
        self._playing = False
        for row in spent:
            self._rows[row.phase, row.operation].seconds += row.seconds

    def _tick(self) -> None:
        now = thread_time()
        if not self._playing:
            self._current.seconds += now - self._mark
        self._mark = now


class TapedSource(PairSource):
    """Notes what is taken; whether that makes something new, and what that costs, is found out each time."""

    def _take(self, key: Kind, n: int) -> Arrays:
        ledger = self._channel.ledger
        if not isinstance(ledger, TapedLedger) or ledger.tape is None:
            return super()._take(key, n)
        ledger.write(lambda layer: PairSource._take(self, key, n))
        tape, ledger.tape = ledger.tape, None
        taken = super()._take(key, n)
        ledger.tape = tape
        return taken


class RepeatingDecoder(Decoder):
    """Runs one block of every kind, and the first; plays the others, whose caches hold nothing then.

    Returns zeros where it plays: values mean nothing when a session is only counted. skip: called for every
    block that is played, with its number and that of its tokens.
    """

    def __init__(self, whole: Decoder, ledger: TapedLedger, skip: Callable[[int, int], None]) -> None:
        vars(self).update(vars(whole))
        self._ledger, self._skip = ledger, skip
        self._tapes: dict[int, tuple[list[Event], list[LedgerRow]]] = {}
        kinds: dict[Any, int] = {}
        norms = self.public.norms
        self._model = [
            i if i == 0 else kinds.setdefault((norms[2 * i], norms[2 * i + 1]), i)
            for i in range(self.config.layers)
        ]

    def block(self, i: int, x: Share, start: int) -> Share:
        model = self._model[i]
        if model == i:
            before = self._ledger.snapshot()
            tape: list[Event] = []
            self._ledger.tape = tape
            y = super().block(i, x, start)
            self._ledger.tape = None
            self._tapes[i] = tape, self._ledger.since(before)
            return y
        self._ledger.play(*self._tapes[model], i)
        self._skip(i, len(x))
        return np.zeros_like(x)
