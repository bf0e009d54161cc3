"""What a party keeps on its own disk: a crash, a full disk or another program may have damaged it."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import click
import numpy as np
from safetensors.numpy import save as save_tensors
from target import JSON_WORDS, Target, card, file, model, path

from sottovoce.cli import root
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.fhe import kept
from sottovoce.errors import UsageError
from sottovoce.kvcache import masked
from sottovoce.kvcache.layout import CacheLayout
from sottovoce.kvcache.saved import pack_table, unpack_table
from sottovoce.kvcache.slots import SlotTable
from sottovoce.models import calibrate
from sottovoce.net import Role
from sottovoce.net.codec import pack_bits
from sottovoce.net.tls import KnownHosts
from sottovoce.parties.admission import ApiKeys
from sottovoce.parties.kept import read_head
from sottovoce.parties.portable import _parsed
from sottovoce.parties.vault import guard_of
from sottovoce.proxy.statement import Statement, StatementFile

ID = "ab" * 16


def _head(data: bytes) -> None:
    read_head(ID, data)


def _heads() -> list[bytes]:
    stamps = base64.b64encode(bytes(range(24))).decode()
    return [json.dumps({"key": "cd" * 32, "stamps": stamps, "keeps": True, "tokens": [1, 2]}).encode()]


def _portable(data: bytes) -> None:
    """An exported session behind its seal."""
    _parsed(data, Path("session"))


def _portables() -> list[bytes]:
    about = json.dumps({"id": ID, "facts": {"tokens": 3}, "names": ["rows.0", "rest"]}).encode()
    arrays = {"about": np.frombuffer(about, np.uint8), "head": np.frombuffer(_heads()[0], np.uint8)}
    return [save_tensors({**arrays, "0/k": np.ones((2, 3), np.float32), "1/used": np.ones(1, np.int64)})]


_LAYOUT = CacheLayout(4, 2, 8, degree=32)


def _table(data: bytes) -> None:
    unpack_table(data, _LAYOUT, True, Role.CLIENT)


def _tables() -> list[bytes]:
    return [pack_table(_LAYOUT, SlotTable(5, np.array([0, 1, 3])), Role.CLIENT)]


def _masked_cache(data: bytes) -> None:
    """A saved cache of the engine with masks, up to where it meets the session's material."""
    cache = object.__new__(masked.MaskedCache)
    cache.shape = SimpleNamespace(heads=4, kv_heads=2, head_dim=8)  # type: ignore[assignment]
    cache.channel = SimpleNamespace(role=Role.CLIENT)  # type: ignore[assignment]
    cache._parsed(data)


def _masked_caches() -> list[bytes]:
    head = masked._HEADER.pack(masked._MAGIC, masked._VERSION, int(Role.CLIENT), 4, 2, 8, 5, 2)
    numbers = pack_bits(np.arange(4 * 2 * 2 * 8, dtype=np.uint64), masked._WIDTH).tobytes()
    return [head + np.array([0, 3], "<u8").tobytes() + numbers]


def _statement(data: bytes) -> None:
    file("server_1.json", data)
    StatementFile(path(""), "server:1").load()


def _statements() -> list[bytes]:
    one = Statement("tiny", card().model_digest, card().digest, 96, EngineOptions("clear"), 5)
    StatementFile(path(""), "server:1").store(one)
    return [path("server_1.json").read_bytes()]


def _calibration(data: bytes) -> None:
    calibrate._read(file("calibration.json", data), model())


def _calibrations() -> list[bytes]:
    config = model().config
    table = np.zeros((config.layers, config.heads), np.float32)
    norms = tuple((0.5, 2.0) for _ in range(2 * config.layers + 1))
    return [json.dumps(calibrate.Calibration(norms, table, table, table).to_json()).encode()]


def _functions(data: bytes) -> None:
    """What the engine fhe has measured of a model."""
    kept._read(file("fhe.json", data))


def _functions_seeds() -> list[bytes]:
    polynomial = [-1.0, 1.0, [0.5, 0.25]]
    block = {"polynomials": [polynomial] * 3, "predictor": [[[0.0] * 2] * 2] * 2 + [[0.0] * 2] * 2,
             "spread": [[[0.0] * 2] * 2] * 2}  # fmt: skip
    one = {"version": kept._VERSION, "blocks": [block], "norm": polynomial, "exponential": polynomial,
           "inverses": [polynomial] * 3, "sums": [1.0] * 3, "squarings": 4, "residual": 0.5}  # fmt: skip
    return [json.dumps(one).encode()]


def _api_keys(data: bytes) -> None:
    ApiKeys(file("keys", data))


def _known_hosts(data: bytes) -> None:
    KnownHosts(file("known_hosts", data)).all()


def _vault(data: bytes) -> None:
    guard_of(file("vault.json", data).parent)


def _settings(data: bytes) -> None:
    """config.toml, read for every command."""
    where = file("config.toml", data)
    with patch.dict(os.environ, SOTTOVOCE_CONFIG_DIR=str(where.parent)):
        try:
            with click.Context(root.cli) as context:
                for command in root.COMMANDS:
                    root.cli.resolve_command(context, [command])
        except click.UsageError as refused:
            raise UsageError(str(refused)) from None


TARGETS = {
    "saved-head": Target(_head, _heads, JSON_WORDS, json=True),
    "saved-file": Target(_portable, _portables, (b'"dtype"', b"[0,0]", b'"data_offsets"', b"-1")),
    "saved-table": Target(_table, _tables),
    "saved-masks": Target(_masked_cache, _masked_caches),
    "statement": Target(_statement, _statements, JSON_WORDS, json=True),
    "calibration": Target(_calibration, _calibrations, JSON_WORDS, json=True, made=True),
    "functions": Target(_functions, _functions_seeds, JSON_WORDS, json=True, made=True),
    "api-keys": Target(
        _api_keys, lambda: [b"# who\nann key1 sessions=2\nbob sha256:" + b"ab" * 32 + b" context=9\n"]
    ),
    "known-hosts": Target(_known_hosts, lambda: [b"localhost:7443 " + b"ab" * 32 + b"\n# more\n"]),
    "vault": Target(_vault, lambda: [b'{"version": 1, "guard": "file"}'], JSON_WORDS, json=True),
    "settings": Target(
        _settings, lambda: [b'[serve]\nport = 7443\nkv = "masked"\n[bench.load]\nsessions = 3\n']
    ),
}
