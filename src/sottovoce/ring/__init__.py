"""RNS polynomial rings, samplers and the security table: what every homomorphic scheme stands on."""

from sottovoce.ring.context import RingContext, bit_reversal, context, set_threads, threads

__all__ = ["RingContext", "bit_reversal", "context", "set_threads", "threads"]
