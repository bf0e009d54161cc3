"""The engine scx is exact: its logits are the plaintext model's, whatever the profile, model and array
library."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from chance import LEAST_P
from models_common import tiny
from scx_sessions import Pair, engine_of
from sottovoce.engines.scx import PROFILES, Arrays, arrays, wire
from sottovoce.engines.scx.keys import laplace, normal, permutation
from sottovoce.engines.scx.masked import MASK_BITS
from sottovoce.errors import CorruptFileError, IntegrityError, UsageError
from sottovoce.net import memory_pair
from sottovoce.ring.sampling import Stream

PROMPT = [7, 250, 31, 8, 9, 100, 3]
MORE = [4, 9, 77, 12, 5]


@pytest.fixture(params=sorted(PROFILES))
def profile(request):
    return request.param


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2"])
def test_logits_are_those_of_the_plaintext_model(name, profile):
    model = tiny(name)
    plain = model.forward([*PROMPT, *MORE])
    scale = 1e-5 * np.abs(plain).max()
    with Pair(engine_of(model, profile)) as pair:
        assert np.abs(pair.prefill(PROMPT) - plain[len(PROMPT) - 1]).max() < scale
        for i, token in enumerate(MORE):
            assert np.abs(pair.decode(token) - plain[len(PROMPT) + i]).max() < scale


def check(pair, model, tokens):
    """The next token's logits are those behind `tokens`."""
    plain = model.forward([*tokens, 5])[-1]
    assert np.abs(pair.decode(5) - plain).max() < 1e-5 * np.abs(plain).max()


def test_tokens_in_pieces_are_those_of_one_pass(profile):
    model = tiny("llama")
    with Pair(engine_of(model, profile)) as pair:
        pair.prefill(PROMPT[:3], public=PROMPT[3:5])
        tokens = [*PROMPT[3:5], *PROMPT[:3]]
        logits = pair.verify(MORE)
        plain = model.forward([*tokens, *MORE])[-len(MORE) :]
        assert logits.shape == plain.shape and np.abs(logits - plain).max() < 1e-5 * np.abs(plain).max()
        long = [i * 37 % 256 for i in range(20)]
        pair.prefill(long)  # a second turn
        check(pair, model, [*tokens, *MORE, *long])


@pytest.mark.parametrize("cut", [9, 7, 4, 1, 0])
def test_a_session_goes_on_behind_any_cut(profile, cut):
    """Behind decoded tokens, at the end of the prefill, inside it, and at its beginning."""
    model = tiny("gpt2")
    tokens = [*PROMPT, *MORE]
    with Pair(engine_of(model, profile)) as pair:
        pair.prefill(PROMPT)
        for token in MORE:
            pair.decode(token)
        pair.truncate(cut)
        if cut == 0:
            pair.prefill(PROMPT[:1])
        for token in (11, 12):
            pair.decode(token)
        kept = [*(tokens[:cut] or PROMPT[:1]), 11, 12]
        pair.truncate(len(kept) - 1)
        check(pair, model, kept[:-1])


def test_a_saved_session_goes_on(profile):
    model = tiny("qwen2")
    engine = engine_of(model, profile)
    kept = [[], []]
    with Pair(engine) as pair:
        pair.prefill(PROMPT)
        for count, token in enumerate(MORE):
            pair.settled()
            for pieces, half in zip(kept, (pair.client, pair.server), strict=True):
                pieces += half.changed(len(PROMPT) + count - 1 if count else 0).items()
            pair.decode(token)
    length = len(PROMPT) + len(MORE) - 1
    with Pair(engine) as pair:
        pair.settled()
        for pieces, half in zip(kept, (pair.client, pair.server), strict=True):
            half.restore(pieces, length - 2)  # less than was saved
        check(pair, model, [*PROMPT, *MORE][: length - 2])


def test_what_was_not_saved_by_this_engine_is_refused(profile):
    engine = engine_of(tiny("llama"), profile)
    with Pair(engine) as pair:
        pair.prefill(PROMPT)
        rest = pair.client.changed(0)["rest"]
    with Pair(engine) as pair:
        for pieces in ([], [("rest", {})], [("rest", {**rest, "marks": np.zeros(0)})], [("rest", rest)]):
            with pytest.raises(CorruptFileError):
                pair.client.restore(pieces, len(PROMPT))


LONG = [i * 37 % 256 for i in range(40)]


def behind(profile, spoil):
    """(logits of a token behind `LONG` with a session as it is, and spoiled; the plaintext model's)."""
    model = tiny("llama")
    with Pair(engine_of(model, profile)) as pair:
        pair.prefill(LONG)
        right = pair.decode(5)
        pair.truncate(len(LONG))
        pair.settled()
        spoil(pair)
        wrong = pair.decode(5)
    plain = model.forward([*LONG, 5])[-1]
    assert np.abs(right - plain).max() < 1e-5 * np.abs(plain).max()
    return right, wrong


def test_without_the_row_key_logits_are_others():
    right, wrong = behind("paper", lambda pair: pair.client.user.forget_key())
    assert np.abs(wrong - right).max() > 1e-3 * np.abs(right).max()


def test_without_the_users_half_logits_are_others(profile):
    """How much of a text that hides is measured by `bench keys`."""
    right, wrong = behind(profile, lambda pair: pair.client.user.forget())
    assert np.abs(wrong - right).max() > 1e-2 * np.abs(right).max()


def test_the_hardened_server_keeps_nothing_of_a_session_but_its_length():
    with Pair(engine_of(tiny("llama"), "hardened")) as pair:
        pair.prefill(LONG)
        pair.settled()
        (name, piece), *others = pair.server.changed(0).items()
    assert name == "rest" and not others
    assert {key: value.tolist() for key, value in piece.items()} == {"marks": [len(LONG)]}


def test_no_mask_and_no_key_is_used_twice():
    """The same prompt again gives the server other numbers everywhere."""
    seen = []
    with Pair(engine_of(tiny("llama"), "hardened"), observe=lambda n, i, x: seen.append(np.array(x))) as pair:
        for _ in range(2):
            pair.prefill(PROMPT)
            pair.settled()
            pair.truncate(0)
        pair.settled()
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert not (a == b).any() and np.abs(a).max() > 2.0**MASK_BITS / 4
        assert (a == np.rint(a)).all()  # no low bits that could tell a mask from what it hides


def test_noise_is_laplacian_and_masks_are_normal():
    stream = Stream()
    for draw, kind in (
        (laplace(stream, 2.0, 20000), stats.laplace(scale=2.0)),
        (normal(stream, 20000), stats.norm()),
    ):
        assert stats.kstest(draw, kind.cdf).pvalue > LEAST_P
    order = permutation(stream, 1000)
    assert sorted(order) == list(range(1000)) and abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.3


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(
    "change", [lambda x: np.inf * x, lambda x: np.nan * x], ids=["infinite", "not a number"]
)
def test_numbers_that_are_none_end_the_session(change, profile):
    engine = engine_of(tiny("llama"), profile)
    with pytest.raises(IntegrityError), Pair(engine) as pair:
        layer = engine.layers[0]
        weight = change(np.ones_like(layer.q))
        pair.server.cloud._layers[0] = dataclasses.replace(layer, q=weight)
        with np.errstate(all="ignore"):
            pair.prefill(PROMPT)


def test_a_row_key_that_is_no_permutation_is_refused():
    engine = engine_of(tiny("llama"), "paper")
    for places in ([0, 0], [0, 9]):
        client, server = memory_pair()
        wire.send_places(client, np.array(places))
        with pytest.raises(IntegrityError):
            wire.receive_places(server, 2, 5)
    assert engine.profile.redundant(7) == 4 and engine.profile.redundant(100) == 13


def library_named(name):
    """Skips where it is not installed, and where it has no device."""
    pytest.importorskip("array_api_compat")
    if name == "array_api_strict":
        return Arrays(pytest.importorskip(name))
    pytest.importorskip(name)
    library = arrays(name)
    try:
        library.put(np.zeros(1, np.float32))
    except Exception as error:  # CuPy without a GPU
        pytest.skip(f"{name}: {error}")
    return library


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("where", ["array_api_strict", "torch", "cupy"])
def test_the_same_in_another_array_library(profile, where, name):
    """Only what the array API standard has is used, so that PyTorch and CuPy can take NumPy's place."""
    model, library = tiny(name), library_named(where)
    with Pair(engine_of(model, profile, library), library) as pair:
        pair.prefill(PROMPT)
        pair.verify(MORE[:2])
        pair.truncate(8)
        check(pair, model, [*PROMPT, MORE[0]])


def test_parties_may_compute_in_different_libraries(profile):
    model, library = tiny("llama"), library_named("torch")
    with Pair(engine_of(model, profile, library), Arrays(np)) as pair:
        pair.prefill(PROMPT)
        check(pair, model, PROMPT)


def test_arrays_come_back_from_a_gpu():
    """PyTorch's tensors leave it by `cpu`, CuPy's arrays by `get`; here by neither."""

    class Elsewhere:
        def __init__(self, leave):
            setattr(self, leave, lambda: np.arange(3))

    for leave in ("cpu", "get"):
        assert (Arrays(np).get(Elsewhere(leave)) == np.arange(3)).all()


def test_array_libraries_that_are_not_there():
    assert arrays("numpy").xp is np
    with pytest.raises(UsageError, match="known are"):
        arrays("abacus")
