"""The bytes of one frame on the wire.

    offset  size  field
    0       2     magic "SV"
    2       1     version of the framing
    3       1     lowest bit: 0 data, 1 error (JSON: why the sender gives up); above it, the number of the
                  data frames that went before in this direction, modulo 128
    4       4     payload length, little endian
    8       n     payload

The receiver of a data frame always knows the size the protocol step requires, so a length is checked against
it before a single payload byte is read or any memory is reserved for it. The number finds a sender that
repeats or leaves out a frame (TLS sees to everybody else): what follows would be read as another step's.
"""

import json
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from .. import errors

MAGIC = b"SV"
FRAME_VERSION = 2
NUMBERS = 128
HEADER_SIZE = 8
MAX_PAYLOAD = 1 << 30
MAX_ERROR_PAYLOAD = 4096

_HEADER = Struct("<2sBBI")
_MAX_REASON = 600


class Kind(IntEnum):
    DATA = 0
    ERROR = 1


@dataclass(frozen=True)
class Header:
    kind: Kind
    length: int
    number: int = 0


def pack_header(kind: Kind, length: int, number: int = 0) -> bytes:
    """Eight bytes; FrameError if the payload is larger than any frame may be (the caller must split it).

    number: of data frames before it.
    """
    if not 0 <= length <= MAX_PAYLOAD:
        raise errors.FrameError(
            f"a frame of {length:,} bytes exceeds the limit of {MAX_PAYLOAD:,}; send it in several frames"
        )
    return _HEADER.pack(MAGIC, FRAME_VERSION, kind | number % NUMBERS << 1, length)


def parse_header(raw: bytes | bytearray | memoryview) -> Header:
    """Check everything in a header that does not depend on what the protocol expects next.

    Raises FrameError for bytes that are no frame, VersionMismatchError for a frame of another version.
    """
    if len(raw) != HEADER_SIZE:
        raise errors.FrameError(f"a frame header has {HEADER_SIZE} bytes, got {len(raw)}")
    magic, version, kind_and_number, length = _HEADER.unpack(raw)
    if magic != MAGIC:
        raise errors.FrameError(
            "the other side does not speak the Sottovoce protocol; check the host, the port, "
            "and that both sides agree on TLS"
        )
    if version != FRAME_VERSION:
        raise errors.VersionMismatchError(
            f"the other side uses frame version {version}, this side {FRAME_VERSION}; "
            "install the same release of sottovoce on both"
        )
    kind, number = Kind(kind_and_number & 1), kind_and_number >> 1
    limit = MAX_PAYLOAD if kind == Kind.DATA else MAX_ERROR_PAYLOAD
    if length > limit:
        raise errors.FrameError(f"a frame announces {length:,} bytes, the limit is {limit:,}")
    return Header(kind, length, number)


def check_number(number: int, expected: int) -> None:
    """FrameError if a frame came twice, or one is missing before it."""
    if number != expected % NUMBERS:
        raise errors.FrameError(
            "the other side sent a frame twice, or left one out; the parties are out of step, start a new"
            " session"
        )


def check_size(length: int, minimum: int, maximum: int) -> None:
    """FrameError unless the announced length is what this step of the protocol requires."""
    if not minimum <= length <= maximum:
        wanted = f"{maximum:,}" if minimum == maximum else f"{minimum:,} to {maximum:,}"
        raise errors.FrameError(
            f"the other side sent a frame of {length:,} bytes where the protocol requires {wanted}; "
            "the parties are out of step, start a new session"
        )


# Errors about the protocol itself: their text is made of constants, sizes and what the handshake said. All
# others (input, files, models) may quote a user's text or a path, and keep it to themselves.
_SENDABLE = {
    cls.__name__: cls
    for cls in (
        errors.PeerConnectionError,
        errors.PeerGoneError,
        errors.RefusedError,
        errors.ServerBusyError,
        errors.VersionMismatchError,
        errors.ParameterMismatchError,
        errors.ModelMismatchError,
        errors.ProtocolError,
        errors.FrameError,
        errors.IntegrityError,
    )
}


def _printable(text: str) -> str:
    """Text of the other party may end up on a terminal: no control characters, one line, bounded length."""
    return "".join(c if c.isprintable() else " " for c in text)[:_MAX_REASON]


def pack_error(error: BaseException) -> bytes:
    """The payload of an error frame. Only errors about the protocol carry their text: others may hold data.

    The text of a failing chat template, for example, is chosen by the server that sent the template, and may
    well be the prompt.
    """
    name = next((c.__name__ for c in type(error).__mro__ if c.__name__ in _SENDABLE), "")
    if name:
        reason = _printable(str(error))
    elif isinstance(error, errors.SottovoceError):
        name, reason = (
            "PeerGoneError",
            "the other side gave up for a reason of its own, which it does not send",
        )
    elif isinstance(error, KeyboardInterrupt):
        name, reason = "PeerGoneError", "the other side was interrupted by its user"
    else:
        name, reason = "ProtocolError", "the other side failed internally; its own log says why"
    fields: dict[str, object] = {"error": name, "reason": reason}
    if isinstance(error, errors.ServerBusyError) and error.retry_after is not None:
        fields["retry_after"] = error.retry_after
    return json.dumps(fields).encode()[:MAX_ERROR_PAYLOAD]


def parse_error(payload: bytes | bytearray | memoryview) -> errors.SottovoceError:
    """The exception that an error frame stands for; anything malformed becomes a FrameError."""
    try:
        fields = json.loads(bytes(payload).decode())
        cls, reason = _SENDABLE[fields["error"]], fields["reason"]
        after = fields.get("retry_after")
        if not isinstance(reason, str) or not (after is None or type(after) is int and 0 <= after < 1 << 31):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        return errors.FrameError("the other side ended the session with an unreadable error frame")
    error = cls(_printable(reason))
    if isinstance(error, errors.ServerBusyError):
        error.retry_after = after
    return error
