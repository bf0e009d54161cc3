"""Bytes from strangers: every message of the fhe engine, cut, padded, changed, or another one's."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sottovoce.ckks import Ciphertext, Encoder, Encryptor, KeyGenerator
from sottovoce.engines.fhe import keyring, state
from sottovoce.engines.fhe.answer import DIGEST_BYTES, MAX_CIPHERTEXT, Answer, receive_answer, send_answer
from sottovoce.engines.fhe.ciphertexts import scales
from sottovoce.engines.fhe.parties import FheModelParty
from sottovoce.errors import CorruptFileError, FrameError, IntegrityError, SottovoceError
from sottovoce.net import memory_pair, run_pair
from test_fhe_engine import engine  # noqa: F401  (fixture)

FUZZ = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.data_too_large,
        HealthCheck.too_slow,
    ],
)
HEAD = 64  # bytes in which everything but residues stands


@pytest.fixture(scope="module")
def wire(engine):  # noqa: F811
    """One good message of every kind, and what reads it."""
    described = engine.description
    parameters, level = described.parameters, described.entry
    keys, steps = KeyGenerator(parameters), sorted(described.steps.items())
    party = FheModelParty(engine)
    party._slots = SimpleNamespace(n=engine.shape.n, evaluator=SimpleNamespace(parameters=parameters))
    party._key_id = keys.secret_key.key_id
    plain = Encoder(parameters).encode(np.ones(engine.shape.n) * 1j, level, scales(parameters)[level])
    encryptor = Encryptor(parameters, keys.secret_key)
    messages = [
        (encryptor.encrypt_bytes(plain), party._token),
        (encryptor.encrypt(plain).to_bytes(), lambda raw: Ciphertext.from_bytes(parameters, raw)),
    ]
    for i, (_, make) in enumerate(list(keyring._makers(described, keys))[:4]):
        messages.append((make(), lambda raw, i=i: keyring._parse(described, steps, i, raw)))
    return messages


@FUZZ
@given(data=st.data())
def test_messages_of_the_engine(wire, data):
    good, read = data.draw(st.sampled_from(wire))
    raw = bytearray(good)
    how = data.draw(st.sampled_from(["cut", "pad", "head", "residue", "swap"]))
    if how == "cut":
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    elif how == "pad":
        raw += bytes(data.draw(st.integers(1, 1000)))
    elif how == "head":
        at = data.draw(st.integers(0, HEAD - 1))
        raw[at] ^= data.draw(st.integers(1, 255))
    elif how == "residue":
        # Residues that are no residues: all bits set, above every prime.
        at = data.draw(st.integers(HEAD + 100, len(raw) - 32))
        raw[at : at + 32] = b"\xff" * 32
    else:
        raw = bytearray(data.draw(st.sampled_from([other for other, _ in wire if other is not good])))
    try:
        read(memoryview(bytes(raw)))
    except SottovoceError:
        return
    # Only a changed name of a key (checked elsewhere), a seed or a scale can pass here.
    assert how == "head"


def test_all_good_messages_are_read(wire):
    for good, read in wire:
        read(memoryview(good))


def answers(send, digest, most):
    ends = memory_pair()
    return run_pair(lambda c: receive_answer(c, digest, most), send, ends)[0]


def test_answers_on_their_way():
    answer = Answer(5, b"d" * DIGEST_BYTES, (b"one", b"two"))
    assert [bytes(f) for f in answers(lambda c: send_answer(c, answer), answer.digest, 2)] == [b"one", b"two"]
    assert answers(lambda c: send_answer(c, None), None, 2) is None
    with pytest.raises(IntegrityError, match="other ciphertexts"):
        answers(lambda c: send_answer(c, answer), b"e" * DIGEST_BYTES, 2)
    with pytest.raises(IntegrityError, match="impossible size"):
        answers(lambda c: send_answer(c, answer), None, 1)
    with pytest.raises(FrameError):
        answers(lambda c: c.send(b"short"), None, 2)

    def large(channel):
        send_answer(channel, Answer(5, answer.digest, (bytes(MAX_CIPHERTEXT + 1),)))

    with pytest.raises(FrameError):
        answers(large, None, 2)


def test_answers_on_disk():
    answer = Answer(5, b"d" * DIGEST_BYTES, tuple(bytes([i]) for i in range(12)))
    (name, piece), *_ = answer.to_piece().items()
    assert Answer.from_pieces([("other", {}), (name, piece)], 5) == answer
    assert Answer.from_pieces([(name, piece)], 4) is None and Answer.from_pieces([], 5) is None
    for change in ({"length": None}, {"digest": np.zeros(3, np.uint8)}, {"length": np.zeros((1, 1))}):
        bad = {key: value for key, value in {**piece, **change}.items() if value is not None}
        with pytest.raises(CorruptFileError):
            Answer.from_pieces([(name, bad)], 5)


def test_a_cache_that_is_no_cache(engine, wire):  # noqa: F811
    parameters, n = engine.description.parameters, engine.shape.n
    good = np.frombuffer(wire[1][0], np.uint8)
    mine = Ciphertext.from_bytes(parameters, good.tobytes()).key_id

    def load(raw, key_id=mine, functions=b"f"):
        cache = SimpleNamespace(keys=[], values=[])
        heads, blocks = SimpleNamespace(t=4), SimpleNamespace(classes=1)
        shape = SimpleNamespace(n=n, heads=heads)
        program = SimpleNamespace(length=0, private=1, shape=shape, caches=[cache], blocks=blocks)
        piece = {"length": np.array([1]), "k.0.0": raw, "v.0.0": raw}
        piece["functions"] = functions and np.frombuffer(functions, np.uint8)
        present = {k: v for k, v in piece.items() if v is not None}
        state.load_cache(program, present, parameters, key_id, b"f")
        return cache

    assert len(load(good).keys) == len(load(good).values) == 1
    with pytest.raises(CorruptFileError, match="another key"):
        load(good, b"12345678")
    for functions in (None, b"g"):
        with pytest.raises(CorruptFileError, match="another release"):
            load(good, functions=functions)
    for bad, complaint in (
        (None, "incomplete"),
        (good.astype(np.int64), "incomplete"),
        (good[:-1], "damaged"),
        (np.roll(good, 1), "damaged"),
    ):
        with pytest.raises(CorruptFileError, match=complaint):
            load(bad)
