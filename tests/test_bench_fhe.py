"""Benchmarks of FHE on a small ring: the figures are about nothing, their form is checked."""

import json
from dataclasses import replace

import numpy as np
from click.testing import CliRunner

from sottovoce.bench import fhe, layer, packings
from sottovoce.ckks.parameters import refreshing
from sottovoce.cli.root import cli
from sottovoce.engines.fhe import FheEngine, description
from sottovoce.engines.fhe.costs import CostModel
from sottovoce.engines.fhe.estimate import Plan
from sottovoce.engines.fhe.functions import Degrees
from sottovoce.engines.fhe.placement import place_bootstraps, record
from sottovoce.engines.fhe.shape import Shape
from sottovoce.parties import Address, Client, Server, Welcome, Wish
from tiny_model import tiny_model


def test_packings_on_a_small_ring():
    result = packings.run(256, degree=1 << 10)
    assert [row["packing"] for row in result["rows"]] == ["irp", "bsgs", "moai", "thor"]
    assert [row["plaintexts"] for row in result["rows"]] == [64, 256, 65536, 8192]
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


class InThisProcess:
    """Stands for `ServerProcess`: the same server, a small ring without security."""

    def __init__(self, options, model):
        self.engine = FheEngine(options, tiny_model(layers=1), "small")
        self.engine.prepare()
        self.reports = []

    def __enter__(self):
        welcome = Welcome(self.engine.options, self.engine.public(), self.engine.model.card)
        self.server = Server(self.engine.session, welcome, tls=None, on_close=self.reports.append)
        self.server.__enter__()
        return self

    def __exit__(self, *exc):
        self.server.__exit__(*exc)

    def connect(self):
        return Client.connect(Address(self.server.host, self.server.port), Wish("fhe"), None)

    def cpu(self):
        return 0.0

    def memory(self):
        return 0

    def ledger(self):
        self.server.stop()
        self.server.wait(300.0)
        return self.reports[0].ledger


def test_generation_is_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("SOTTOVOCE_CACHE", str(tmp_path))
    small = refreshing(2048, 16, (2, 10, 3), 6, "ternary", "unchecked")
    monkeypatch.setitem(description.PARAMETERS, "small", small)
    monkeypatch.setattr(fhe, "ServerProcess", InThisProcess)
    monkeypatch.setattr(fhe, "load_model", lambda name: tiny_model(layers=1))
    result = fhe.run("tiny", 1, "a")
    assert result["context"] == 1 and len(result["positions"]) == 1
    assert 0 <= result["top1_agreement"] <= 1 and result["kl"] < 0.01
    assert "bootstraps" in {row["name"] for row in result["by_operation"]}
    assert result["key_bytes"] > 10**7 and result["bytes_per_token"] > 10**5
    json.dumps(result)


def test_a_layer_behind_public_tokens_and_alone():
    """On a small ring without security: both cases compute what the plain model does."""
    small = refreshing(1024, 16, (2, 10, 3), 6, "ternary", "unchecked")
    config = replace(tiny_model(layers=1).config, tied_head=False)
    plans = []
    for split, public in ((0, 0), (2, 20)):
        shape, cost = Shape(config, 512, public + 5, split), CostModel(3.0)
        segments = record(shape, Degrees(), public + 4, public)
        placement = place_bootstraps(segments, small.working_top, cost)
        plans.append(Plan(shape, small, placement, segments, cost, 1, 1, public))
    result = layer.measure(config, plans)
    assert [(c["public_tokens"], c["private_tokens"]) for c in result["cases"]] == [(0, 5), (20, 5)]
    for case in result["cases"]:
        assert case["largest_error"] < 0.05 < case["logits_range"]
        assert case["seconds"] > 0 and case["bootstraps"] == result["cases"][0]["bootstraps"]
        assert {"bootstraps", "products"} <= {o["name"] for o in case["by_operation"]}
    assert result["growth"] > 0
    json.dumps(result)


def test_seconds_by_operation_are_per_step():
    row = {"phase": "decode", "operation": "bootstraps", "seconds": 6.0}
    rows = [row | {"bytes_up": 0, "bytes_down": 4, "rounds": 2}]
    rows.append(rows[0] | {"operation": "products/levels", "seconds": 1.0})
    rows.append(rows[0] | {"operation": "idle"})
    found = fhe._by_operation([*rows, row | {"phase": "prefill"}], "decode", 2)
    assert [(o["name"], o["seconds"]) for o in found] == [("bootstraps", 3.0), ("products", 0.5)]


def test_estimate_prints_the_plan():
    command = ["estimate", "stories260k", "--engine", "fhe", "--no-calibration", "--json", "-n", "8"]
    result = CliRunner().invoke(cli, [*command, "--prompt-tokens", "8", "--quiet"])
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)["estimates"]
    assert found["plan"]["bootstraps_per_token"] == 20
    assert found["plan"]["layer"]["bootstraps"] == 4
    assert 2e9 < found["key_bytes"] < 1e10 and found["server_memory"] > 5e8
