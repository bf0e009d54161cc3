"""Benchmarks of scx on a tiny model: the keys that are promised, exactness, tables."""

import json

import pytest
from click.testing import CliRunner

from sottovoce.bench import report, scx
from sottovoce.cli.bench import bench
from tiny_model import save_tiny_model

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
    assert "sottovoce bench e2e --engine scx" in table and "| paper | 8 |" in table


@pytest.mark.parametrize("profile", ["paper", "hardened"])
def test_a_text_reads_the_same(model, tmp_path, profile):
    text = tmp_path / "text.txt"
    text.write_text("It was a dark and stormy night; the rain fell in torrents. " * 4)
    found = [scx.run("quality", model, profile=profile, text=text, tokens=100, start=s) for s in (0, 100)]
    for one in found:
        assert one["top1"] == 1.0 and one["largest_difference"] < 1e-4
        assert abs(one["ppl_scx"] - one["ppl_plain"]) < 1e-3
        if profile == "paper":
            assert abs(one["ppl_wrong_keys"] - one["ppl_plain"]) > 1e-3
        report.save("scx", one, {"what": "quality", "engine": "scx"}, tmp_path)
    assert f"| {profile} | text.txt | 200 |" in (tmp_path / "scx.md").read_text()
