"""Benchmarks of FHE on a small ring: the figures are about nothing, their form is checked."""

import json

import numpy as np
from click.testing import CliRunner

from sottovoce.bench import fhe, packings
from sottovoce.cli.root import cli
from tiny_model import tiny_model


def test_packings_on_a_small_ring():
    result = packings.run(256, degree=1 << 10)
    assert [row["packing"] for row in result["rows"]] == ["irp", "bsgs", "moai", "thor"]
    assert [row["plaintexts"] for row in result["rows"]] == [128, 256, 65536, 16384]
    assert [row["scaled"] for row in result["rows"]] == [False, False, True, True]
    for row in result["rows"]:
        assert row["largest_error"] < 1e-5 and row["levels"] == 1 and row["seconds"] > 0
    json.dumps(result)


def test_positions_are_compared_with_the_plain_model():
    model = tiny_model(layers=1)
    tokens = [256, 1, 2]
    plain = model.forward(tokens)[1:].astype(np.float64)
    same = fhe._compare(model, tokens, list(plain))
    assert all(p["top1"] and abs(p["kl"]) < 1e-9 for p in same)
    assert not fhe._compare(model, tokens, list(-plain))[0]["top1"]


def test_seconds_by_operation_are_per_step():
    row = {"phase": "decode", "operation": "bootstraps", "seconds": 6.0}
    rows = [row | {"bytes_up": 0, "bytes_down": 4, "rounds": 2}]
    rows.append(rows[0] | {"operation": "products/levels", "seconds": 1.0})
    rows.append(rows[0] | {"operation": "idle"})
    found = fhe._by_operation(rows, 2)
    assert [(o["name"], o["seconds"]) for o in found] == [("bootstraps", 3.0), ("products", 0.5)]


def test_estimate_prints_the_plan():
    command = ["estimate", "stories260k", "--engine", "fhe", "--no-calibration", "--json", "-n", "8"]
    result = CliRunner().invoke(cli, [*command, "--prompt-tokens", "8", "--quiet"])
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)["estimates"]
    assert found["plan"]["bootstraps_per_token"] == 20
    assert found["plan"]["layer"]["bootstraps"] == 4
    assert 2e9 < found["key_bytes"] < 1e10 and found["server_memory"] > 5e8
