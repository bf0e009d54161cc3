"""`transcript-uniformity`: is there anything in what the server of `hybrid` receives but uniform noise?

Sessions of a small random model at full parameters. Every large frame, and the small ones together, are
tested for uniform bytes (χ²); a piece that is eight standard deviations off counts as told apart. Frames of
two prompts must have the same sizes, and no frame may come twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sottovoce.attacks.base import Control, Outcome, Setting
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.hybrid import HybridDataParty, HybridEngine
from sottovoce.models.tiny import CONFIG, tiny_model
from sottovoce.net import Channel, run_pair
from sottovoce.net.codec import pack_bits
from sottovoce.ring.primes import P_FIELD

_LARGE = 1 << 14  # bytes of a frame that is tested by itself
_STANDS_OUT = 8.0  # one uniform piece in 10^10
_PREFILL, _DECODED = 4, 1


class TranscriptUniformity:
    name, target, profiles, samples = "transcript-uniformity", "hybrid", ("default",), 100
    says = "bytes that the server receives against uniform ones, over sessions with different prompts"

    def run(self, setting: Setting) -> Outcome:
        engine = HybridEngine(EngineOptions(), tiny_model())
        engine.prepare()
        rng = np.random.default_rng(0)
        prompts = rng.integers(0, CONFIG.vocab_size, (setting.samples, _PREFILL + _DECODED))
        sessions = []
        for number, prompt in enumerate(prompts):
            setting.progress(number, len(prompts), "sessions")
            sessions.append(received(engine, [int(t) for t in prompt]))
        pieces = [piece for frames in sessions for piece in grouped(frames)]
        told = float(np.mean([stands_out(piece) for piece in pieces]))
        sizes = {tuple(map(len, frames)) for frames in sessions}
        repeated = _repeated(sessions)
        rate = max(told, float(len(sizes) > 1), float(repeated > 0))
        details = {"pieces": len(pieces), "bytes": sum(map(len, pieces)), "frames_seen_twice": repeated}
        controls = (
            Control("shares without their masks", float(np.mean([stands_out(p) for p in unmasked()]))),
        )
        return Outcome(rate, controls, setting.samples, {**details, "different_sizes": len(sizes) - 1})


def received(engine: HybridEngine, tokens: Sequence[int]) -> list[bytes]:
    """Every frame that the server receives in a session, keys and base transfers left out."""
    frames: list[bytes] = []

    def server(channel: Channel) -> None:
        party = engine.session()
        party.setup(channel)
        channel.tap = lambda view: frames.append(bytes(view))
        party.prefill([], _PREFILL)
        for _ in range(_DECODED):
            party.decode()
        party.close()

    def client(channel: Channel) -> None:
        party = HybridDataParty(engine.options, engine.public())
        party.setup(channel)
        party.prefill([], tokens[:_PREFILL])
        for token in tokens[_PREFILL:]:
            party.decode(token)
        party.close()

    run_pair(client, server)
    return frames


def grouped(frames: Sequence[bytes]) -> list[bytes]:
    """Large frames, and the small ones in one piece: long enough for the test."""
    large = [frame for frame in frames if len(frame) >= _LARGE]
    return [*large, b"".join(frame for frame in frames if len(frame) < _LARGE)]


def stands_out(data: bytes) -> bool:
    """Whether χ² of the bytes is eight standard deviations away from what uniform ones have."""
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    statistic = float(((counts - len(data) / 256) ** 2).sum() / (len(data) / 256))
    return bool(abs(statistic - 255) > _STANDS_OUT * (2 * 255) ** 0.5)


def unmasked() -> list[bytes]:
    """Activations in the field as they would travel, had nobody masked them."""
    rng = np.random.default_rng(0)
    values = [rng.normal(0, 4096, 1 << 14).astype(np.int64) % P_FIELD for _ in range(4)]
    return [pack_bits(v.astype(np.uint64), 43).tobytes() for v in values]


def _repeated(sessions: Sequence[Sequence[bytes]]) -> int:
    frames = [frame for session in sessions for frame in session if len(frame) >= 16]
    return len(frames) - len(set(frames))
