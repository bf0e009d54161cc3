"""A forked process must not continue a secret stream or the numbering of oblivious transfers: both copies
would use the same one-time values."""

import os
from types import SimpleNamespace

import numpy as np
import pytest

from sottovoce.correlations.attention import AttentionSource
from sottovoce.correlations.stocked import StockedSource
from sottovoce.engines.scx.noise import NoiseStock
from sottovoce.errors import ProtocolError
from sottovoce.net import Role, run_pair
from sottovoce.ot import OtExtension
from sottovoce.ring.sampling import SEED_BYTES, Stream


def in_child(work) -> str:
    """What `work` returns in a forked process; the name of its error if it raises."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            told = str(work())
        except BaseException as error:
            told = type(error).__name__
        os.write(writer, told.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    return told


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_secret_stream_ends_at_a_fork():
    stream = Stream()
    stream.bytes(5)
    assert in_child(lambda: stream.bytes(8).tobytes().hex()) == ProtocolError.__name__
    assert len(stream.bytes(8)) == 8  # the parent goes on
    fresh = in_child(lambda: Stream().bytes(8).tobytes().hex())
    assert len(fresh) == 16


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_public_streams_are_the_same_everywhere():
    seed = bytes(range(SEED_BYTES))
    stream = Stream(seed, b"public")
    assert in_child(lambda: stream.bytes(8).tobytes().hex()) == stream.bytes(8).tobytes().hex()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_oblivious_transfers_end_at_a_fork():
    ots = run_pair(lambda ch: _ready(ch, True), lambda ch: _ready(ch, False))
    for ot, use in zip(ots, ("send", "receive"), strict=True):
        take = (lambda ot=ot: ot.send_cots(4)[0]) if use == "send" else (lambda ot=ot: ot.receive_cots(4)[0])
        assert in_child(take) == ProtocolError.__name__
        assert take() == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_lies_in_memory_is_not_spent_in_two_processes():
    same = SimpleNamespace(put=lambda rows: rows)
    source, noise = Source(Role.CLIENT), NoiseStock(same, lambda rows: np.ones((rows, 2)), lambda rows: rows)
    attention = run_pair(*[lambda ch: AttentionSource(ch, layers=1, heads=1, kv_heads=1, head_dim=4)] * 2)[0]
    source.prepare("ands", 4)
    noise.make(4)
    attention.burn(4)
    for take in (
        lambda: source.ands(2).a.size,
        lambda: len(noise.take(2)[0]),
        lambda: attention._mark(4) or 2,
    ):
        assert in_child(take) == ProtocolError.__name__
        assert take() == 2


class Source(StockedSource):
    def make(self, key, n):
        return np.zeros(n, np.uint8), np.zeros(n, np.uint8), np.zeros(n, np.uint8)


def _ready(channel, sends):
    ot = OtExtension(channel, batch=1024)
    ot.reserve(1024 * sends, 1024 * (not sends))
    return ot
