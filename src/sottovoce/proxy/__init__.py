"""The proxy: an OpenAI-compatible HTTP interface on the data owner's own machine, and a chat page.

It belongs to the person with the secret: prompts and answers are in the clear here, which is why it listens
on the loopback interface only. What leaves the machine goes through `sottovoce.parties`, protected as ever.

Needs the extra `proxy` (starlette, uvicorn).
"""

from .gateway import Gateway
from .statement import Statement, StatementFile

__all__ = ["Gateway", "Statement", "StatementFile"]
