"""Write the reference fixtures that tests compare with: logits and token ids made by `transformers`.

Needs PyTorch and transformers, which the package and its tests do not: run it in an environment of its own.

    python -m venv /tmp/fixtures && /tmp/fixtures/bin/pip install torch transformers gguf accelerate
    /tmp/fixtures/bin/python tools/write_fixtures.py [SMOLLM2.gguf]

Tiny models of each family get random weights (large enough for attention to matter) and are saved as
Hugging Face directories. With the GGUF file of smollm2-135m, the largest logits of a few prompts are
written too.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
VOCABULARY = 300
TOP = 20

PROMPTS = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhat colour is the sky?<|im_end|>\n<|im_start|>assistant\n",
    "Water boils at 100 degrees",
    "def add(a, b):\n    return",
)

TEXTS = (
    "Hello, world!",
    "  two spaces,\ttab\n\nand blank lines \n",
    "In 1974 it cost 1,299.50 euros; isn't that odd?",
    "Größe, naïve café, Пока, 你好, 🙂👍🏽",
    "<|im_start|>user\nhi<|im_end|>",
    "don't DON'T we'll I've 've",
    "x" * 70,
    "",
)

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '[' + message['role'] + ']' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def tiny_models() -> dict[str, tuple[PreTrainedModel, torch.dtype, str]]:
    common = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    blocks = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    llama = LlamaConfig(**common, **blocks, rms_norm_eps=1e-5, tie_word_embeddings=False)
    qwen2 = Qwen2Config(**common, **blocks, rms_norm_eps=1e-6, tie_word_embeddings=True)
    gpt2 = GPT2Config(**common, n_embd=24, n_layer=2, n_head=4, n_positions=64)
    return {
        "llama": (LlamaForCausalLM(llama), torch.bfloat16, "12KB"),
        "qwen2": (Qwen2ForCausalLM(qwen2), torch.float32, "1GB"),
        "gpt2": (GPT2LMHeadModel(gpt2), torch.float16, "1GB"),
    }


def write_tiny(name: str, model: PreTrainedModel, dtype: torch.dtype, shard: str) -> None:
    generator = torch.Generator().manual_seed(20240 + len(name))
    for key, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.3
        parameter.data = noise + 1.0 if parameter.ndim == 1 and key.endswith("weight") else noise
    model.to(dtype)
    directory = FIXTURES / f"tiny-{name}"
    shutil.rmtree(directory, ignore_errors=True)
    model.save_pretrained(directory, max_shard_size=shard)
    tokens = torch.randint(0, VOCABULARY, (1, 13), generator=generator)
    with torch.no_grad():
        # The expected logits are those of the stored (rounded) weights, computed in float32. Reloaded,
        # because casting the model back would keep rotary frequencies that were rounded too.
        stored = type(model).from_pretrained(directory, dtype=torch.float32).eval()
        logits = stored(tokens).logits[0].numpy()
    np.savez_compressed(
        directory / "expected.npz", tokens=tokens[0].numpy(), logits=logits.astype(np.float32)
    )


def write_tokenizer(directory: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>"],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        [*PROMPTS, *TEXTS, "the user and the assistant write letters to each other"], trainer
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"bos_token": "<|end|>", "eos_token": {"content": "<|end|>"}, "chat_template": CHAT_TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def write_smollm2(path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ids = {text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in (*PROMPTS, *TEXTS)}
    (FIXTURES / "smollm2-tokens.json").write_text(json.dumps(ids, ensure_ascii=False, indent=1))
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    arrays = {}
    for i, prompt in enumerate(PROMPTS):
        tokens = torch.tensor([ids[prompt]])
        with torch.no_grad():
            values, places = model(tokens).logits[0].topk(TOP)
        arrays |= {
            f"tokens{i}": tokens[0].numpy().astype(np.int32),
            f"top{i}": places.numpy().astype(np.uint16),
            f"logits{i}": values.numpy().astype(np.float32),
        }
    np.savez_compressed(FIXTURES / "smollm2-logits.npz", **arrays)


def main() -> None:
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for name, (model, dtype, shard) in tiny_models().items():
        write_tiny(name, model, dtype, shard)
    write_tokenizer(FIXTURES / "tiny-llama")
    for path in sys.argv[1:]:
        write_smollm2(Path(path).resolve())


if __name__ == "__main__":
    main()
