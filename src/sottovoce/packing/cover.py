"""One row of slots: which input each slot holds, which output each slot collects, and how few rotations join
them.

A row is a ring of `columns` slots. Slot s of an output row collects one output out(s); slot s of the input
row holds one input idx(s); the product for rotation k adds W[out(s), idx(s + k)] * x[idx(s + k)] into slot s.
With rotations 0 .. K - 1 a slot therefore reads the window idx(s), ..., idx(s + K - 1), and a layout is a
*cover* when the windows of every output's slots together contain every input. Nothing is replicated or folded
by rotation: the client lays its input out as idx says, and adds the partial sums of an output after
decryption.

Lower bound: K >= inputs * outputs / (columns * rows). The two constructions here reach it within a few per
cent:

- *direct*: inputs repeat along the row, an output gets m slots whose windows are 1/m of a period apart;
- *mirrored*: the same with the roles of inputs and outputs exchanged (s -> -s turns one into the other); for
  rows that are full of distinct inputs (the one-hot vector of an embedding).

A period that does not divide the row leaves a seam. Either the slots whose window crosses it stay unused, or
the periods are stretched with empty slots until they fill the row evenly; both are tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

EMPTY = -1

_MOST_COPIES = 64  # slots per output beyond which a few diagonals fewer are not worth the search

Index = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Cover:
    """A layout of one input row and `rows` output rows.

    inputs: (columns,) input held by each slot, or EMPTY. outputs: (rows, columns) output collected by each
    slot, or EMPTY. rotations: K, the window length.
    """

    inputs: Index
    outputs: Index
    rotations: int


@lru_cache(maxsize=64)
def covers(inputs: int, outputs: int, columns: int, rows: int) -> list[Cover]:
    """Return good covers of `inputs` x `outputs` by one input row and `rows` output rows (possibly none)."""
    found = [_direct(inputs, outputs, columns, rows, stretch) for stretch in (False, True)]
    per_row = -(-outputs // rows)
    for stretch in (False, True):
        swapped = _direct(per_row, inputs, columns, 1, stretch)
        found.append(None if swapped is None else _mirror(swapped, outputs, rows))
    return [cover for cover in found if cover is not None]


def _direct(inputs: int, outputs: int, columns: int, rows: int, stretch: bool) -> Cover | None:
    periods = columns // inputs
    if periods == 0 or outputs > rows * columns:
        return None
    position = np.arange(columns)
    if stretch:
        bounds = np.arange(periods + 1) * columns // periods
        residue = position - bounds[np.searchsorted(bounds, position, side="right") - 1]
    else:
        residue = position % inputs
    length = int(residue.max()) + 1
    seamless = stretch or columns % inputs == 0
    layout = np.where(residue < inputs, residue, EMPTY).astype(np.int32)
    for copies in range(min(rows * columns // outputs, length, _MOST_COPIES), 0, -1):
        window = -(-length // copies)
        usable = np.full(columns, True) if seamless else position + window <= columns
        slots = _assign(residue, usable, length, copies, outputs, rows)
        if slots is not None:
            return Cover(layout, slots, window)
    return None


def _assign(
    residue: npt.NDArray[np.int64],
    usable: npt.NDArray[np.bool_],
    length: int,
    copies: int,
    outputs: int,
    rows: int,
) -> Index | None:
    """Give every output `copies` slots with residues spaced by length / copies, or return None if they run
    out.
    """
    steps = np.arange(copies) * length // copies
    free = rows * np.bincount(residue[usable], minlength=length)
    if free.sum() < outputs * copies:
        return None
    starts = _starts(free, steps, length, outputs, everything=True)
    if starts is None:
        starts = _starts(free, steps, length, outputs, everything=False)
    if starts is None:
        return None
    wanted = (starts[:, None] + steps) % length  # (outputs, copies) residues
    # Both sides sorted by residue: the i-th request for a residue takes the i-th usable slot with that
    # residue.
    order = np.argsort(wanted.ravel(), kind="stable")
    supply = np.flatnonzero(np.tile(usable, rows))
    supply = supply[np.argsort(np.tile(residue, rows)[supply], kind="stable")]
    first = np.concatenate(([0], np.cumsum(free)[:-1]))
    requests = np.bincount(wanted.ravel(), minlength=length)
    rank = np.arange(order.size) - np.repeat(np.cumsum(requests) - requests, requests)
    slots = np.full(rows * residue.size, EMPTY, dtype=np.int32)
    slots[supply[first[wanted.ravel()[order]] + rank]] = order // copies
    return slots.reshape(rows, residue.size)


def _starts(
    free: npt.NDArray[np.int64], steps: npt.NDArray[np.int64], length: int, outputs: int, everything: bool
) -> npt.NDArray[np.int64] | None:
    """Choose a start residue for each output, greedily: one at a time round the period, or all that fit at
    once.
    """
    if steps.size == 1:
        return np.repeat(np.arange(length), free)[:outputs]
    left = free.copy()
    chosen: list[npt.NDArray[np.int64]] = []
    count = 0
    # Starts closer than the smallest step share no residue: whatever is done for one leaves the others alone.
    width = int(np.diff(steps, append=length).min())
    blocks = [np.arange(first, min(first + width, length)) for first in range(0, length, width)]
    while count < outputs:
        before = count
        for starts in blocks:
            members = (starts[:, None] + steps) % length
            room = left[members].min(axis=1)
            take = room if everything else np.minimum(room, 1)
            if int(take.sum()) > outputs - count:
                take = np.minimum(take, np.maximum(outputs - count - (np.cumsum(take) - take), 0))
            left[members] -= take[:, None]
            chosen.append(np.repeat(starts, take))
            count += int(take.sum())
        if count == before:
            return None
    return np.concatenate(chosen)


def _mirror(cover: Cover, outputs: int, rows: int) -> Cover:
    """Exchange the roles of inputs and outputs: out'(u) = idx(-u), idx'(u) = out(-u), the same window."""
    back = (-np.arange(cover.inputs.size)) % cover.inputs.size
    pattern = cover.inputs[back]
    per_row = -(-outputs // rows)
    shifted = pattern[None, :] + per_row * np.arange(rows, dtype=np.int32)[:, None]
    slots = np.where((pattern == EMPTY)[None, :] | (shifted >= outputs), EMPTY, shifted)
    return Cover(cover.outputs[0][back], slots.astype(np.int32), cover.rotations)
