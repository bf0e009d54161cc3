"""docs/reference/cli.md is what the commands say."""

from pathlib import Path

from sottovoce.cli.reference import TARGET, reference

ROOT = Path(__file__).parent.parent


def test_the_page_is_current():
    assert (ROOT / TARGET).read_text() == reference(), "run: python -m sottovoce.cli.reference"


def test_every_flag_has_an_environment_variable():
    rows = [line for line in reference().splitlines() if line.startswith("| `-")]
    assert len(rows) > 30 and all("`SOTTOVOCE_" in row for row in rows)
