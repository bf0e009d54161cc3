"""Two-party generation: homomorphic linear layers, an encrypted KV cache, non-linear functions on shares."""

from sottovoce.engines.hybrid.parties import HybridDataParty, HybridEngine, HybridModelParty

__all__ = ["HybridDataParty", "HybridEngine", "HybridModelParty"]
