"""What each party of a hybrid session gets to see.

Ciphertexts and uniform values, nothing else, nothing twice.
"""

from __future__ import annotations

import gc
import multiprocessing
import socket

import numpy as np
import pytest
from scipy import stats

from chance import LEAST_P
from hybrid_sessions import prepared, run_session
from models_common import FIXTURES, tiny
from sottovoce.bgv import SecretKey
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.hybrid import HybridDataParty, HybridEngine
from sottovoce.models import load_model
from sottovoce.net import Channel, Role, SocketChannel

PUBLIC, DECODED = [0, 5], [4, 9]
PROMPTS = ([7, 250, 31, 8], [7, 7, 7, 7])


def byte_p_value(data: bytes) -> float:
    """χ² p-value of "these bytes are uniform"."""
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    return float(stats.chisquare(counts).pvalue)


def groups(frames: list[bytes]) -> list[bytes]:
    """Large frames by themselves, small ones joined: each piece long enough for the test."""
    large = [frame for frame in frames if len(frame) >= 1 << 14]
    return [*large, b"".join(frame for frame in frames if len(frame) < 1 << 14)]


@pytest.fixture(scope="module")
def records():
    engine = prepared(tiny("llama"))
    return [run_session(engine, PUBLIC, prompt, DECODED) for prompt in PROMPTS]


@pytest.mark.parametrize("party", ["server_received", "client_received"])
def test_every_received_value_is_a_ciphertext_or_uniform(records, party):
    pieces = [piece for record in records for piece in groups(getattr(record, party))]
    assert sum(map(len, pieces)) > 1 << 20
    assert min(byte_p_value(piece) for piece in pieces) > LEAST_P


def test_the_uniformity_test_would_notice_unmasked_shares():
    activations = np.random.default_rng(0).normal(0, 4096, 1 << 14).astype(np.int64) % 8796092858369
    packed = activations.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :5].tobytes()
    assert byte_p_value(packed) < 1e-30


def test_frame_sizes_do_not_depend_on_the_tokens(records):
    first, second = records
    assert [len(f) for f in first.server_received] == [len(f) for f in second.server_received]
    assert [len(f) for f in first.client_received] == [len(f) for f in second.client_received]


def test_two_sessions_share_no_frame(records):
    """The same tokens at the same places still travel differently: no mask is derived from what it hides."""
    first, second = records
    for name in ("server_received", "client_received"):
        seen = {frame for frame in getattr(first, name) if len(frame) >= 16}
        assert not seen & {frame for frame in getattr(second, name) if len(frame) >= 16}


def test_no_correlation_is_handed_out_twice():
    """Every 64-bit pad and field element that the sources hand out in a session is a new one."""
    handed: dict[Role, list[np.ndarray]] = {role: [] for role in Role}
    consumed: dict[Role, list[int]] = {role: [] for role in Role}

    def watch(source, name):
        inner = getattr(source, name)

        def wrapper(*args, **kwargs):
            result = inner(*args, **kwargs)
            arrays = result if isinstance(result, tuple) else (result,)
            for array in arrays:
                for part in array if isinstance(array, list) else [array]:
                    if part.dtype == np.uint64 and part.size:
                        handed[source.role].append(part.ravel())
            return result

        setattr(source, name, wrapper)

    def observe(party):
        source = party.execution.source
        for name in ("send_ots", "triples", "squares", "scalars", "cross_products"):
            watch(source, name)
        consumed[source.role].append(0)

    run_session(prepared(tiny("llama")), PUBLIC, PROMPTS[0], DECODED, observe=observe)
    for role in Role:
        values = np.concatenate(handed[role])
        values = values[values >= 1 << 32]  # small residues may coincide by chance
        assert len(values) > 5_000
        # 43-bit elements collide by chance about n²/2^44 times; a repeated batch would repeat hundreds.
        repeats = len(values) - len(np.unique(values))
        assert repeats <= 3 + 4 * len(values) ** 2 / 2**44


def _serve(channel_socket, answer):
    """A server process of its own: serves one session and reports what its memory holds."""
    channel = SocketChannel(Role.SERVER, channel_socket)
    engine = HybridEngine(EngineOptions(), load_model(FIXTURES / "tiny-llama"))
    engine.prepare()
    party = engine.session()
    party.setup(channel)
    party.prefill(PUBLIC, len(PROMPTS[0]))
    party.decode()
    objects = gc.get_objects()
    answer.put(
        {
            "secret keys": sum(isinstance(x, SecretKey) for x in objects),
            "tokens": [t for t in party.execution._history if t is not None],
            "keys that open": sum(type(x).__name__ in ("Decryptor", "DataSide") for x in objects),
        }
    )


def test_the_servers_process_holds_no_secret_key_and_no_token():
    client, server = socket.socketpair()
    context = multiprocessing.get_context("spawn")  # a process with memory of its own
    answer = context.Queue()
    process = context.Process(target=_serve, args=(server, answer))
    process.start()
    try:
        public = prepared(tiny("llama")).public()
        party = HybridDataParty(EngineOptions(), public)
        _drive(SocketChannel(Role.CLIENT, client), party)
        found = answer.get(timeout=240)
    finally:
        process.join(300)
        process.terminate()
    assert found == {"secret keys": 0, "tokens": [], "keys that open": 0}


def _drive(channel: Channel, party: HybridDataParty) -> None:
    party.setup(channel)
    party.prefill(PUBLIC, PROMPTS[0])
    party.decode(DECODED[0])
