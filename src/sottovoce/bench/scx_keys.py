"""`bench keys`: what is the cache of a session of scx worth to who lacks the user's half of it?

Passages of a text: a long context goes through the engine, and the tokens behind it are predicted from what
is left when keys are wrong or missing. The reference is a model that never saw the context. A cache that is
useless without keys is one that predicts no better than that.

With the weights and a plain cache one can do more than predict: `sottovoce attack kv-inversion`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sottovoce.bench.driven import Driver, drive
from sottovoce.bench.machine import header
from sottovoce.bench.passages import read
from sottovoce.bench.quality import start_of
from sottovoce.bench.scores import Score
from sottovoce.engines.base import EngineOptions, ModelParty, Progress
from sottovoce.engines.registry import make_engine
from sottovoce.engines.scx import ScxDataParty, ScxModelParty
from sottovoce.engines.scx.keys import HeadKey
from sottovoce.engines.scx.user import PaperUser
from sottovoce.errors import UsageError
from sottovoce.models import Model, load_model
from sottovoce.ring.sampling import Stream

CONTEXT, NEXT = 256, 32  # tokens of a context, and predicted behind it
_TOKENS = 512
Case = Callable[[Driver], None]


def _silent(done: int, total: int, what: str) -> None:
    pass


def run(
    text: str | Path,
    model: str,
    profile: str,
    tokens: int | None,
    progress: Progress = _silent,
) -> dict[str, Any]:
    """`tokens` tokens of a file are predicted, 32 behind each 256. About 0.2 s a token of SmolLM2-135M."""
    plain = load_model(model)
    passages = max(1, (_TOKENS if tokens is None else tokens) // NEXT)
    room = plain.config.context_length - 1
    context = min(CONTEXT, room - NEXT)
    ids = plain.card.tokenizer.encode(read(Path(text), passages * (context + NEXT)).running)
    cut = [ids[i * (context + NEXT) : (i + 1) * (context + NEXT)] for i in range(passages)]
    if len(cut[-1]) < context + NEXT:
        raise UsageError(f"{Path(text).name} holds {len(ids)} tokens, too few for {passages} passages")
    engine = make_engine(EngineOptions(engine="scx", profile=profile), plain)
    engine.prepare()
    reader = Reader(plain, cut, progress)
    drive(engine, reader.read_all)
    return {
        **header(),
        "parameters": {"profile": profile},
        "model": model,
        "engine": "scx",
        "profile": profile,
        "context": context,
        "text": Path(text).name,
        "tokens": passages * NEXT,
        "ppl_plain": reader.plain_score.perplexity,
        "ppl_no_context": reader.bare_score.perplexity,
        "cases": [{"name": name, "ppl": score.perplexity} for name, score in reader.scores.items()],
    }


class Reader:
    """Reads every passage along the plaintext model, once with its context and once without."""

    def __init__(self, plain: Model, passages: Sequence[Sequence[int]], progress: Progress = _silent) -> None:
        self.plain, self.passages, self.progress = plain, passages, progress
        self.public = start_of(plain)
        self.plain_score, self.bare_score = Score(), Score()
        self.scores: dict[str, Score] = {}

    def read_all(self, session: Driver) -> None:
        for number, passage in enumerate(self.passages):
            self.progress(number, len(self.passages), "passages")
            before = [*self.public, *passage[: -NEXT - 1]]  # the token that is fed next is known in any case
            inputs, targets = passage[-NEXT - 1 : -1], passage[-NEXT:]
            with_context = self.plain.forward([*before, *inputs])[-NEXT:]
            self.plain_score.add(with_context, targets)
            self.bare_score.add(self.plain.forward([*self.public, *inputs])[-NEXT:], targets)
            session.truncate(0)
            session.prefill((), before)
            kept = _Kept(session, len(before))
            for name, case in cases(session).items():
                case(session)
                self.scores.setdefault(name, Score()).add(session.verify(inputs), targets)
                kept.restore(session)
        self.progress(len(self.passages), len(self.passages), "passages")


class _Kept:
    """A session as it was, to be brought back after it was damaged."""

    def __init__(self, session: Driver, length: int) -> None:
        self._length = length
        self._client = list(session.party.changed(0).items())
        server: list[Any] = []
        session.at_server(lambda party: server.extend(party.changed(0).items()))
        self._server = server  # filled by the other thread, before it gets to anything asked for later

    def restore(self, session: Driver) -> None:
        session.truncate(0)
        session.party.restore(self._client, self._length)
        session.at_server(lambda party: party.restore(self._server, self._length))


def cases(session: Driver) -> dict[str, Case]:
    """What is done to a session before it goes on, by name."""
    if isinstance(_user(session), PaperUser):
        return {
            "right keys": _nothing,
            "another row key": lambda s: _user(s).forget_key(),
            "the server's cache alone": _lose,
            "the server's cache alone, middle blocks encoded too": _lose_all,
        }
    return {"right keys": _nothing, "the server's cache alone (it is empty)": _lose}


def _nothing(session: Driver) -> None:
    pass


def _lose(session: Driver) -> None:
    """Somebody goes on who has the weights and the server's half, and nothing of the user's."""
    _user(session).forget()


def _lose_all(session: Driver) -> None:
    """The same, had the user not shared the middle blocks' keys: features in an order that nobody told."""
    _lose(session)
    session.at_server(_scramble)


def _scramble(party: ModelParty) -> None:
    assert isinstance(party, ScxModelParty)
    cloud, stream = party.cloud, Stream()
    for cache in cloud.caches:
        key = HeadKey.draw(stream, cloud.config)
        _, k, v = key.encode(cloud.arrays, cache.k.all, cache.k.all, cache.v.all)
        cache.k.load(cloud.arrays.get(k))
        cache.v.load(cloud.arrays.get(v))


def _user(session: Driver) -> Any:
    assert isinstance(session.party, ScxDataParty)
    return session.party.user
