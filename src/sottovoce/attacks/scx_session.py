"""A session of the engine scx in which the server is curious: it keeps everything that it computes with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.engines.base import EngineOptions
from sottovoce.engines.scx import ScxDataParty, ScxEngine
from sottovoce.engines.scx.masked import MASK_BITS, MaskedUser
from sottovoce.engines.scx.user import PaperUser
from sottovoce.models import Model
from sottovoce.models.model import build
from sottovoce.net import memory_pair

Floats = npt.NDArray[Any]
WEAK_MASK_BITS = 20  # of a control: a tenth of what the masks should hide
WEAK_NOISE = 0.1  # of a control: Laplace noise of this scale


def shortened(model: Model, layers: int) -> Model:
    """The model's first blocks: what the server sees in them does not depend on those behind."""
    if layers >= model.config.layers:
        return model
    config = dataclasses.replace(model.config, layers=layers)
    weights = dataclasses.replace(model.weights, blocks=model.weights.blocks[:layers])
    card = model.card
    return build(card.name, config, weights, card.tokenizer_or_none, card.template)


@dataclasses.dataclass
class Seen:
    """What the server saw of one prompt: (name, block, values), in order."""

    rows: list[tuple[str, int, Floats]] = dataclasses.field(default_factory=list)

    def all(self, name: str, layer: int) -> list[Floats]:
        return [x for n, i, x in self.rows if n == name and i == layer]

    def first(self, name: str, layer: int) -> Floats:
        return self.all(name, layer)[0]


class CuriousServer:
    """One session in two threads; every prompt starts it anew, with fresh keys. `weak`: the control's user.

    weak: the user's masks (hardened) or noise (paper) are too small.
    """

    def __init__(self, model: Model, profile: str, weak: bool = False) -> None:
        engine = ScxEngine(EngineOptions(engine="scx", profile=profile), model)
        engine.prepare()
        self.model = model
        self._seen = Seen()
        channels = memory_pair()
        self._server = engine.session(self._observe)
        self.client = ScxDataParty(engine.options, engine.public())
        self._orders: SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]] | None] = SimpleQueue()
        self._thread = Thread(target=self._serve, args=(channels[1],), daemon=True)
        self._thread.start()
        self.client.setup(channels[0])
        if weak:
            self._weaken(channels[0])

    def watch(self, prompt: Sequence[int], decoded: Sequence[int] = ()) -> Seen:
        """What the server sees of a prompt and of tokens that are then decoded one by one."""
        self._order(self._server.truncate, 0)
        self.client.truncate(0)
        self._seen = seen = Seen()
        self._order(self._server.prefill, (), len(prompt))
        self.client.prefill((), prompt)
        for token in decoded:
            self._order(self._server.decode)
            self.client.decode(token)
        return seen

    def close(self) -> None:
        self._orders.put(None)
        self._thread.join()

    def __enter__(self) -> CuriousServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _weaken(self, channel: Any) -> None:
        user = self.client.user
        weights = user.weights
        if isinstance(user, MaskedUser):
            self.client.user = MaskedUser(user.config, weights, user.arrays, WEAK_MASK_BITS)
        else:
            profile = dataclasses.replace(user.profile, noise=WEAK_NOISE)
            self.client.user = PaperUser(user.config, profile, weights, user.arrays)
        self.client.user.open(channel)

    def _observe(self, name: str, layer: int, rows: Any) -> None:
        self._seen.rows.append((name, layer, np.array(rows)))

    def _order(self, method: Callable[..., None], *arguments: Any) -> None:
        self._orders.put((method, arguments))

    def _serve(self, channel: Any) -> None:
        try:
            self._server.setup(channel)
            while (order := self._orders.get()) is not None:
                order[0](*order[1])
        except BaseException as error:
            channel.abort(error)
            raise


def rouge_l(found: Sequence[int], truth: Sequence[int]) -> float:
    """F1 of the longest common subsequence, on tokens."""
    row = [0] * (len(truth) + 1)
    for a in found:
        before = 0
        for j, b in enumerate(truth, 1):
            before, row[j] = row[j], before + 1 if a == b else max(row[j], row[j - 1])
    common = row[-1]
    return 2 * common / (len(found) + len(truth)) if common else 0.0


def recovered(found: Sequence[int], truth: Sequence[int]) -> float:
    """Share of positions read correctly."""
    return sum(int(a) == int(b) for a, b in zip(found, truth, strict=True)) / len(truth)


def recovered_unordered(found: Sequence[int], truth: Sequence[int]) -> float:
    """Share of the tokens that are among those found, each counted as often as it is there."""
    from collections import Counter

    return sum((Counter(map(int, found)) & Counter(map(int, truth))).values()) / len(truth)


__all__ = ["MASK_BITS", "CuriousServer", "Seen", "recovered", "recovered_unordered", "rouge_l", "shortened"]
