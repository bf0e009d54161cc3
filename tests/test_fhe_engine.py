"""The fhe engine on a small unchecked ring: the whole path of a session, and its refusals."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kept_sessions import Host, go_on, greedy_tokens
from sottovoce.bench.layer import random_model
from sottovoce.ckks.parameters import refreshing
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.fhe import FheDataParty, FheEngine, keyring, parties, state
from sottovoce.engines.fhe import description as descriptions
from sottovoce.engines.fhe.calibration import sample
from sottovoce.engines.fhe.memory import Uploads
from sottovoce.errors import (
    CorruptFileError,
    ParameterMismatchError,
    PeerGoneError,
    PromptTooLongError,
    SottovoceError,
    UnsupportedModelError,
    UsageError,
)
from sottovoce.models import load_model
from sottovoce.models.chat import Prompt
from sottovoce.models.shapes import SHAPES
from sottovoce.net import Ledger, run_pair
from sottovoce.parties import Address, Client, GenerationOptions, Server, Welcome, Wish, generate
from tiny_model import tiny_model

FIXTURES = Path(__file__).parent / "fixtures"
# No security at all: degree 2,048 where 65,536 is needed.
SMALL = refreshing(2048, 16, (2, 10, 3), 6, "ternary", "unchecked")
OPTIONS = EngineOptions(engine="fhe")


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("SOTTOVOCE_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setitem(descriptions.PARAMETERS, "small", SMALL)
    made = FheEngine(OPTIONS, tiny_model(layers=1), "small")
    made.prepare()
    yield made
    patch.undo()


def session(engine, client_steps, server_steps, client=None):
    """Run both halves; returns what each side's function returns."""
    data = FheDataParty(OPTIONS, engine.public()) if client is None else client
    model, channels = engine.session(), []

    def run_client(channel):
        channels.append(channel)
        data.setup(channel)
        return client_steps(data)

    def run_server(channel):
        model.setup(channel)
        channels.append(channel)
        return server_steps(model)

    (result, _) = run_pair(run_client, run_server)
    return result, sorted(channels, key=lambda channel: channel.role)


def total(channel, count):
    return sum(getattr(row, count) for row in channel.ledger.rows())


def test_generates_what_the_plain_model_does(engine):
    text = [256, 104, 101]

    def client(party):
        first = party.prefill(text[:1], text[1:])
        return [first, party.decode(108)]

    def server(party):
        party.prefill(text[:1], 2)
        party.decode()

    logits, (up, down) = session(engine, client, server)
    plain = engine.model.forward([*text, 108])[2:]
    assert np.abs(np.stack(logits) - plain).max() < 0.1
    for count in ("bytes_up", "bytes_down", "rounds"):
        assert total(up, count) == total(down, count)


def test_a_private_tail_behind_a_long_public_prefix(engine):
    """Public tokens fill three groups; private ones get the groups behind them, and no more."""
    text = sample(engine.model, 1, 24, seed=3)[0]
    heads = engine.shape.heads
    assert (heads.t, engine.shape.split) == (8, 8)

    def client(party):
        first = party.prefill(text[:20], text[20:22])
        return [first, party.decode(text[22])]

    def server(party):
        with pytest.raises(PromptTooLongError, match="public ones; 40 do"):
            party._public = text[:20]
            party._append_public()
            party._program.check_room(41)
        party._program = party._fresh()
        party.prefill(text[:20], 2)
        party.decode()

    logits, _ = session(engine, client, server)
    assert np.abs(np.stack(logits) - engine.model.forward(text[:23])[21:]).max() < 0.1


def test_truncates_a_few_tokens_or_all_private_ones(engine):
    def client(party):
        first = party.prefill([256], [104, 101])
        return [first, party.decode(101), party.prefill([], [101])]

    def server(party):
        party.prefill([256], 2)
        party.truncate(2)
        party.decode()
        party._history.clear()
        with pytest.raises(UsageError, match="last few tokens"):
            party.truncate(2)
        party.truncate(1)
        party.prefill([], 1)

    logits, _ = session(engine, client, server)
    for found, text in zip(logits, ([256, 104, 101], [256, 104, 101], [256, 101]), strict=True):
        assert np.abs(found - engine.model.forward(text)[-1]).max() < 0.1


def test_keys_are_uploaded_once(engine, tmp_path):
    engine.keep_in(tmp_path)
    try:
        party = FheDataParty(OPTIONS, engine.public())
        _, (first, _) = session(engine, lambda p: None, lambda p: None, party)
        again = FheDataParty(OPTIONS, engine.public())
        again.secret = party.secret_key()
        logits, (second, _) = session(
            engine, lambda p: p.prefill([256], [104]), lambda p: p.prefill([256], 1), again
        )
        assert np.abs(logits - engine.model.forward([256, 104])[-1]).max() < 0.1
        uploaded = [total(c, "bytes_up") for c in (first, second)]
        assert uploaded[1] < uploaded[0] / 20
        # A damaged file is noticed, not computed with.
        victim = next((tmp_path / "fhe-keys").glob("*/0003.key"))
        raw = victim.read_bytes()
        for damaged in (raw[:-1], raw[:5000] + bytes([raw[5000] ^ 1]) + raw[5001:], b""):
            victim.write_bytes(damaged)
            with pytest.raises(SottovoceError):
                session(engine, lambda p: None, lambda p: None, again)
            _, (third, _) = session(engine, lambda p: None, lambda p: None, again)
            assert 0 < total(third, "bytes_up") < uploaded[0] / 20
    finally:
        engine.directory = None


def test_uploads_that_broke_off_do_not_fill_the_disk(tmp_path, monkeypatch):
    def broken(channel, description, directory):
        keyring.KeyStore(directory / next(names)).save(0, b"key")
        raise PeerGoneError("left")

    monkeypatch.setattr(parties, "receive_keys", broken)
    names = iter(("00", "01", "02", "03"))
    described = SimpleNamespace(key_bytes=0, parameters=SimpleNamespace(degree=0))
    engine = SimpleNamespace(description=described, directory=tmp_path, uploads=Uploads())
    for _ in range(4):
        with pytest.raises(PeerGoneError):
            parties.FheModelParty(engine).setup(SimpleNamespace(ledger=Ledger()))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_session_is_saved_and_goes_on(engine):
    """The encrypted cache leaves one server session and enters another; the client keeps its key."""
    saved = []

    def first(party):
        party.prefill([256], 2)
        saved.extend(party.changed(1).items())

    party = FheDataParty(OPTIONS, engine.public())
    session(engine, lambda p: p.prefill([256], [104, 101]), first, party)
    assert party.changed(0) == {} and party.keeps
    for length, pieces in ((3, []), (2, saved), (3, [(n, p | {"length": np.arange(9)}) for n, p in saved])):
        with pytest.raises(CorruptFileError):
            state.find_piece(pieces, length)
    with pytest.raises(CorruptFileError, match="another key"):
        session(engine, lambda p: None, lambda p: p.restore(saved, 3))

    def second(party):
        party.restore(saved, 3)
        party.decode()

    again = FheDataParty(OPTIONS, engine.public())
    again.secret = party.secret_key()
    logits, _ = session(engine, lambda p: p.decode(108), second, again)
    assert np.abs(logits - engine.model.forward([256, 104, 101, 108])[-1]).max() < 0.1


def test_a_private_first_token_is_refused(engine):
    with pytest.raises(SottovoceError, match="first token is public"):
        session(engine, lambda p: p.prefill([], [104]), lambda p: p.prefill([], 1))


def test_a_session_survives_its_server(engine, tmp_path):
    """Saved after every step, gone on with at another server, its last token once more."""
    engine.keep_in(tmp_path)
    try:
        with Host(engine, engine.model, tmp_path) as host:
            client = host.client()
            client.keep(host.mine, "talk")
            first = greedy_tokens(client, [104], 2, [256])
            client.close()
            host.stop(60.0)
            host.start()
            client = host.client("talk")
            more = go_on(client, 2)
            client.close()
        text = [256, 104]
        for token in [first[0], *more]:
            plain = engine.model.forward(text)[-1]
            assert plain[token] > plain.max() - 0.2
            text.append(token)
    finally:
        engine.directory = None


def test_generate_is_unchanged_for_the_user(engine):
    """Server, client and sampling around the engine: a client that wants privacy takes it unasked."""
    welcome = Welcome(OPTIONS, engine.public(), engine.model.card, engine.context)
    with Server(engine.session, welcome, tls=None) as server:
        client = Client.connect(Address(server.host, server.port), Wish(), None)
        with client:
            client.setup()
            prompt = Prompt((256,), (104,))
            done = generate(client, prompt, GenerationOptions(2))
    text = [256, 104]
    for token in done.token_ids:
        plain = engine.model.forward(text)[-1]
        assert plain[token] > plain.max() - 0.2
        text.append(token)
    assert done.usage.completion_tokens == len(done.token_ids)
    assert client.context_length == engine.context == 64


def test_models_that_do_not_fit_are_refused():
    with pytest.raises(UnsupportedModelError, match="Llama family"):
        FheEngine(OPTIONS, load_model(FIXTURES / "tiny-gpt2"))
    wide = random_model(dataclasses.replace(SHAPES["smollm2-135m"], layers=1, vocab_size=64))
    with pytest.raises(UnsupportedModelError, match="estimate"):
        FheEngine(OPTIONS, wide)


def test_descriptions_are_checked(engine):
    good = engine.public()
    assert FheDataParty(OPTIONS, good).description.to_json() == good
    bad = [
        good | {"parameters": "nonsense"},
        good | {"slots": 3},
        good | {"slots": 1 << 20},
        good | {"tokens": 0},
        good | {"entry": 99},
        good | {"steps": [[0, 1]]},
        good | {"steps": [[1, 99]]},
        good | {"steps": "x"},
        {k: v for k, v in good.items() if k != "entry"},
    ]
    for entry in bad:
        with pytest.raises((CorruptFileError, ParameterMismatchError)):
            FheDataParty(OPTIONS, entry)
