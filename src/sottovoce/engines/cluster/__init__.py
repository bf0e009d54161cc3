"""Scale-out: work on a server's matrices, spread over machines inside the server's trust domain.

A *worker* holds part of every matrix. Workers form *teams*: the workers of a team hold the whole model
together, and one team makes all online products of a session, because it has the session's rotation keys. The
server's process keeps the protocol, the masks and all randomness. Everything here is written against `Link`;
`RayLink` is a Ray cluster, `Inline` runs workers in this process.
"""

from .link import GoneError, Inline, Link
from .products import ClusterProducts
from .router import Router
from .rows import ClusterRows
from .worker import Worker

__all__ = ["ClusterProducts", "ClusterRows", "GoneError", "Inline", "Link", "Router", "Worker"]
