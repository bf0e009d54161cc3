"""Private text generation on somebody else's machine."""

__version__ = "0.1.0"

__all__ = ["__version__"]
