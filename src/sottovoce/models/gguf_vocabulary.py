"""The tokenizer inside a GGUF file.

Byte-level BPE (`gpt2`) with the pre-tokenizers of the supported models.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from sottovoce.errors import CorruptFileError, UnsupportedModelError
from sottovoce.models.tokenizer import Tokenizer

_CONTROL, _USER_DEFINED = 3, 4

# How each family cuts text before merging; the pattern of qwen2 is part of its tokenizer.json.
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS = ("gpt-2", "smollm", "qwen2")


def vocabulary(metadata: dict[str, Any], where: str) -> Tokenizer | None:
    """The tokenizer, or None for a file that has none."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None:
        return None
    if kind != "gpt2":
        raise UnsupportedModelError(
            f"{where}: tokenizer {kind!r} is not implemented; supported: gpt2 (byte-level BPE)"
        )
    tokens = _strings(metadata, "tokenizer.ggml.tokens", where)
    merges = [_pair(merge, where) for merge in _strings(metadata, "tokenizer.ggml.merges", where)]
    types = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise CorruptFileError(f"{where}: token list and token types do not match, or a token appears twice")
    try:
        backend = Backend(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    except Exception as error:  # the binding raises bare Exception
        raise CorruptFileError(f"{where}: the vocabulary is inconsistent: {error}") from error
    backend.pre_tokenizer = _pre_tokenizer(metadata.get("tokenizer.ggml.pre", "gpt-2"), where)
    backend.decoder = decoders.ByteLevel()
    pairs = list(zip(tokens, types, strict=True))
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t, kind in pairs if kind == _CONTROL]
    )
    backend.add_tokens([AddedToken(t, normalized=False) for t, kind in pairs if kind == _USER_DEFINED])
    eos = [_token_id(metadata, "tokenizer.ggml.eos_token_id", len(tokens), where)]
    eos += [_token_id(metadata, "tokenizer.ggml.eot_token_id", len(tokens), where)]
    return Tokenizer(
        backend.to_str(),
        bos_id=_token_id(metadata, "tokenizer.ggml.bos_token_id", len(tokens), where),
        eos_ids=tuple(dict.fromkeys(i for i in eos if i is not None)),
    )


def _pre_tokenizer(name: Any, where: str) -> Any:
    if name == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name == "smollm":
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    if name == "qwen2":
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_QWEN2), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    raise UnsupportedModelError(
        f"{where}: pre-tokenizer {name!r} is not implemented; supported: {', '.join(_PRE_TOKENIZERS)}"
    )


def _strings(metadata: dict[str, Any], key: str, where: str) -> list[str]:
    values = metadata.get(key)
    if not isinstance(values, list) or not values or not all(isinstance(v, str) for v in values):
        raise CorruptFileError(f"{where}: {key} is missing or not a list of strings")
    return values


def _pair(merge: str, where: str) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    if not (left and space and right):
        raise CorruptFileError(f"{where}: {merge[:40]!r} is not a merge of two tokens")
    return left, right


def _token_id(metadata: dict[str, Any], key: str, size: int, where: str) -> int | None:
    value = metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value < size:
        raise CorruptFileError(f"{where}: {key} = {value!r} is not a token")
    return value
