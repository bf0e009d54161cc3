"""Patterns of tokenizers: those that exist are taken, those that could take for ever are not."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from sottovoce.errors import CorruptFileError, SottovoceError, UnsupportedModelError, UsageError
from sottovoce.models.patterns import check_pattern
from sottovoce.models.tokenizer import Tokenizer
from tiny_model import byte_tokenizer

# As their models' tokenizer.json has them.
REAL = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
    r"\s?\p{L}+",
    r"[一-龥ࠀ-一가-퟿]+",
    r"[0-9][0-9][0-9]",
    r"\d{1,3}(?=\d{3}\b)",
    r"[\r\n]",
    r"\n+",
]

ENDLESS = [
    r"(a+)+c",
    r"(a|a)*c",
    r"(?:a*)*",
    r"(a?){32}a{32}",
    r"(?:a{2}){9}",
    r"a*a*a*c",
    r"a*a*c",
    r"a+b*c",
    r"a{2}+b",
    r"a{1,}{1,}",
    r"a{1}{1}",
    r"a{1,99}a{1,99}a{1,99}",
    r"a?" * 20 + "a" * 20,
    r"(a|b)" * 20,
    r"(a)\1",
    r"(?<x>a)\k<x>",
    r"(?<x>a|b\g<x>)",
    r"(?x: a + + )",
    r"(?i)a",
    r"(?(1)a|b)",
    r"(*FAIL)",
    r"\X+",
    r"\R",
    r"a**",
    r"*a",
    "|".join(rf"a*{c}" for c in "bcdefghijklmnopqrstuvwxyz"),
    "(" * 20 + "a" + ")" * 20,
    "a)b",
]


@pytest.mark.parametrize("pattern", REAL)
def test_patterns_of_real_models_are_taken(pattern: str) -> None:
    check_pattern(pattern)
    Regex(pattern)


@pytest.mark.parametrize("pattern", ENDLESS)
def test_patterns_that_could_take_long_are_refused(pattern: str) -> None:
    with pytest.raises(UnsupportedModelError, match="very long"):
        check_pattern(pattern)


@pytest.mark.parametrize("pattern", ["[a", "(a", "(?:a|b", "a" * 1025, "[[a]"])
def test_malformed_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(CorruptFileError):
        check_pattern(pattern)


PIECES = st.sampled_from(list("ab([{|)]}*+?^,1") + [r"\s", "(?:", "{1,2}", "(?!", "[^a]"])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(PIECES, max_size=14).map("".join))
def test_what_is_taken_cuts_the_worst_text_without_giving_up(pattern: str) -> None:
    """The library gives up after ten million steps at one place; what is taken never gets there."""
    try:
        check_pattern(pattern)
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
    except (SottovoceError, Exception):  # noqa: B014  (the binding raises bare Exception)
        return
    for text in ("a" * 300, "ab" * 150, "a" * 299 + "b", "b" * 299 + "a"):
        split.pre_tokenize_str(text)


def document(**parts: object) -> str:
    return json.dumps({**json.loads(byte_tokenizer().document), **parts})


def split(pattern: object) -> dict[str, object]:
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def test_every_part_of_a_document_is_checked() -> None:
    bad = {"Regex": "(a+)+c"}
    replace = {"type": "Replace", "pattern": bad, "content": ""}
    for parts in (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split({"Regex": "a"}), split(bad)]}},
        {"normalizer": replace},
        {"decoder": {"type": "Sequence", "decoders": [replace]}},
    ):
        with pytest.raises(UnsupportedModelError, match="very long"):
            Tokenizer(document(**parts), bos_id=None, eos_ids=[])
    for pattern in (
        "a",
        {"Regex": 3},
        {"Regex": "a", "String": "b"},
        {},
        {"Other": "a"},
        {"String": "a" * 2000},
    ):
        with pytest.raises(CorruptFileError):
            Tokenizer(document(pre_tokenizer=split(pattern)), bos_id=None, eos_ids=[])
    many = {"type": "Sequence", "pretokenizers": [split({"Regex": "a"})] * 40}
    with pytest.raises(CorruptFileError, match="40 parts"):
        Tokenizer(document(pre_tokenizer=many), bos_id=None, eos_ids=[])
    Tokenizer(document(pre_tokenizer=split({"String": "(a+)+c"})), bos_id=None, eos_ids=[])


def test_a_library_that_gives_up_is_an_error_like_others() -> None:
    class PanicException(BaseException):
        pass

    class Backend:
        def encode(self, *_: object, **__: object) -> None:
            raise PanicException("retry-limit-in-match over")

    tokenizer = byte_tokenizer()
    tokenizer._backend = Backend()
    with pytest.raises(UsageError, match="cannot be cut"):
        tokenizer.encode("secret")
