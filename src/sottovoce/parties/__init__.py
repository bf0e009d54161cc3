"""The two parties as programs: a server of one model, a client with one session, and the answer between
them.
"""

from .client import DEFAULT_PORT, Address, Client, Identity
from .conversation import Conversation
from .draft import Drafter, ModelDrafter, NgramDrafter, Proposal, make_drafter
from .generation import Completion, GenerationOptions, Usage, generate
from .idle import IdleFiller
from .pools import Pools, server_shelf
from .protocol import PROTOCOL, CardCache, Welcome, Wish
from .reuse import Lease, LiveSessions, continue_from
from .sampling import Sampler, SamplingOptions
from .server import Server
from .session import ServerSession, SessionReport, peak_memory_bytes
from .speculative import DraftLength, Speculation

__all__ = [
    "DEFAULT_PORT",
    "PROTOCOL",
    "Address",
    "CardCache",
    "Client",
    "Completion",
    "Conversation",
    "DraftLength",
    "Drafter",
    "GenerationOptions",
    "Identity",
    "IdleFiller",
    "Lease",
    "LiveSessions",
    "ModelDrafter",
    "NgramDrafter",
    "Pools",
    "Proposal",
    "Sampler",
    "SamplingOptions",
    "Server",
    "ServerSession",
    "SessionReport",
    "Speculation",
    "Usage",
    "Welcome",
    "Wish",
    "continue_from",
    "generate",
    "make_drafter",
    "peak_memory_bytes",
    "server_shelf",
]
