"""`bench he` has the promised keys, with and without the peer. Never a time: machines are shared."""

import builtins
from typing import Any

import pytest

from sottovoce.bench import he

OPERATIONS = ("ntt", "ct_pt_acc", "rotate", "ct_ct_relin")


@pytest.mark.slow
def test_keys_with_the_peer() -> None:
    pytest.importorskip("tenseal")
    result = he.run(repetitions=1)
    for name in OPERATIONS:
        row = result[name]
        assert set(row) == {"ours_s", "peer_s", "ratio"}
        assert row["ratio"] == row["peer_s"] / row["ours_s"] > 0
    assert {"machine", "version", "parameters"} <= set(result)


@pytest.mark.slow
def test_missing_peer_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_tenseal(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("tenseal"):
            raise ImportError(name)
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_tenseal)
    result = he.run(repetitions=1)
    for name in OPERATIONS:
        assert result[name]["peer_s"] is None and result[name]["ratio"] is None
        assert result[name]["ours_s"] > 0
