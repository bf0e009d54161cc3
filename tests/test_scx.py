"""The engine scx is exact: its logits are the plaintext model's, whatever the profile, model and array
library."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

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


def test_without_the_row_key_logits_are_others():
    """Another row key, for the same server: how much that hides of a text is measured by `bench quality`."""
    model = tiny("llama")
    with Pair(engine_of(model, "paper")) as pair:
        long = [i * 37 % 256 for i in range(40)]
        pair.prefill(long)
        right = pair.decode(5)
        pair.truncate(len(long))
        pair.client.user.forget_key()
        wrong = pair.decode(5)
        assert np.abs(wrong - right).max() > 100 * np.abs(right - model.forward([*long, 5])[-1]).max()


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
        assert stats.kstest(draw, kind.cdf).pvalue > 1e-6
    order = permutation(stream, 1000)
    assert sorted(order) == list(range(1000)) and abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.3


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


def test_the_same_in_another_array_library(profile):
    """Only what the array API standard has is used, so that PyTorch and CuPy can take NumPy's place."""
    strict = pytest.importorskip("array_api_strict")
    pytest.importorskip("array_api_compat")
    model = tiny("llama")
    library = Arrays(strict)
    with Pair(engine_of(model, profile, library), library) as pair:
        pair.prefill(PROMPT)
        pair.verify(MORE[:2])
        check(pair, model, [*PROMPT, *MORE[:2]])


def test_array_libraries_that_are_not_there():
    assert arrays("numpy").xp is np
    with pytest.raises(UsageError, match="known are"):
        arrays("abacus")
