"""What goes wrong with the fhe engine is said clearly, and before memory or minutes are spent."""

from types import SimpleNamespace

import numpy as np
import pytest

from sottovoce.ckks import (
    SMALL,
    Encoder,
    Encryptor,
    Evaluator,
    GaloisKeys,
    KeyGenerator,
    SecretKey,
    fresh_bytes,
    load_fresh,
)
from sottovoce.ckks.parameters import refreshing
from sottovoce.engines.fhe import FheDataParty, FheEngine, keyring, memory
from sottovoce.engines.fhe import description as descriptions
from sottovoce.engines.fhe.ciphertexts import CkksSlots, scales
from sottovoce.engines.fhe.parties import FheModelParty
from sottovoce.errors import (
    ForeignKeyError,
    FrameError,
    IntegrityError,
    LevelError,
    MissingKeyError,
    ParameterError,
    RangeError,
    RefusedError,
    ScaleError,
    SottovoceError,
    UsageError,
)
from sottovoce.packing.slots import constant
from test_fhe_engine import OPTIONS, engine, session  # noqa: F401  (fixture)
from tiny_model import tiny_model

MEGA = 1 << 20


def test_parameters_without_enough_levels(engine, monkeypatch):  # noqa: F811
    shallow = refreshing(2048, 4, (2, 10, 3), 6, "ternary", "unchecked")
    monkeypatch.setitem(descriptions.PARAMETERS, "shallow", shallow)
    with pytest.raises(
        ParameterError, match="levels are needed behind .* a refresh leaves 4; use parameters"
    ):
        FheEngine(OPTIONS, tiny_model(layers=1), "shallow").prepare()


def test_tokens_that_are_not_what_was_agreed(engine):  # noqa: F811
    described = engine.description
    parameters, n = described.parameters, engine.shape.n
    mine, level = KeyGenerator(parameters).secret_key, described.entry
    party = FheModelParty(engine)
    party._slots = SimpleNamespace(n=n, evaluator=SimpleNamespace(parameters=parameters))
    party._key_id = mine.key_id
    encoder, scale = Encoder(parameters), scales(parameters)[level]

    def sent(secret=mine, slots=n, level=level, scale=scale):
        return Encryptor(parameters, secret).encrypt_bytes(encoder.encode(np.ones(slots) * 1j, level, scale))

    party._token(sent())
    other = SecretKey.generate(parameters)
    for raw, complaint in (
        (sent(secret=other), "another key, or to another session"),
        (sent(level=level - 1), f"has level {level - 1}; {level} was agreed"),
        (sent(slots=n // 2), "another period or scale"),
        (sent(scale=scale * 2), "another period or scale"),
    ):
        with pytest.raises(IntegrityError, match=complaint):
            party._token(raw)


def test_keys_that_are_not_what_was_announced(engine):  # noqa: F811
    described, keys = engine.description, KeyGenerator(engine.description.parameters)
    steps = sorted(described.steps.items())
    made = [make() for _, make in keyring._makers(described, keys)]
    assert len(made) == 3 + len(steps)
    for i in (0, 1, 2, 3):
        keyring._parse(described, steps, i, made[i])
        with pytest.raises(SottovoceError):
            keyring._parse(described, steps, i, made[(i + 1) % 4])
    (step, level) = next(entry for entry in steps if entry[1] > 1)
    # Higher ones would do, and take memory that the server has not counted.
    for wrong in (level - 1, level + 1):
        made = GaloisKeys(described.parameters, keys.secret_key.key_id, {step: keys.galois_key(step, wrong)})
        with pytest.raises(IntegrityError, match="not the one that was announced"):
            keyring._parse(described, steps, 3 + steps.index((step, level)), made.to_bytes())


def test_nobody_sends_more_than_tokens_take(engine):  # noqa: F811
    """The server holds a step's ciphertexts before it looks at them; large frames would fill its memory."""
    described = engine.description
    size = fresh_bytes(described.parameters, described.entry)
    plain = Encoder(described.parameters).encode(np.ones(engine.shape.n), described.entry)
    secret = SecretKey.generate(described.parameters)
    assert len(Encryptor(described.parameters, secret).encrypt_bytes(plain)) == size
    with pytest.raises(FrameError, match="where the protocol requires"):
        session(
            engine,
            lambda p: (p._channel.send(bytes(2)), p._channel.send(bytes(size + 1)), p._channel.recv(1)),
            lambda p: p.prefill([256], 1),
        )


def test_slots_without_keys_levels_or_scales():
    keys, encoder = KeyGenerator(SMALL), Encoder(SMALL)
    encryptor = Encryptor(SMALL, keys.secret_key)
    evaluator = Evaluator(SMALL, keys.relinearization_key(), keys.galois_keys([1]))
    ar, level = CkksSlots(evaluator, 64), 2
    x = encryptor.encrypt(encoder.encode(np.ones(64) * 0.5, level, scales(SMALL)[level]))
    with pytest.raises(MissingKeyError, match="no key for a rotation by 3 at level 2: generate one"):
        ar.rotate(x, 3)
    with pytest.raises(MissingKeyError, match="conjugation"):
        ar.conjugate(x)
    with pytest.raises(ParameterError, match="given no keys for one"):
        ar.bootstrap(x)
    bottom = ar.drop(x, 0)
    for exhausted in (lambda: ar.mul(bottom, bottom), lambda: ar.mul_plain(bottom, constant(np.ones(64)))):
        with pytest.raises(LevelError, match="level 0"):
            exhausted()
    with pytest.raises(ScaleError):
        ar.add(x, x.with_scale(x.scale * 1.01))
    foreign = Encryptor(SMALL, SecretKey.generate(SMALL)).encrypt(encoder.encode(0.5, level, x.scale))
    with pytest.raises(ForeignKeyError, match="another key|different"):
        ar.add(x, foreign)
    assert load_fresh(SMALL, encryptor.encrypt_bytes(encoder.encode(1.0, 1))).level == 1


def test_a_value_that_leaves_its_range_is_noticed_by_the_client(engine, monkeypatch):  # noqa: F811
    """The stream of such a token is 40 times larger than any other: the norm's polynomial explodes."""
    monkeypatch.setattr(
        FheDataParty, "_one_hot", lambda self, t, make=FheDataParty._one_hot: [40 * v for v in make(self, t)]
    )
    with pytest.raises(RangeError, match="left the range .* Begin a new conversation"):
        session(engine, lambda p: p.prefill([256], [104]), lambda p: p.prefill([256], 1))


def test_memory_is_asked_for_before_it_is_used(tmp_path, monkeypatch):
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    (cgroup / "memory").mkdir(parents=True)
    proc.mkdir()
    assert memory.available_memory(proc, cgroup) is None
    (proc / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   8192 kB\n")
    assert memory.available_memory(proc, cgroup) == 8 * MEGA
    (cgroup / "memory.max").write_text("max\n")
    (cgroup / "memory.current").write_text("1\n")
    (cgroup / "memory.stat").write_text(f"anon 5\ninactive_file {MEGA}\n")
    assert memory.available_memory(proc, cgroup) == 8 * MEGA
    (cgroup / "memory.max").write_text(f"{4 * MEGA}\n")
    (cgroup / "memory.current").write_text(f"{3 * MEGA}\n")
    assert memory.available_memory(proc, cgroup) == 2 * MEGA
    assert memory.available_memory() is None or memory.available_memory() > 0
    for check in (memory.check_engine, memory.check_client):
        check(1 << 16, None)
        check(1 << 16, 10**10)
        with pytest.raises(UsageError, match="0.1 GB"):
            check(1 << 16, 10**8)
    memory.check_session(10**9, 1 << 16, 10**10)
    with pytest.raises(RefusedError, match="keys take 5.0 GB"):
        memory.check_session(5 * 10**9, 1 << 16, 6 * 10**9)
    # What another session is about to take is not free.
    monkeypatch.setattr(memory, "available_memory", lambda: 12 * 10**9)
    uploads = memory.Uploads()
    with uploads.one(6 * 10**9, 1 << 16):
        with pytest.raises(RefusedError, match="try again later"), uploads.one(6 * 10**9, 1 << 16):
            pass
    with uploads.one(6 * 10**9, 1 << 16):
        pass
