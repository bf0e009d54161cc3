"""The two parties as programs: a server of one model, a client with one session, and the answer between
them.
"""

from .client import DEFAULT_PORT, Address, Client, Identity
from .generation import Completion, GenerationOptions, Usage, generate
from .protocol import PROTOCOL, CardCache, Welcome, Wish
from .sampling import Sampler, SamplingOptions
from .server import Server
from .session import ServerSession, SessionReport, peak_memory_bytes

__all__ = [
    "DEFAULT_PORT",
    "PROTOCOL",
    "Address",
    "CardCache",
    "Client",
    "Completion",
    "GenerationOptions",
    "Identity",
    "Sampler",
    "SamplingOptions",
    "Server",
    "ServerSession",
    "SessionReport",
    "Usage",
    "Welcome",
    "Wish",
    "generate",
    "peak_memory_bytes",
]
