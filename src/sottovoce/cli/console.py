"""What goes to stderr: notes, progress, tables. stdout is for text and JSON only."""

import sys
import time
from collections.abc import Sequence
from typing import IO

from ..engines.base import Progress
from ..net import LedgerRow
from .terminal import harmless

_PLAIN_INTERVAL = 10.0


class Console:
    """Notes and progress on stderr: bars on a terminal, plain lines elsewhere, nothing with `quiet`."""

    def __init__(self, quiet: bool = False, stream: IO[str] | None = None) -> None:
        self.quiet = quiet
        self.stream = sys.stderr if stream is None else stream
        self.fancy = self.stream.isatty() and not quiet
        # Column of the cursor once text is streaming to the same terminal: then progress goes behind the
        # text.
        self.text_column: int | None = None
        self._bar: _Bar | None = None

    def note(self, text: str) -> None:
        """One line."""
        if not self.quiet:
            self.end_progress()
            print(harmless(text), file=self.stream, flush=True)

    def warn(self, text: str) -> None:
        """One line that -q does not silence."""
        self.end_progress()
        print("warning: " + harmless(text), file=self.stream, flush=True)

    def table(self, title: str, headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
        """A table whose first `left` columns are aligned left, the others right."""
        if self.quiet:
            return
        self.end_progress()
        print(format_table(title, headers, rows, left), file=self.stream, flush=True)

    @property
    def progress(self) -> Progress:
        """A callback for engines: (done, total, what)."""
        return self._progress

    def end_progress(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _progress(self, done: int, total: int, what: str) -> None:
        if self.quiet:
            return
        if self._bar is None or self._bar.what != what:
            self.end_progress()
            self._bar = self._new_bar(what)
        self._bar.update(done, total)
        if done >= total:
            self.end_progress()

    def _new_bar(self, what: str) -> "_Bar":
        if not self.fancy:
            return _PlainBar(what, self.stream)
        if self.text_column is None:
            return _RichBar(what, self.stream)
        return _InlineBar(what, self.stream, self.text_column)


class _Bar:
    def __init__(self, what: str, stream: IO[str]) -> None:
        self.what = what
        self.stream = stream

    def update(self, done: int, total: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Take the bar off the screen."""


class _RichBar(_Bar):
    def __init__(self, what: str, stream: IO[str]) -> None:
        super().__init__(what, stream)
        from rich.console import Console as RichConsole
        from rich.progress import Progress as RichProgress

        self._progress = RichProgress(console=RichConsole(file=stream), transient=True)
        self._task = self._progress.add_task(what, total=None)
        self._progress.start()

    def update(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)

    def close(self) -> None:
        self._progress.stop()


class _InlineBar(_Bar):
    """A percentage right behind the streamed text, erased before more text comes."""

    def __init__(self, what: str, stream: IO[str], column: int) -> None:
        super().__init__(what, stream)
        import shutil

        self._fits = column + 8 < shutil.get_terminal_size().columns
        self._last = 0.0

    def update(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._fits and total and now - self._last > 0.1:
            self._last = now
            # Save the cursor, write, restore it: the text stays where it is.
            print(f"\x1b7 [{100 * done // total:3d}%]\x1b8", end="", file=self.stream, flush=True)

    def close(self) -> None:
        if self._fits:
            print("\x1b[K", end="", file=self.stream, flush=True)


class _PlainBar(_Bar):
    """A line now and then: only what takes long says anything."""

    def __init__(self, what: str, stream: IO[str]) -> None:
        super().__init__(what, stream)
        self._last = time.monotonic()

    def update(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= _PLAIN_INTERVAL:
            self._last = now
            print(f"{self.what}: {done} of {total}", file=self.stream, flush=True)


def format_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Plain aligned columns: readable in a terminal, a log and an issue."""
    cells = [list(headers), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        parts = [
            c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "  " + "  ".join(parts).rstrip()

    rule = "  " + "  ".join("-" * w for w in widths)
    return "\n".join([title, line(cells[0]), rule, *[line(row) for row in cells[1:]]])


def size_text(count: float) -> str:
    """1234567 -> '1.23 MB' (decimal units)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return (
                f"{count:.0f} {unit}"
                if unit == "B"
                else f"{count:.3g} {unit}"
                if count < 1000
                else f"{count:.0f} {unit}"
            )
        count /= 1000
    raise AssertionError


def seconds_text(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 60 else f"{seconds / 60:.1f} min"


def condense(rows: Sequence[LedgerRow]) -> list[LedgerRow]:
    """Nested operations added to the outermost one they belong to, in the order of first use."""
    sums: dict[tuple[str, str], LedgerRow] = {}
    for row in rows:
        key = (row.phase, row.operation.split("/")[0])
        sums.setdefault(key, LedgerRow(*key)).add(row)
    return list(sums.values())


def ledger_rows(rows: Sequence[LedgerRow]) -> list[list[str]]:
    """LedgerRow objects as the cells of the ledger table."""
    return [
        [
            row.phase or "-",
            row.operation or "(between operations)",
            size_text(row.wire_up),
            size_text(row.wire_down),
            str(row.rounds),
            seconds_text(row.seconds),
            seconds_text(row.wait_seconds),
        ]
        for row in rows
    ]


LEDGER_HEADERS = ("phase", "operation", "up", "down", "rounds", "time", "of it waiting")
