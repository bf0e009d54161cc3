"""Models: description, weights, plaintext reference, tokenizer and chat template, fixed-point form."""

from sottovoce.models.card import ModelCard
from sottovoce.models.chat import ChatTemplate, Prompt
from sottovoce.models.config import Config, Rope
from sottovoce.models.fixed import FixedBlock, FixedModel, FixedNorm
from sottovoce.models.layers import PlainCache
from sottovoce.models.model import Model, greedy
from sottovoce.models.quantize import public_keys_values, quantize
from sottovoce.models.registry import load_model
from sottovoce.models.tokenizer import StreamDecoder, Tokenizer
from sottovoce.models.weights import BlockWeights, Weights

__all__ = [
    "BlockWeights",
    "ChatTemplate",
    "Config",
    "FixedBlock",
    "FixedModel",
    "FixedNorm",
    "Model",
    "ModelCard",
    "PlainCache",
    "Prompt",
    "Rope",
    "StreamDecoder",
    "Tokenizer",
    "Weights",
    "greedy",
    "load_model",
    "public_keys_values",
    "quantize",
]
