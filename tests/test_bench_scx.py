"""Benchmarks of scx on a tiny model: the keys that are promised, exactness, tables."""

import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner

from scx_sessions import engine_of
from sottovoce.bench import report, scx, scx_keys
from sottovoce.bench.driven import drive
from sottovoce.cli.bench import bench
from sottovoce.models.model import build, greedy
from tiny_model import byte_tokenizer, save_tiny_model, tiny_model

KEYS = {
    "profile",
    "first_token_seconds",
    "plain_first_token_seconds",
    "plain_seconds_per_token",
    "seconds_per_token",
    "online_seconds_per_token",
    "preparation_seconds_per_token",
    "bytes_per_token",
    "rounds_per_token",
    "cpu_seconds_per_token",
    "peak_memory_bytes",
    "top1_agreement",
    "by_operation",
    "preparation_batch",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny_model(tmp_path_factory.mktemp("model")))


def test_a_token_end_to_end(model, tmp_path):
    arguments = ["e2e", "--engine", "scx", "--profile", "paper", "--model", model, "--context", "8"]
    arguments += ["--new-tokens", "2", "--output", str(tmp_path), "--json", "-q"]
    ran = CliRunner().invoke(bench, arguments)
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.output)
    assert found.keys() >= KEYS and found["engine"] == "scx"
    assert found["top1_agreement"] == 1.0 and found["largest_difference"] < 1e-4
    table = (tmp_path / "scx.md").read_text()
    assert "sottovoce bench e2e --engine scx" in table and "| paper | numpy | 8 |" in table


@pytest.mark.parametrize("profile", ["paper", "hardened"])
def test_a_text_reads_the_same(model, tmp_path, profile):
    text = tmp_path / "text.txt"
    text.write_text("It was a dark and stormy night; the rain fell in torrents. " * 4)
    found = [scx.run("quality", model, profile=profile, text=text, tokens=100, start=s) for s in (0, 100)]
    for one in found:
        assert one["top1"] == 1.0 and one["largest_difference"] < 1e-4
        assert abs(one["ppl_scx"] - one["ppl_plain"]) < 1e-3
        report.save("scx", one, {"what": "quality", "engine": "scx"}, tmp_path)
    assert f"| {profile} | text.txt | 200 |" in (tmp_path / "scx.md").read_text()


@pytest.mark.parametrize("profile", ["paper", "hardened"])
def test_a_cache_without_the_users_keys(tmp_path, profile):
    """Text that the model wrote itself behind a context is surprising to who has not got that context's keys
    and values: to a model that never saw it, and to who has an encoded cache without keys."""
    model = tiny_model(layers=3)
    sharp = dataclasses.replace(model.weights, head=40 * model.weights.embedding)
    config = dataclasses.replace(model.config, tied_head=False)
    model = build("sharp", config, sharp, byte_tokenizer())
    rng = np.random.default_rng(0)
    contexts = rng.integers(0, 256, (3, 30)).tolist()
    passages = [context + greedy(model, [256, *context], scx_keys.NEXT, ()) for context in contexts]
    reader = scx_keys.Reader(model, passages)
    engine = engine_of(model, profile)
    drive(engine, reader.read_all)
    right, *others = (score.perplexity for score in reader.scores.values())
    assert abs(right - reader.plain_score.perplexity) < 1e-3 * right
    assert reader.bare_score.perplexity > 2 * right
    assert others[-1] > 2 * right and all(other > 1.001 * right for other in others)


def test_its_command(model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("It was a dark and stormy night; the rain fell in torrents. " * 4)
    arguments = ["keys", "--profile", "paper", "--model", model, "--text", str(text), "--tokens", "64"]
    ran = CliRunner().invoke(bench, [*arguments, "--output", str(tmp_path), "--json", "-q"])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.output)
    assert abs(found["cases"][0]["ppl"] - found["ppl_plain"]) < 1e-3 * found["ppl_plain"]
    table = (tmp_path / "scx.md").read_text()
    assert "| paper | text.txt | right keys |" in table and "sottovoce bench keys" in table
