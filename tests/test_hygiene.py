"""What is left behind: files that only their owner reads, unharmed terminals, small caches."""

import os
import stat
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import models_common as common
from sottovoce.bgv import SIMD, SecretKey
from sottovoce.cli.generate import harmless
from sottovoce.cli.journal import Journal, Recorder
from sottovoce.correlations.coefficients import CoefficientKey
from sottovoce.correlations.matrix import MatrixItems
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.hybrid import HybridEngine, parties
from sottovoce.models import public_keys_values, quantize
from sottovoce.ot import FoldedPads
from sottovoce.parties.session import SessionReport


def test_records_of_sessions_are_private(tmp_path):
    before = os.umask(0)
    try:
        journal, recorder = tmp_path / "report.jsonl", tmp_path / "received.jsonl"
        Journal(str(journal)).write(SessionReport(id="x", peer="192.0.2.1:5"))
        record = Recorder(str(recorder))
        record.write("x", memoryview(b"abc"))
        record.flush()
    finally:
        os.umask(before)
    for path in (journal, recorder):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.read_text()


def test_answers_cannot_command_the_terminal():
    assert (
        harmless("a\x1b]52;c;ZXZpbA==\x07b\x9b2Jc\r\x08")
        == "a\ufffd]52;c;ZXZpbA==\ufffdb\ufffd2Jc\ufffd\ufffd"
    )
    kept = "two\nlines\tand ünïcödé, 漢字, 🙂‍🙂"
    assert harmless(kept) == kept


def test_long_public_prefixes_are_computed_in_parts(monkeypatch):
    model = common.tiny("llama")
    tokens = [5, 9, 7, 3, 250, 31, 8]
    whole = public_keys_values(model, tokens)
    monkeypatch.setattr(sys.modules["sottovoce.models.quantize"], "_PREFIX_AT_ONCE", 2)
    for a, b in zip(whole, public_keys_values(model, tokens), strict=True):
        assert np.abs(a - b).max() <= 1


def test_the_cache_of_prefixes_is_bounded_and_shared_by_threads(monkeypatch):
    monkeypatch.setattr(parties, "_KEPT_PREFIX", 16)
    engine = HybridEngine(EngineOptions(), common.tiny("llama"))
    engine.fixed = quantize(engine.model)
    prefixes = [[i % 40, 5, i % 7] for i in range(60)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(engine.prefix, prefixes))
    for tokens, (keys, _) in zip(prefixes, found, strict=True):
        assert np.array_equal(keys, public_keys_values(engine.model, tokens)[0])
    assert len(engine._prefixes) <= 8
    engine.prefix([5] * 17)
    assert tuple([5] * 17) not in engine._prefixes


def test_secrets_do_not_print():
    """What ends up in a traceback or a debugger's log by accident."""
    secret = 0x1234567890ABCDEF
    words = np.full((4, 2), secret, np.uint64)
    shown = [
        FoldedPads(words, words[0], np.zeros(16, np.uint8), 0, 1, 1),
        MatrixItems(secret.to_bytes(32, "little"), 0, 1, words.view(np.uint8)),
        CoefficientKey.generate(),
        SecretKey.generate(SIMD),
    ]
    for item in shown:
        text = repr(item)
        assert str(secret) not in text and "\\xef\\xcd" not in text and "decoding" not in text
        assert "coefficients=" not in text
