"""The two parties of every protocol."""

from enum import IntEnum


class Role(IntEnum):
    """CLIENT holds the prompt (share x0), SERVER holds the weights (share x1); x = x0 + x1."""

    CLIENT = 0
    SERVER = 1

    @property
    def other(self) -> "Role":
        return Role(1 - self)
