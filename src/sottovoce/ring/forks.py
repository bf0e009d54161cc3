"""Whether this process was forked since something secret was made.

A forked child has a copy of every stream and counter. If both processes went on with them, one-time values
would be used twice, so whatever must not be continued notes the count when it is made and checks it in use.
"""

from __future__ import annotations

import os

from sottovoce.errors import ProtocolError

_count = 0


def _forked() -> None:
    global _count
    _count += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def generation() -> int:
    """How many forks lie between the first process and this one."""
    return _count


def require_same_process(made: int) -> None:
    """ProtocolError if the process was forked after `generation()` was `made`."""
    if made != _count:
        raise ProtocolError(
            "one-time secrets of the parent process were to be used after a fork; open a new session instead"
        )
