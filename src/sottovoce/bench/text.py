"""The text that timing benchmarks generate along: written for this package, not the one calibration used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sottovoce.errors import UsageError
from sottovoce.models.calibration_text import MIXED, PROSE

if TYPE_CHECKING:
    from sottovoce.models import Model

STORY = (
    "Every Thursday the library van climbs the hill road and stops beside the chapel, where four or five "
    "people are already waiting. Marta drives it and also stamps the books. She knows that the carpenter "
    "wants maps and histories of shipwrecks, that the twins will ask for the same comic twice, and that "
    "the widow from the last house says she is only looking and then takes six novels at once. In winter "
    "the road is sometimes closed. Then Marta loads two rucksacks and walks up with her brother, and they "
    "hand out whatever they carried, so that the carpenter has to read poems and the twins get a cookery "
    "book. Nobody complains. Last year the county wrote that the van was too old and that readers could "
    "order from a screen. The answer, signed by everyone on the hill, was one line long: a screen does "
    "not know what we want before we do. The letter was printed in the newspaper, somebody gave money for "
    "a new gearbox, and the van still comes. On the back door, under the list of stops, there is now a "
    "second sign. It says that the engine runs on diesel and on gossip, and that the library accepts "
    "both. "
)


def sample_tokens(model: Model, count: int, path: str | Path | None = None) -> tuple[list[int], list[int]]:
    """(public prefix of the model's prompt, `count` private tokens of running text).

    path: a file to take the text from instead; UsageError if it is unreadable or too short.
    """
    public = list(model.card.prompt(STORY).public)
    if path is not None:
        return public, _from_file(model, Path(path), count)
    text = STORY
    while True:
        tokens = list(model.card.tokenizer.encode(text))
        if len(tokens) >= count:
            return public, tokens[:count]
        text += "\n\n" + PROSE + "\n\n" + MIXED + "\n\n" + STORY


def _from_file(model: Model, path: Path, count: int) -> list[int]:
    try:
        with path.open("rb") as file:  # a token is rarely longer than sixteen bytes
            text = file.read(16 * count).decode("utf-8", errors="ignore")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    tokens = list(model.card.tokenizer.encode(text))[:count]
    if len(tokens) < count:
        raise UsageError(f"{path} holds {len(tokens)} tokens; this benchmark needs {count}")
    return tokens
