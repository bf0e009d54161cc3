"""From a Hugging Face directory (config.json, *.safetensors, tokenizer files) to a model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from sottovoce.errors import CorruptFileError, UnknownModelError, UnsupportedModelError
from sottovoce.models import gpt2, llama, qwen2
from sottovoce.models.chat import MAX_TEMPLATE, ChatTemplate
from sottovoce.models.config import MODEL_TYPES, Config
from sottovoce.models.hf_config import HfConfig
from sottovoce.models.model import Model, build
from sottovoce.models.safetensors_file import SafetensorsFile
from sottovoce.models.tokenizer import Tokenizer
from sottovoce.models.weights import Array

_FAMILIES: dict[str, ModuleType] = {"gpt2": gpt2, "llama": llama, "qwen2": qwen2}
_MAX_JSON = 64 << 20


def load_huggingface(directory: Path, name: str) -> Model:
    """Raises `CorruptFileError` or `UnsupportedModelError`.

    The message names the file, tensor or config entry.
    """
    source = HfConfig(_read_json(directory / "config.json"), "config.json")
    family = _family(source)
    config: Config = family.describe(source)
    tensors = _Tensors(directory)
    weights = family.assemble(config, tensors.take)
    ignored = (*family.IGNORED, *((r"lm_head\.weight",) if config.tied_head else ()))
    tensors.refuse_unused(ignored, config)
    tokenizer, template = _client_files(directory, source)
    return build(name, config, weights, tokenizer, template)


def describe_json(path: Path) -> Config:
    """The shapes that a `config.json` describes, without any weights."""
    source = HfConfig(_read_json(path), path.name)
    config: Config = _family(source).describe(source)
    return config


def _family(source: HfConfig) -> ModuleType:
    kind = source.text("model_type")
    if kind not in _FAMILIES:
        raise UnsupportedModelError(
            f"config.json: model type {kind!r} is not implemented; supported: {', '.join(MODEL_TYPES)}"
        )
    return _FAMILIES[kind]


class _Tensors:
    """All tensors of a directory, from one file or from shards named by an index."""

    def __init__(self, directory: Path) -> None:
        index = directory / "model.safetensors.index.json"
        if index.exists():
            names = _shards(_read_json(index))
        else:
            names = sorted(path.name for path in directory.glob("*.safetensors"))
        if not names:
            raise UnknownModelError(
                f"{directory} holds no *.safetensors file; other weight formats are not read"
            )
        self._where: dict[str, SafetensorsFile] = {}
        for shard in names:
            path = directory / shard
            if not path.is_file():
                raise CorruptFileError(f"{index.name} names {shard}, which does not exist")
            file = SafetensorsFile(path)
            self._where |= dict.fromkeys(file, file)
        self._taken: set[str] = set()

    def take(self, name: str) -> Array:
        # A checkpoint saved from the bare model lacks the first component of every name.
        for candidate in (name, name.partition(".")[2]):
            if candidate in self._where:
                self._taken.add(candidate)
                return self._where[candidate].read(candidate)
        raise CorruptFileError(f"tensor {name} is missing")

    def refuse_unused(self, ignored: tuple[str, ...], config: Config) -> None:
        for name in sorted(set(self._where) - self._taken):
            prefixes = ("", "model.", "transformer.")
            if not any(re.fullmatch(pattern, p + name) for pattern in ignored for p in prefixes):
                raise UnsupportedModelError(
                    f"tensor {name} belongs to an operation that is not implemented for {config.model_type}; "
                    f"supported: the standard {config.model_type} block"
                )


def _shards(index: Any) -> list[str]:
    mapping = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(mapping, dict) or not all(isinstance(v, str) for v in mapping.values()):
        raise CorruptFileError("model.safetensors.index.json: no weight_map")
    names = sorted(set(mapping.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CorruptFileError(
                f"model.safetensors.index.json: {name[:80]!r} is not a file of this directory"
            )
    return names


def _client_files(directory: Path, source: HfConfig) -> tuple[Tokenizer | None, ChatTemplate | None]:
    document = directory / "tokenizer.json"
    if not document.is_file():
        return None, None
    settings = _optional_json(directory / "tokenizer_config.json")
    generation = _optional_json(directory / "generation_config.json")
    bare = Tokenizer(document.read_text(encoding="utf-8"), bos_id=None, eos_ids=())
    bos, eos = (_token_text(settings.get(key)) for key in ("bos_token", "eos_token"))
    ends = [bare.id_of(eos)] if eos else []
    for value in (generation.get("eos_token_id"), source.data.get("eos_token_id")):
        ends += value if isinstance(value, list) else [value]
    known = [i for i in ends if type(i) is int]
    bos_id = bare.id_of(bos) if bos else None
    tokenizer = Tokenizer(bare.document, bos_id=bos_id, eos_ids=tuple(dict.fromkeys(known)))
    variables = {k: v for k, v in (("bos_token", bos), ("eos_token", eos)) if v}
    text = _template_text(directory, settings)
    return tokenizer, None if text is None else ChatTemplate(text, variables)


def _template_text(directory: Path, settings: dict[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        if file.stat().st_size > 4 * MAX_TEMPLATE:
            raise CorruptFileError("chat_template.jinja is too large")
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several named templates
        named = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
        template = named[-1].get("template") if named else None
    return template if isinstance(template, str) else None


def _token_text(value: Any) -> str | None:
    """A special token in tokenizer_config.json: the text, or an object that holds it."""
    if isinstance(value, dict):
        value = value.get("content")
    if not isinstance(value, str):
        return None
    try:
        value.encode()
    except UnicodeEncodeError:
        raise CorruptFileError("tokenizer_config.json: a special token is not Unicode") from None
    return value


def _optional_json(path: Path) -> dict[str, Any]:
    data = _read_json(path) if path.is_file() else {}
    return data if isinstance(data, dict) else {}


def _read_json(path: Path) -> Any:
    if path.stat().st_size > _MAX_JSON:
        raise CorruptFileError(f"{path.name} is larger than {_MAX_JSON} bytes")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path.name}: not JSON") from error
