"""Tokenizer, streaming text, chat prompts split into public and private, and the card that carries them."""

from __future__ import annotations

import dataclasses
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import models_common as common
from sottovoce.errors import CorruptFileError, UnsupportedModelError, UsageError, VersionMismatchError
from sottovoce.models import ChatTemplate, ModelCard, Prompt, Tokenizer

_FUZZ = settings(max_examples=200, deadline=None, derandomize=True)


def stream(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    decoder = tokenizer.stream()
    return [*(decoder.push(token) for token in tokens), decoder.finish()]


# --- tokenizer


def test_smollm2_tokens_equal_transformers() -> None:
    tokenizer = common.smollm2().card.tokenizer
    expected = json.loads((common.FIXTURES / "smollm2-tokens.json").read_text())
    for text, ids in expected.items():
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids, keep_special=True) == text
    assert tokenizer.eos_ids == (2,) and tokenizer.bos_id == 1 and tokenizer.size == 49152
    assert tokenizer.decode([1, 9690, 2]) == "system" and tokenizer.token(2) == "<|im_end|>"


@_FUZZ
@given(st.text(max_size=40))
def test_every_text_survives_and_streams(text: str) -> None:
    for model in (common.tiny("llama"), common.smollm2()):
        tokenizer = model.card.tokenizer
        tokens = tokenizer.encode(text)
        whole = tokenizer.decode(tokens, keep_special=True)
        assert whole == text or model.config.vocab_size != 300
        if whole == text:  # SmolLM2's vocabulary lacks some bytes (of control characters and rare scripts)
            assert "".join(stream(tokenizer, tokens)) == tokenizer.decode(tokens)


@_FUZZ
@given(st.text(max_size=30))
def test_llama2c_tokens_survive_and_stream(text: str) -> None:
    tokenizer = common.stories().card.tokenizer
    tokens = tokenizer.encode(text)
    assert "".join(stream(tokenizer, tokens)) == tokenizer.decode(tokens)
    if not any(word in text for word in ("<s>", "</s>", "<unk>", "▁")):
        assert tokenizer.decode(tokens) == text


def test_stream_waits_for_whole_characters() -> None:
    tokenizer = common.tiny("llama").card.tokenizer  # 256 bytes and few merges: characters come in pieces
    text = "a🙂b 你好"
    pieces = stream(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)
    assert "" in pieces
    half = tokenizer.encode("🙂")[:-1]
    assert "\ufffd" in "".join(stream(tokenizer, half))


def score_merging(text: str, pieces: list[str], scores: list[float]) -> list[int]:
    """llama2.c's own rule, slowly: merge the adjacent pair whose union has the highest score."""
    ids = {piece: i for i, piece in enumerate(pieces)}
    parts: list[str] = []
    for character in "▁" + text.replace(" ", "▁"):
        parts += [character] if character in ids else [f"<0x{byte:02X}>" for byte in character.encode()]
    while True:
        pairs = [
            (scores[ids[a + b]], -i)
            for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False))
            if a + b in ids
        ]
        if not pairs:
            return [ids[part] for part in parts]
        at = -max(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(
        st.sampled_from(["Once", "upon", "a", "time", "little", "girl", "çé", "🙂", "was", "123"]), max_size=6
    )
)
def test_llama2c_merging_follows_the_scores(words: list[str]) -> None:
    text = " ".join(words)
    tokenizer = common.stories().card.tokenizer
    data = (common.STORIES / "tok512.bin").read_bytes()
    pieces, scores, at = [], [], 4
    for i in range(512):
        score, length = struct.unpack_from("<fi", data, at)
        pieces.append(f"<{i}>" if i < 3 else data[at + 8 : at + 8 + length].decode().replace(" ", "▁"))
        scores.append(score)
        at += 8 + length
    expected = score_merging(text, pieces, scores) if text else []
    assert tokenizer.encode(text) == expected


def _document(**changes: Any) -> str:
    data = json.loads(common.tiny("llama").card.tokenizer.document)
    return json.dumps(data | changes)


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ("", CorruptFileError),
        ("[]", CorruptFileError),
        ("[" * 100_000, CorruptFileError),
        (_document(model={"type": "WordPiece"}), UnsupportedModelError),
        (_document(model={"type": "BPE", "vocab": 3, "merges": []}), CorruptFileError),
        (_document(pre_tokenizer={"type": "Exotic"}), UnsupportedModelError),
        (_document(decoder=[1]), CorruptFileError),
        (
            _document(
                pre_tokenizer={
                    "type": "Sequence",
                    "pretokenizers": [
                        {
                            "type": "Split",
                            "pattern": {"Regex": "a" * 2000},
                            "behavior": "Isolated",
                            "invert": False,
                        }
                    ],
                }
            ),
            CorruptFileError,
        ),
    ],
)
def test_odd_tokenizers_are_refused(document: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        Tokenizer(document, bos_id=None, eos_ids=())


def test_special_ids_must_exist() -> None:
    with pytest.raises(CorruptFileError, match="301"):
        Tokenizer(_document(), bos_id=None, eos_ids=(301,))


# --- chat


def test_smollm2_public_prefix_is_the_default_system_prompt() -> None:
    card = common.smollm2().card
    prompt = card.chat("What colour is the sky?")
    public = card.tokenizer.decode(prompt.public, keep_special=True)
    assert public == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\n"
    )
    private = card.tokenizer.decode(prompt.private, keep_special=True)
    assert private == "What colour is the sky?<|im_end|>\n<|im_start|>assistant\n"
    expected = json.loads((common.FIXTURES / "smollm2-tokens.json").read_text())
    assert (
        list(prompt.tokens) in expected.values()
    )  # splitting does not change the tokens of an ordinary prompt


@_FUZZ
@given(st.text(max_size=20), st.text(max_size=20))
def test_public_tokens_do_not_depend_on_the_message(first: str, second: str) -> None:
    card = common.tiny("llama").card
    assert card.chat(first).public == card.chat(second).public
    system = [{"role": "system", "content": first}, {"role": "user", "content": second}]
    assert card.tokenizer.decode(card.chat(system).public) == "[system]"
    assert card.tokenizer.decode(card.chat(system).tokens).startswith("[system]" + first)


def test_own_system_prompt_is_private_unless_published() -> None:
    card = common.smollm2().card
    chat = [{"role": "system", "content": "Project Nightjar"}, {"role": "user", "content": "hello"}]
    assert "Nightjar" not in card.tokenizer.decode(card.chat(chat).public)
    assert "Nightjar" in card.tokenizer.decode(card.chat(chat).private)
    published = card.chat(chat, public_system=True)
    assert card.tokenizer.decode(published.public).endswith("Project Nightjar\nuser\n")


def test_a_template_that_starts_with_the_message_publishes_nothing() -> None:
    tokenizer = common.tiny("llama").card.tokenizer
    template = ChatTemplate("{{ messages[0]['content'] }}!")
    prompt = template.prompt(tokenizer, [{"role": "user", "content": "secret"}])
    assert prompt.public == () and tokenizer.decode(prompt.private) == "secret!"


def test_a_template_that_branches_on_the_message_is_refused() -> None:
    tokenizer = common.tiny("llama").card.tokenizer
    template = ChatTemplate("{% if 'a' in messages[0]['content'] %}X{% else %}Y{% endif %}")
    with pytest.raises(UnsupportedModelError, match="plain prompt"):
        template.prompt(tokenizer, [{"role": "user", "content": "a"}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% include '/etc/passwd' %}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{{ raise_exception('no') }}",
        "{{ 1 / 0 }}",
        "{% if %}",
    ],
)
def test_hostile_templates_are_contained(source: str) -> None:
    with pytest.raises(UnsupportedModelError):
        ChatTemplate(source).render([{"role": "user", "content": "x"}])


def test_chat_misuse() -> None:
    card = common.tiny("llama").card
    for messages in ([], [{"role": "wizard", "content": "x"}], [{"role": "user"}]):
        with pytest.raises(UsageError):
            card.chat(messages)
    with pytest.raises(UsageError, match="empty"):
        card.plain("")
    with pytest.raises(UnsupportedModelError, match="chat template"):
        common.stories().card.chat("x")
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.json"):
        common.tiny("gpt2").card.plain("x")


def test_plain_prompt_has_a_constant_first_token() -> None:
    card = common.stories().card
    prompt = card.prompt("Once upon a time")
    assert prompt == Prompt((1,), tuple(card.tokenizer.encode("Once upon a time")))
    assert len(prompt) == 5 and prompt.tokens[0] == 1


# --- card


def test_card_survives_the_wire() -> None:
    for model in (common.tiny("llama"), common.tiny("gpt2"), common.stories(), common.smollm2()):
        card = model.card
        again = ModelCard.from_bytes(card.to_bytes())
        assert again.digest == card.digest and again.config == card.config and again.name == card.name
        assert again.model_digest == model.digest
        if card.template is not None:
            assert again.chat("hello") == card.chat("hello")
    assert len(common.smollm2().card.to_bytes()) < 1 << 20


def _pack(text: bytes, length: int | None = None, version: int = 1, magic: bytes = b"SVMC") -> bytes:
    return struct.pack("<4sHI", magic, version, len(text) if length is None else length) + zlib.compress(text)


def _card_text(**changes: Any) -> bytes:
    data = json.loads(zlib.decompress(common.tiny("llama").card.to_bytes()[10:]))
    return json.dumps(data | changes).encode()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", CorruptFileError),
        (_pack(b"{}", magic=b"XXXX"), CorruptFileError),
        (_pack(_card_text(), version=2), VersionMismatchError),
        (_pack(b"{}"), CorruptFileError),
        (_pack(_card_text(), length=5), CorruptFileError),
        (_pack(b" " * 100_000_000), CorruptFileError),  # a small message that inflates to 100 MB
        (_pack(b" " * 100_000_000, length=10), CorruptFileError),
        (_pack(_card_text()) + b"x", CorruptFileError),
        (_pack(b"[" * 100_000), CorruptFileError),
        (_pack(_card_text(name="a\nb")), CorruptFileError),
        (_pack(_card_text(name="")), CorruptFileError),
        (_pack(_card_text(model_digest="00")), CorruptFileError),
        (_pack(_card_text(config={})), CorruptFileError),
        (_pack(_card_text(tokenizer={"document": "{}", "bos_id": None, "eos_ids": []})), CorruptFileError),
        (_pack(_card_text(tokenizer={"document": "{}", "bos_id": "1", "eos_ids": []})), CorruptFileError),
        (_pack(_card_text(template={"source": "x", "variables": {"range": "y"}})), CorruptFileError),
        (_pack(_card_text(template={"source": "x" * 70_000, "variables": {}})), CorruptFileError),
        (_pack(_card_text(extra=1)), CorruptFileError),
    ],
)
def test_bad_cards_are_refused(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        ModelCard.from_bytes(data)


@_FUZZ
@given(st.binary(max_size=200))
def test_random_cards_are_refused(data: bytes) -> None:
    for attempt in (data, struct.pack("<4sHI", b"SVMC", 1, 100) + data, _pack(data)):
        with pytest.raises(UsageError):
            ModelCard.from_bytes(attempt)


def test_a_vocabulary_larger_than_the_model_is_refused() -> None:
    card = common.tiny("llama").card
    smaller = dataclasses.replace(card.config, vocab_size=299)
    with pytest.raises(CorruptFileError, match="300 tokens.*299"):
        dataclasses.replace(card, config=smaller)


def test_a_huge_card_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sottovoce.models.card.MAX_BYTES", 1000)
    with pytest.raises(UnsupportedModelError, match="1000"):
        common.tiny("llama").card.to_bytes()
