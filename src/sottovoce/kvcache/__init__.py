"""Strategies of the key-value cache behind one interface."""

from sottovoce.kvcache.ciphertext import CiphertextCache
from sottovoce.kvcache.interface import KVCache
from sottovoce.kvcache.layout import CacheLayout, best_groups
from sottovoce.kvcache.masked import MaskedCache
from sottovoce.kvcache.none import NoCache
from sottovoce.kvcache.strategies import STRATEGIES, adopt_segment, make_caches, prepare_caches

__all__ = [
    "STRATEGIES",
    "CacheLayout",
    "CiphertextCache",
    "KVCache",
    "MaskedCache",
    "NoCache",
    "adopt_segment",
    "best_groups",
    "make_caches",
    "prepare_caches",
]
