"""Strategies of the key-value cache behind one interface."""

from sottovoce.kvcache.ciphertext import CiphertextCache
from sottovoce.kvcache.interface import KVCache
from sottovoce.kvcache.layout import CacheLayout, best_groups
from sottovoce.kvcache.none import NoCache

__all__ = ["CacheLayout", "CiphertextCache", "KVCache", "NoCache", "best_groups"]
