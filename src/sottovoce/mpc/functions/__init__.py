"""Non-linear functions on shares, each written once for the two-party run and the model (protocols.md 7)."""
