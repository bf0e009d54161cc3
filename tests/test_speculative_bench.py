"""`bench.draft` has the promised keys and honest counts. Never a time: machines are shared."""

import pytest

from sottovoce.bench import draft
from sottovoce.bench.shaped import LAN, LOOPBACK
from sottovoce.errors import UnknownModelError
from sottovoce.parties import DraftLength, GenerationOptions, NgramDrafter, Speculation
from test_speculative import Session
from tiny_model import save_tiny_model, tiny_model


def test_both_answers_over_two_networks(tmp_path):
    path = str(save_tiny_model(tmp_path))
    result = draft.run(
        model=path,
        engine="clear",
        draft=path,
        draft_tokens=3,
        prompt="hi",
        new_tokens=9,
        networks=(LOOPBACK, LAN),
    )
    assert {"machine", "version", "parameters", "model", "draft"} <= set(result)
    assert [row["net"] for row in result["rows"]] == ["loopback", "lan"]
    for row in result["rows"]:
        assert row["same_tokens"] and row["acceptance"] == 1.0
        assert row["accepted_tokens"] == row["drafted_tokens"] == 6 and row["verification_steps"] == 2
        assert row["drafted"]["rounds"] < row["plain"]["rounds"] == 2
        assert row["speedup"] == row["plain"]["seconds"] / row["drafted"]["seconds"]


def test_without_a_guess_there_is_no_acceptance():
    model = tiny_model()
    result = draft.compare(
        lambda: Session(model).client,
        "q",
        GenerationOptions(max_tokens=2),
        lambda client: Speculation(NgramDrafter(), DraftLength()),
    )
    assert result["acceptance"] is None and result["drafted_tokens"] == 0 and result["same_tokens"]


def test_a_server_that_cannot_start_is_reported(tmp_path, capfd):
    with pytest.raises(Exception, match="died") as caught:
        draft.run(model=str(tmp_path / "nothing"), engine="clear")
    assert caught.type.__name__ == "UsageError"
    assert UnknownModelError.__name__ in capfd.readouterr().err
