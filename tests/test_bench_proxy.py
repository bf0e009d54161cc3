"""The benchmark of the proxy, on the tiny model: it takes turns, and compares like with like."""

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from sottovoce.bench import proxy  # noqa: E402
from sottovoce.errors import UsageError  # noqa: E402
from tiny_model import save_tiny_model  # noqa: E402


def test_both_ways_are_timed(tmp_path):
    found = proxy.run(model=str(save_tiny_model(tmp_path)), kv="clear,masked", new_tokens=2, repeat=1)
    assert [(row["kv"], row["prepared"]) for row in found["rows"]] == [("clear", False), ("masked", True)]
    assert all(row["seconds_direct"] > 0 and row["cpu_seconds"] > 0 for row in found["rows"])
    assert 0 < found["models_ms"] <= found["models_ms_worst"]


def test_an_answer_that_ends_early_is_not_compared():
    with pytest.raises(UsageError, match="fewer --new-tokens"):
        proxy._whole(3, 4)
