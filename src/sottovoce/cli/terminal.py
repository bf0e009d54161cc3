"""Text that somebody else chose, on a terminal."""

import unicodedata


def harmless(text: str) -> str:
    """Text for a terminal without control characters: the vocabulary is the server's, and so are the errors
    of its chat template. An escape sequence in them could retitle the window, fill the clipboard, or hide
    what stands above."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\ufffd" for c in text)
