"""Results become tables: one line for what was measured, replaced when it is measured again."""

import json

import pytest

from sottovoce.bench import cells, plot, report, tables
from sottovoce.bench.machine import header
from sottovoce.errors import CorruptFileError, UsageError

PRIMITIVE = {"ours_s": 1e-5, "peer_s": 8e-5, "ratio": 8.0}
BOOTSTRAP = {
    "set": "boot16",
    "slots": 32768,
    "threads": 1,
    "ours_s": 5.0,
    "peer_s": None,
    "ratio": None,
    "ours_cpu_s": 5.0,
    "peer_cpu_s": None,
    "cpu_ratio": None,
    "steps": {"raise": 0.1, "sine": 2.0},
    "levels": 9,
    "level_bits": 41.0,
    "bits": 22.0,
    "worst_bits": 19.5,
    "memory_bytes": 6e9,
    "key_bytes": 4e9,
    "key_seconds": 11.0,
    "peer_levels": None,
    "peer_bits": None,
    "peer_worst_bits": None,
    "peer_memory_bytes": None,
}
OPERATION = {"name": "linear", "phase": "decode", "seconds": 0.5, "bytes": 1e6, "rounds": 4.0}


def e2e(kv="ciphertext", context=64, seconds=2.5):
    return {
        **header(),
        "model": "m",
        "engine": "hybrid",
        "kv": kv,
        "context": context,
        "seconds_per_token": seconds,
        "online_seconds_per_token": 2.0,
        "bytes_per_token": 5e7,
        "online_bytes_per_token": 4e7,
        "rounds_per_token": 900.0,
        "cpu_seconds_per_token": {"client": 1.0, "server": 2.0},
        "peak_memory_bytes": {"client": 10**8, "server": 10**9},
        "top1_agreement": 1.0,
        "mean_kl": 0.0001,
        "by_operation": [OPERATION] * 20,
    }


def growth(kv, contexts, seconds):
    points = [
        {"context": c, "seconds_per_token": seconds * c, "bytes_per_token": 1e6, "memory_bytes": 10**9}
        for c in contexts
    ]
    return {**header(), "model": "m", "kv": kv, "points": points}


def sample(name):
    """A result with the keys that the table of this benchmark needs."""
    block = {"ours_s": 0.1, "peer_s": 6.0, "ratio": 60.0}
    block |= {"ours_bytes": 3e6, "peer_bytes": 3e7, "bytes_ratio": 10.0}
    row = {"prompt": "a|b\nc", "answer": "x" * 200, "equal": 15, "first_difference": None}
    network = {"net": "wan", "rtt_ms": 40.0, "mbit": 100.0}
    cost = {"seconds_per_token": 1.0, "bytes_per_token": 1e6, "rounds_per_token": 12.5}
    return (
        header()
        | {
            "agreement": {
                "model": "m",
                "kv": "masked",
                "prompts": 1,
                "positions": 16,
                "new_tokens": 16,
                "top1_agreement": 0.99,
                "mean_kl": 1e-4,
                "max_kl": 1e-3,
                "rows": [row, row | {"first_difference": {"position": 3, "reference_margin": 0.01}}],
            },
            "ray": {
                "model": "m",
                "workers": 2,
                "nodes": 2,
                "nodes_used": 2,
                "cluster": "two nodes on this machine",
                "threads": 2,
                "rows": [
                    {
                        "work": "online",
                        "matrix": "o",
                        "shape": [576, 576],
                        "tokens": 1,
                        "one_core_s": 0.01,
                        "one_process_s": 0.006,
                        "cluster_s": 0.012,
                        "over_one_core": 0.83,
                        "over_one_process": 0.5,
                        "same_bits": True,
                    }
                ],
            },
            "e2e": e2e(),
            "draft": {
                "model": "m",
                "kv": "masked",
                "draft": "ngram",
                "rows": [
                    {
                        "net": "lan",
                        "plain": {"seconds": 2.0, "bytes": 1e6},
                        "drafted": {"seconds": 1.0, "bytes": 1e6},
                        "speedup": 2.0,
                        "drafted_tokens": 8,
                        "accepted_tokens": 5,
                        "same_tokens": True,
                    }
                ],
            },
            "bootstrap": BOOTSTRAP,
            "fhe": e2e()
            | {
                "engine": "fhe",
                "new_tokens": 2,
                "public_tokens": 1,
                "key_bytes": 3 * 10**9,
                "setup_seconds": 60.0,
                "kl": 1e-9,
                "positions": [{"kl": 1e-9, "top1": True}, {"kl": 1e-8, "top1": False}],
            },
            "layer": {
                "shape": "gpt2",
                "cases": [
                    {
                        "public_tokens": 0,
                        "private_tokens": 32,
                        "seconds": 30.0,
                        "estimated_seconds": 31.0,
                        "bootstraps": 6,
                        "by_operation": [{"name": "rotations", "seconds": 2.0}],
                        "largest_error": 0.01,
                    }
                ],
                "key_bytes": 6 * 10**9,
                "memory_bytes": 10**10,
            },
            "ranges": {
                "model": "m",
                "rows": [
                    {
                        "case": "x",
                        "stream": [1.0, 2.0],
                        "values": [1.0],
                        "activations": [3.0],
                        "scores": [9.0],
                    }
                ],
            },
            "packings": {
                "width": 1024,
                "rows": [
                    {
                        "packing": "moai",
                        "seconds": 100.0,
                        "over_irp": 400.0,
                        "plaintexts": 1 << 20,
                        "rotations": 0,
                        "levels": 1,
                        "ciphertexts": 1024,
                        "memory_bytes": 10**9,
                        "timed_share": 0.01,
                        "scaled": True,
                        "tokens_when_full": 32768,
                        "seconds_per_token_when_full": 0.003,
                    }
                ],
            },
            "polynomials": {
                "period": 64,
                "rows": [
                    {
                        "function": "1/x",
                        "degree": 31,
                        "low": 1 / 32,
                        "fit_bits": 16.0,
                        "key_switches": 10,
                        "slim_key_switches": 10,
                        "levels": 5,
                        "slim_levels": 5,
                        "seconds": 0.5,
                        "slim_seconds": 0.4,
                        "speedup": 1.25,
                        "bits": 25.0,
                        "slim_bits": 24.0,
                    }
                ],
            },
            "matrix": {
                "rows": [{"batch": 64, "core_seconds": 0.1, "bytes": 1e6}],
                "online": {"core_seconds": 2.0, "bytes": 4e7},
                "hint": {"core_seconds": 1.0, "bytes": 2e9},
                "crossover_tokens": {
                    "core_seconds": {"batch": 1.5, "with_hint": 13.0},
                    "bytes": {"batch": 0.0, "with_hint": None},
                },
            },
            "growth": growth("none", (8, 16), 1.0),
            "he": {"ntt": PRIMITIVE, "rotate": PRIMITIVE | {"peer_s": None, "ratio": None}},
            "network": {"model": "m", "kv": "none", "context": 64, "rows": [network | cost]},
            "peers": {
                "kv": "masked",
                "context": 64,
                "spu_block": block,
                "he": {"ntt": PRIMITIVE},
                "by_operation": [OPERATION],
            },
            "prefill": {
                "model": "smollm2-135m",
                "kv": "ciphertext",
                "tokens": 64,
                "rows": [
                    {
                        "encoding": encoding,
                        "seconds_per_token": 2.0,
                        "linear_seconds_per_token": 1.0,
                        "cpu_seconds_per_token": {"client": 0.5, "server": 1.5},
                        "bytes_per_token": 1e8,
                        "linear_bytes_per_token": 1e7,
                        "rounds": 2000.0,
                        "memory_bytes": {"client": 1 << 28, "server": 1 << 32},
                        "mean_kl": 1e-4,
                    }
                    for encoding in ("matrix", "vector")
                ],
            },
            "quality": {
                "model": "m",
                "text": "t.txt",
                "tokens": 9,
                "ppl_plain": 20.0,
                "ppl_fixed": 20.01,
                "kl": 1e-4,
                "top1": 0.99,
                "encrypted": None,
            },
            "scx": {
                "what": "quality",
                "profile": "paper",
                "text": "t.txt",
                "tokens": 9,
                "positions": 8,
                "nll_plain": 24.0,
                "nll_scx": 24.0,
                "kl": 1e-12,
                "top1": 1.0,
                "largest_difference": 3e-5,
                "ppl_wrong_keys": 900.0,
            },
            "chunk": {
                "model": "stories260K",
                "tokens": [15],
                "layers": 5,
                "rows": [
                    {
                        "tokens": count,
                        "ciphertexts": 2,
                        "seconds": 16.0,
                        "seconds_per_token": 16.0 / count,
                        "speed_up": float(count),
                        "bootstraps": 4,
                        "estimated_seconds": 17.0,
                        "largest_error": 1e-4,
                        "top1": True,
                        "by_operation": [{"name": "bootstraps", "seconds": 12.0}],
                    }
                    for count in (1, 15)
                ],
            },
            "faults": {
                "kv": "masked",
                "points": 10,
                "seed": 1,
                "seamless": 6,
                "reopened": 3,
                "restarted": 1,
                "resumed_connections": 4,
                "faults": {"kill client": 1, "delay server": 9},
                "failures": [],
                "seconds": 9.0,
            },
            "proxy": {
                "model": "tiny",
                "new_tokens": 12,
                "repeat": 4,
                "rows": [
                    {
                        "kv": "masked",
                        "prepared": True,
                        "seconds_direct": 0.5,
                        "seconds_proxy": 0.501,
                        "spread": 0.03,
                        "overhead": 0.002,
                        "cpu_seconds": 1e-3,
                        "cpu_overhead": 0.002,
                    }
                ],
                "models_ms": 2.0,
                "models_ms_worst": 4.0,
            },
            "load": {
                "model": "tiny",
                "kv": "masked",
                "sessions": 2,
                "tokens": 16,
                "seconds": [1.0, 1.2],
                "ratio": 1.2,
                "throughput": 20.0,
                "throughput_alone": 25.0,
                "sessions_after": 50,
                "memory_half": 1e8,
                "memory_last": 1e8,
            },
        }[name]
    )


@pytest.mark.parametrize("name", sorted(report.KINDS))
def test_every_benchmark_has_a_table(name, tmp_path):
    path = report.save(name, sample(name), {"context": 64}, tmp_path)
    page = (tmp_path / f"{name}.md").read_text()
    assert page.startswith(f"# {report.KINDS[name].title}\n")
    assert f"`sottovoce bench {name} --context 64`" in page and sample(name)["machine"]["cpu"] in page
    (run,) = json.loads(path.read_text())
    assert run["date"] in page and run["command"].startswith("sottovoce bench")
    widths = [line.count(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert len(widths) > 2 and report.KINDS.keys() == tables.RENDERERS.keys()


def test_a_run_replaces_the_one_that_measured_the_same(tmp_path):
    for context, seconds in ((128, 3.0), (64, 2.0), (128, 1.25)):
        path = report.save("e2e", e2e(context=context, seconds=seconds), {}, tmp_path)
    assert [(r["context"], r["seconds_per_token"]) for r in report.load(path)] == [(64, 2.0), (128, 1.25)]
    page = (tmp_path / "e2e.md").read_text()
    assert "1.25" in page and "3.00" not in page and "6 more" in page


def test_growth_puts_strategies_side_by_side(tmp_path):
    report.save("growth", growth("none", (64, 128), 1.0), {}, tmp_path)
    report.save("growth", growth("ciphertext", (64, 128, 256), 0.1), {}, tmp_path)
    page = (tmp_path / "growth.md").read_text()
    prepared = growth("masked", (64,), 0.01) | {"prepared": 512}
    report.save("growth", prepared, {}, tmp_path)
    assert "masked, prepared: s/token" in (tmp_path / "growth.md").read_text()
    assert "none ÷ ciphertext" in page and "10.0×" in page and "| 256 | 25.6 |" in page


def test_a_damaged_file_is_not_overwritten(tmp_path):
    for content in ("{", "{}", "[1]"):
        (tmp_path / "he.json").write_text(content)
        with pytest.raises(CorruptFileError):
            report.save("he", sample("he"), {}, tmp_path)
        assert (tmp_path / "he.json").read_text() == content
    with pytest.raises(UsageError):
        report.save("nonsense", {}, {}, tmp_path)


def test_commands_name_no_place_on_this_machine():
    settings = {"spu_python": "/home/x/bin/python", "text": "/data/wiki.txt", "contexts": (1, 2), "kv": None}
    assert (
        report.command("x", settings)
        == "sottovoce bench x --spu-python PYTHON --text wiki.txt --contexts 1,2"
    )


def test_the_suite_covers_every_table_and_saves_each(tmp_path, monkeypatch):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "one.txt").write_text("text")
    assert {name for name, _ in report.suite(texts)} == report.KINDS.keys()
    monkeypatch.setattr(report, "run_one", lambda name, settings, progress: sample(name))
    report.run_all(tmp_path / "out", texts=texts)
    assert {p.stem for p in (tmp_path / "out").glob("*.md")} == report.KINDS.keys()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (0.1234, "0.123"),
        (1.5, "1.50"),
        (12.345, "12.3"),
        (1234.5, "1234"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert cells.number(value) == text


def test_the_plot_is_the_same_file_for_the_same_results(tmp_path):
    pytest.importorskip("matplotlib")
    runs = [growth("none", (64, 128), 1.0), growth("ciphertext", (64, 128, 256), 0.1)]
    for name in ("a.svg", "b.svg"):
        plot.growth(runs, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert b"ciphertext" in (tmp_path / "a.svg").read_bytes()
