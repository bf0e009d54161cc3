"""The strategies by name, one cache for every layer of a model."""

from __future__ import annotations

from collections.abc import Sequence

from sottovoce.correlations.attention import BLOCK, AttentionSource
from sottovoce.correlations.attention_segments import Segment
from sottovoce.errors import ParameterError
from sottovoce.kvcache.ciphertext import CiphertextCache
from sottovoce.kvcache.interface import KVCache
from sottovoce.kvcache.masked import MaskedCache
from sottovoce.kvcache.none import NoCache
from sottovoce.packing import Side

STRATEGIES = ("ciphertext", "masked", "none")


def make_caches(
    strategy: str, side: Side, layers: int, heads: int, kv_heads: int, head_dim: int, block: int = BLOCK
) -> Sequence[KVCache]:
    """One cache per layer.

    ciphertext: encrypted at the server. masked: open under one-time masks, with the products of masks
    prepared for `block` tokens at a time. none: thrown away after every pass.
    """
    if strategy == "masked":
        source = AttentionSource(side.channel, layers, heads, kv_heads, head_dim, block)
        return [MaskedCache(side.channel, source, layer) for layer in range(layers)]
    if strategy not in STRATEGIES:
        raise ParameterError(f"no cache strategy {strategy!r}; there are {', '.join(STRATEGIES)}")
    kind = CiphertextCache if strategy == "ciphertext" else NoCache
    return [kind(side, heads, kv_heads, head_dim) for _ in range(layers)]


def prepare_caches(caches: Sequence[KVCache], tokens: int) -> None:
    """Make ahead what `tokens` more tokens take, where the strategy has something to make. Between tokens."""
    if caches and isinstance(caches[0], MaskedCache):
        caches[0].source.prepare(tokens)  # one source for all layers


def adopt_segment(caches: Sequence[MaskedCache], segment: Segment) -> None:
    """Go on with a segment made ahead: all layers' tokens move into its slots. Between tokens.

    No message; the next query of every layer opens 2·kv_heads·head_dim elements a token more.
    """
    shares = [cache.shares() for cache in caches]
    caches[0].source.adopt(segment)
    for cache, (k, v) in zip(caches, shares, strict=True):
        cache.remask(k, v)
