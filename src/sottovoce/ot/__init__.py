"""Oblivious transfer: base OTs, their extension, and random, 1-of-2^m and correlated OTs."""

from sottovoce.ot.extension import OtExtension
from sottovoce.ot.folded import FoldedPads

__all__ = ["FoldedPads", "OtExtension"]
