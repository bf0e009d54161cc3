"""Benchmarks measure what they say: real parameters on a tiny model, no assertion about time."""

import json
import os
import stat
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from models_common import FIXTURES, tiny
from sottovoce.bench import agreement, e2e, gpt2_block, growth, network, peers
from sottovoce.bench.cost import by_operation, per_token
from sottovoce.bench.session import run_job
from sottovoce.bench.steps import Fill, Forward, Generate, Hints, Job, Open, Pass, Prepare
from sottovoce.bench.text import STORY, sample_tokens
from sottovoce.cli.root import cli
from sottovoce.engines.base import EngineOptions
from sottovoce.errors import UsageError
from sottovoce.net import LedgerRow
from tiny_model import save_tiny_model

MODEL = str(FIXTURES / "tiny-llama")
COMMON = {"machine", "version", "parameters"}
E2E = COMMON | set(
    "model engine kv context new_tokens seconds_per_token online_seconds_per_token "
    "preparation_seconds_per_token bytes_per_token online_bytes_per_token rounds_per_token "
    "cpu_seconds_per_token peak_memory_bytes top1_agreement by_operation preparation_batch".split()
)


# --- end to end


@pytest.mark.parametrize("kv", ["ciphertext", "masked", "none"])
def test_e2e_counts_everything_and_agrees_with_plaintext(kv):
    result = e2e.run(MODEL, kv=kv, context=5, new_tokens=2)
    assert result.keys() >= E2E and result["parameters"]["security_bits"] == 128
    assert result["top1_agreement"] == 1.0 and result["mean_kl"] < 1e-3
    assert result["bytes_per_token"] >= result["online_bytes_per_token"] > 0
    assert set(result["cpu_seconds_per_token"]) == set(result["peak_memory_bytes"]) == {"client", "server"}
    assert result["preparation_batch"] == (64 if kv == "masked" else 1) and result["hint_bytes"] is None
    operations = {row["name"] for row in result["by_operation"]}
    assert {"linear", "softmax", "embedding", "head"} <= operations
    if kv == "masked":
        assert "attention" in operations
    json.dumps(result)


def test_prepared_products_are_shared_out_and_their_hints_reported():
    plain, prepared = (e2e.run(MODEL, kv="masked", context=4, new_tokens=1, prepared=n) for n in (0, 64))
    assert prepared["top1_agreement"] == 1.0 and prepared["preparation_batch"] == 64
    assert prepared["bytes_per_token"] < plain["bytes_per_token"] / 5
    assert prepared["hint_bytes"] > 10**6 and prepared["bytes_per_token"] < prepared["hint_bytes"]
    made = {row["name"] for row in prepared["by_operation"] if row["phase"] == "preparation"}
    assert {"matrices", "attention"} <= made


def test_operations_add_up_to_the_whole():
    result = e2e.run(MODEL, context=4, new_tokens=2, repeat=2)
    parts = sum(row["bytes"] for row in result["by_operation"])
    assert parts == pytest.approx(result["bytes_per_token"], rel=0.05)  # means beside medians
    assert result["repeat"] == 2


def test_a_text_of_ones_own(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("A heron stood in the shallow water and did not move at all. " * 3)
    public, tokens = sample_tokens(tiny("llama"), 20, path)
    assert tokens == list(tiny("llama").card.tokenizer.encode(path.read_text()))[:20]
    assert public == list(tiny("llama").card.prompt(STORY).public)
    with pytest.raises(UsageError, match="needs 5000"):
        sample_tokens(tiny("llama"), 5000, path)
    with pytest.raises(UsageError, match="cannot read"):
        sample_tokens(tiny("llama"), 5, tmp_path / "absent.txt")


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(UsageError, match="hybrid"):
        e2e.run(MODEL, engine="clear")
    with pytest.raises(UsageError, match="do not fit"):
        e2e.run(MODEL, context=100_000)
    with pytest.raises(UsageError, match="ascend"):
        growth.run("ciphertext", (8, 9), MODEL)


def test_the_steps_reach_exactly_the_context():
    tokens = list(range(100))
    for kv, cached in (("ciphertext", 0), ("ciphertext", 7), ("masked", 9), ("none", 0), ("none", 10)):
        steps = e2e.decode_steps(kv, tokens, cached, 10, 3)
        passed = [t for s in steps if isinstance(s, Fill | Forward) for t in s.tokens]
        assert passed == tokens[cached:13]
        measured = [s for s in steps if isinstance(s, Forward) and s.point]
        assert [s.tokens[-1] for s in measured] == [10, 11, 12]


def test_batches_made_for_many_tokens_are_shared_out():
    def one(kind="", tokens=1, **row):
        rows = [LedgerRow("decode", row.pop("operation", ""), **row)]
        return Pass(1.0, 2.0, 0, rows, kind=kind, tokens=tokens)

    online = [one(operation="linear", bytes_up=100, rounds=2, seconds=1.0)] * 3
    attention = one("attention", 10, bytes_down=500, rounds=20, seconds=1.0)
    matrices = one("matrices", 100, bytes_up=4000, seconds=1.0)
    cost = per_token(online, online, [(attention, attention), (matrices, matrices)] * 2)
    assert cost["online_seconds_per_token"] == 1.0
    assert cost["preparation_seconds_per_token"] == pytest.approx(0.11)
    assert cost["bytes_per_token"] == 100 + 50 + 40 and cost["online_bytes_per_token"] == 100
    assert cost["rounds_per_token"] == 4 and cost["cpu_seconds_per_token"]["server"] == pytest.approx(2.22)
    assert cost["preparation_batch"] == 100
    parts = {row["name"]: row["bytes"] for row in by_operation(online, [attention, matrices, matrices])}
    assert parts == {"linear": 100, "attention": 50, "matrices": 40}


# --- sessions


def test_generated_tokens_are_the_engines_own():
    prompt = tuple(tiny("llama").card.tokenizer.encode("hello"))
    steps = (Open(()), Forward(prompt, "prompt"), Generate(3))
    seen = []
    job = Job(EngineOptions(), MODEL, steps)
    client, server = run_job(job, on_step=lambda step, passes: seen.append((step, len(passes))))
    (first,), rest = client.passes[1], client.passes[2]
    chosen = [one.token for one in rest]
    logits = [first.logits, *(one.logits for one in rest)]
    assert chosen == [int(row.argmax()) for row in logits[:-1]]
    assert seen == [(0, 0), (1, 1), (2, 3)]
    assert all(one.logits is None and one.token == -1 for one in server.passes[2])


def test_a_failing_party_ends_the_run_with_its_reason():
    job = Job(EngineOptions(), MODEL, (Open(()), Forward((10**6,))))
    with pytest.raises(UsageError, match="failed"):
        run_job(job)
    steps = (Open(()), Forward((1,)), Generate(1), Fill((1,)))
    with pytest.raises(UsageError, match="Fill cannot follow"):
        run_job(Job(EngineOptions(), MODEL, steps))


def test_preparation_is_measured_where_an_engine_prepares():
    steps = (Open(()), Fill((1, 2, 3)), Hints(), Prepare(8, 16), Forward((4,)), Prepare(8, 16))
    for kv, made in (("masked", [("attention", 64), ("matrices", 16)]), ("ciphertext", [("matrices", 16)])):
        for outcome in run_job(Job(EngineOptions(kv=kv), MODEL, steps)):
            assert [(p.kind, p.tokens) for p in outcome.passes[3]] == made
            assert outcome.passes[5] == []  # there is enough


# --- the other benchmarks


@pytest.mark.parametrize("kv", ["ciphertext", "masked", "none"])
def test_growth_gives_a_point_for_every_context(kv):
    result = growth.run(kv, (4, 9, 14), MODEL, new_tokens=1)
    assert result.keys() >= COMMON | {"kv", "points"} and result["kv"] == kv
    keys = {"context", "seconds_per_token", "bytes_per_token", "memory_bytes"}
    assert [p["context"] for p in result["points"]] == [4, 9, 14]
    assert all(p.keys() >= keys and p["memory_bytes"] > 0 for p in result["points"])
    if kv == "none":
        sizes = [p["bytes_per_token"] for p in result["points"]]
        assert sizes[0] < sizes[1] < sizes[2]


def test_network_measures_the_same_work_over_each():
    result = network.run(MODEL, context=4, new_tokens=2)
    assert [row["net"] for row in result["rows"]] == ["loopback", "lan", "wan"]
    assert [(row["rtt_ms"], row["mbit"]) for row in result["rows"]] == [(0, None), (0.5, 1000), (40, 100)]
    online = [row["online_bytes_per_token"] for row in result["rows"]]
    assert max(online) < 1.05 * min(online)


def test_agreement_judges_every_position_on_the_same_text(tmp_path):
    model = str(save_tiny_model(tmp_path))  # no two tokens of its answers are closer than ten times the noise
    prepared = agreement.run(prompts=2, new_tokens=3, model=model, kv="masked", prepared=64)
    assert prepared["top1_agreement"] == 1.0 and prepared["max_kl"] < 1e-3
    result = agreement.run(prompts=2, new_tokens=3, model=model)
    assert [r["answer"] for r in prepared["rows"]] == [r["answer"] for r in result["rows"]]
    assert result["positions"] == 6 and len(result["rows"]) == 2
    assert result["top1_agreement"] == 1.0 and 0 <= result["mean_kl"] <= result["max_kl"] < 1e-3
    row = result["rows"][0]
    assert row["equal"] == 3 and row["first_difference"] is None
    with pytest.raises(UsageError, match="prompts"):
        agreement.run(prompts=999, model=model)


def test_a_difference_is_reported_with_its_margin():
    theirs = np.array([[0.0, 1.0, 0.5], [2.0, 0.0, 1.75]])
    ours = np.array([[0.0, 1.0, 0.5], [2.0, 0.0, 2.5]])
    assert agreement._first_difference(ours, theirs) == {
        "position": 1,
        "token": 2,
        "reference_token": 0,
        "reference_margin": 0.25,
    }


@pytest.mark.slow
def test_the_gpt2_block_is_computed_rightly():
    result = gpt2_block.measure("ciphertext", 16, 2, lambda *step: None)
    assert result["max_error"] < 0.05 < float(np.abs(gpt2_block.reference(16)).max())
    prepared = gpt2_block.measure("masked", 16, 2, lambda *step: None, 64)
    assert prepared["max_error"] < 0.05 and prepared["bytes_per_token"] < result["bytes_per_token"] / 2
    operations = {row["name"] for row in result["by_operation"]}
    assert {"linear", "layer_norm", "softmax", "gelu"} <= operations
    assert not operations & {"embedding", "head"}


# --- peers


def fake_python(directory, body):
    path = directory / "python"
    path.write_text(f"#!{sys.executable}\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_without_spu_the_peer_is_null(monkeypatch):
    monkeypatch.delenv(peers.SPU_VARIABLE, raising=False)
    said = []
    assert peers.spu_block(None, 64, 1, lambda *step: said.append(step[2])) is None
    assert "--spu-python" in said[0]


def test_the_runner_gets_the_shape_and_its_answer_is_found(tmp_path):
    body = (
        "import json, sys\n"
        "job = json.loads(sys.argv[2])\n"
        "print('[log] {not json'); print(json.dumps({'seconds': [job['context']], 'bytes': None,"
        " 'cpu_seconds': [1], 'max_error': 0.0, 'version': job['width']})); print('[log] end')"
    )
    found = peers.spu_block(fake_python(tmp_path, body), 33, 1, lambda *step: None)
    assert found == {"seconds": [33], "cpu_seconds": [1], "bytes": None, "max_error": 0.0, "version": 576}


def test_a_runner_that_fails_is_quoted(tmp_path):
    broken = fake_python(tmp_path, "raise SystemExit('no module named spu')")
    with pytest.raises(UsageError, match="no module named spu"):
        peers.spu_block(broken, 64, 1, lambda *step: None)


def test_the_result_compares_both_sides(monkeypatch):
    block = {
        "seconds_per_token": 0.5,
        "online_seconds_per_token": 0.4,
        "bytes_per_token": 1000,
        "rounds_per_token": 9,
        "max_error": 0.0,
        "preparation_batch": 1,
        "cpu_seconds_per_token": {"client": 0.25, "server": 0.25},
        "by_operation": [],
    }
    primitive = {"ours_s": 1.0, "peer_s": None, "ratio": None}
    monkeypatch.setattr(peers.gpt2_block, "measure", lambda *a: block)
    monkeypatch.setattr(peers.he, "run", lambda: {key: primitive for key in peers._HE_KEYS})
    answer = {
        "seconds": [4.0, 5.0, 9.0],
        "bytes": [9000, 8000, 8500],
        "cpu_seconds": [6.0],
        "max_error": 0.0,
        "version": "x",
    }
    monkeypatch.setattr(peers, "spu_block", lambda *a: answer)
    both = peers.run()["spu_block"]
    assert both["ratio"] == 10.0 and both["bytes_ratio"] == 8.5 and both["peer_s"] == 5.0
    assert both["cpu_ratio"] == 12.0
    monkeypatch.setattr(peers, "spu_block", lambda *a: None)
    alone = peers.run()
    assert alone["spu_block"]["ratio"] is None and alone["he"]["ntt"] == primitive


# --- command line


def test_the_command_prints_json_and_saves_a_table(tmp_path):
    words = ["bench", "e2e", "--model", MODEL, "--context", "4", "--new-tokens", "1", "--json", "-q"]
    done = CliRunner().invoke(cli, [*words, "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["context"] == 4
    assert "--context 4" in (tmp_path / "e2e.md").read_text()


@pytest.mark.parametrize("contexts", ["", "x", "64,32", "0,4", "8,8"])
def test_contexts_must_ascend(contexts):
    done = CliRunner().invoke(cli, ["bench", "growth", "--contexts", contexts])
    assert done.exit_code == 2 and "ascending" in done.output


def test_every_benchmark_has_help():
    for name in ("e2e", "growth", "network", "peers", "agreement", "quality", "he", "all"):
        done = CliRunner().invoke(cli, ["bench", name, "--help"], env={**os.environ, "COLUMNS": "100"})
        assert done.exit_code == 0 and "--output" in done.output
