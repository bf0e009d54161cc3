"""The no-op engine: the same graph over the same wire, with no cryptography. The server sees every token."""

from sottovoce.engines.clear.parties import ClearDataParty, ClearEngine

__all__ = ["ClearDataParty", "ClearEngine"]
