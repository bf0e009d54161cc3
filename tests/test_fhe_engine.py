"""The fhe engine on a small unchecked ring: the whole path of a session, and its refusals."""

import numpy as np
import pytest

from sottovoce.ckks.parameters import refreshing
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.fhe import FheDataParty, FheEngine
from sottovoce.engines.fhe import description as descriptions
from sottovoce.errors import CorruptFileError, ParameterMismatchError, SottovoceError, UsageError
from sottovoce.net import run_pair
from tiny_model import tiny_model

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
    assert np.abs(np.stack(logits) - plain).max() < 0.05
    for count in ("bytes_up", "bytes_down", "rounds"):
        assert total(up, count) == total(down, count)


def test_truncates_to_the_public_tokens_only(engine):
    def client(party):
        return [party.prefill([256], [104]), party.prefill([], [101])]

    def server(party):
        party.prefill([256], 1)
        with pytest.raises(UsageError, match="cannot forget"):
            party._program.length = 5
            party.truncate(3)
        party._program.length = 2
        party.truncate(1)
        party.prefill([], 1)

    logits, _ = session(engine, client, server)
    assert np.abs(logits[1] - engine.model.forward([256, 101])[-1]).max() < 0.05


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
        assert np.abs(logits - engine.model.forward([256, 104])[-1]).max() < 0.05
        uploaded = [total(c, "bytes_up") for c in (first, second)]
        assert uploaded[1] < uploaded[0] / 20
        # A damaged file is noticed, not computed with.
        victim = next((tmp_path / "fhe-keys").glob("*/0003.key"))
        victim.write_bytes(victim.read_bytes()[:-1])
        with pytest.raises(SottovoceError):
            session(engine, lambda p: None, lambda p: None, again)
    finally:
        engine.directory = None


def test_a_private_first_token_is_refused(engine):
    with pytest.raises(SottovoceError, match="first token is public"):
        session(engine, lambda p: p.prefill([], [104]), lambda p: p.prefill([], 1))


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
