"""A channel over a TCP socket, plain or TLS.

The socket never blocks in the kernel: writing stops when the other side's buffers are full, and then what it
sends is taken in, so two parties that send at the same time cannot wait for each other, however large the
frames.
"""

import re
import select
import socket
import ssl
from time import monotonic, perf_counter

import numpy as np

from ..errors import PeerConnectionError, PeerGoneError, RefusedError
from .channel import Channel
from .frame import (
    HEADER_SIZE,
    Header,
    Kind,
    check_number,
    check_size,
    pack_error,
    pack_header,
    parse_error,
    parse_header,
)
from .role import Role

# Frames up to this size are joined with their header into one write (and one TLS record).
_JOIN = 1 << 16
_CHUNK = 1 << 16
_RECORD = 1 << 14  # bytes of the largest TLS record
# What the other side may have in flight while we write; beyond it we let TCP push back. Matrices and their
# products pass each other in messages of this size. Before a session begins there is no more than a hello.
_MAX_EARLY = 1 << 27
HANDSHAKE_EARLY = 1 << 16
# Seconds that an abort waits for the other side to notice.
_LINGER = 1.0
_ASKS_FOR_CERTIFICATE = re.compile("ALERT.*(CERTIFICATE|UNKNOWN_CA)")
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class SocketChannel(Channel):
    """One end of a TCP connection.

    `timeout`: seconds the other side may stay silent while we wait for it, None for no limit. A host that
    vanished is noticed by TCP keepalive within about a minute. `deadline`: a moment of `time.monotonic` after
    which no wait goes on, however often a byte arrives; None for no such moment. `most_early`: bytes that are
    taken in while we write; a server sets it to HANDSHAKE_EARLY, `establish` back.
    """

    def __init__(self, role: Role, sock: socket.socket, timeout: float | None = None) -> None:
        super().__init__(role)
        sock.setblocking(False)
        _tune(sock)
        self.timeout = timeout
        self.deadline: float | None = None
        self.most_early = _MAX_EARLY
        self._sock = sock
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        self._early = bytearray()
        self._buffer = memoryview(bytearray(_CHUNK))
        self._start = self._end = 0
        self._flowing = False
        self._frames_out = self._frames_in = 0  # data frames, by which the next ones are numbered
        self._closed = False
        self._eof = False

    def establish(self, agreed: bytes) -> None:
        super().establish(agreed)
        self.most_early = _MAX_EARLY

    def wait(self, timeout: float) -> bool:
        # A descriptor that another thread has closed may be another connection's by now.
        if self._closed or self._eof or self._start < self._end or self._early:
            return True
        if self._pending():
            return True
        try:
            return bool(self._readable.poll(timeout * 1000))
        except ValueError:  # closed by another thread: receiving says so
            return True

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._sock.close()

    def abort(self, error: BaseException) -> None:
        if self._closed:
            return
        payload = pack_error(error)
        try:
            # Best effort: into the kernel's buffer or not at all. What the other side still sends is read and
            # dropped for a moment, because closing over unread bytes resets the connection and destroys the
            # error frame.
            self._sock.send(pack_header(Kind.ERROR, len(payload)) + payload)
            self._sock.shutdown(socket.SHUT_WR)
            deadline = perf_counter() + _LINGER
            while (left := deadline - perf_counter()) > 0 and self._readable.poll(left * 1000):
                if not socket.socket.recv(self._sock, _CHUNK):
                    break
        except (OSError, ValueError):
            pass
        self.close()

    def _write(self, payload: memoryview) -> None:
        header = pack_header(Kind.DATA, len(payload), self._frames_out)
        self._frames_out += 1
        if len(payload) <= _JOIN:
            self._write_all(memoryview(header + payload))
        else:
            self._write_all(memoryview(header + payload[:_JOIN]))
            self._write_all(payload[_JOIN:])

    def _write_all(self, data: memoryview) -> None:
        while data:
            try:
                data = data[self._sock.send(data) :]
            except _WOULD_BLOCK:
                self._wait_writable()
            except (OSError, ValueError) as error:
                raise self._gone(error) from None

    def _wait_writable(self) -> None:
        """Wait until the socket takes more; meanwhile move what arrives into `_early`."""
        start = perf_counter()
        full = len(self._early) >= self.most_early
        poller = select.poll()
        try:
            poller.register(self._sock, select.POLLOUT if full else select.POLLOUT | select.POLLIN)
            ready = self._polled(poller)
        except ValueError as error:
            raise self._gone(error) from None
        if not ready:
            raise self._silent()
        if not full:
            self._take_early()
        self.ledger.waited(perf_counter() - start)

    def _take_early(self) -> None:
        while len(self._early) < self.most_early:
            try:
                data = self._sock.recv(_CHUNK)
            except _WOULD_BLOCK:
                return
            except OSError as error:
                raise self._gone(error) from None
            if not data:
                # The other side is done sending; what it sent (perhaps its reason) is read before the write
                # fails.
                self._eof = True
                raise self._gone(None)
            self._early += data

    def _read(self, minimum: int, maximum: int) -> memoryview:
        raw = self._take(HEADER_SIZE)
        # Nearly always there is one right header, and this is it.
        if minimum == maximum and raw == pack_header(Kind.DATA, maximum, self._frames_in):
            self._frames_in += 1
            return self._take(maximum)
        header = parse_header(raw)
        if header.kind == Kind.ERROR:
            raise parse_error(self._take(header.length))
        check_number(header.number, self._frames_in)
        check_size(header.length, minimum, maximum)
        self._frames_in += 1
        return self._take(header.length)

    def _take(self, size: int) -> memoryview:
        """Exactly `size` bytes, in memory of their own."""
        start = self._start
        if self._end - start >= size:
            self._start = start + size
            return memoryview(bytearray(self._buffer[start : self._start]))
        out = np.empty(size, np.uint8).data if size else memoryview(bytearray())
        done = self._from_buffers(out)
        while done < size:
            if size - done >= _CHUNK:
                done += self._read_some(out[done:])
            else:
                # Read ahead through the buffer: a header and a small payload arrive in one call.
                self._start, self._end = 0, self._read_some(self._buffer)
                done += self._from_buffers(out[done:])
        return out

    def _from_buffers(self, out: memoryview) -> int:
        """Fill `out` from what has been read already: first the read-ahead buffer, then early arrivals."""
        done = min(len(out), self._end - self._start)
        out[:done] = self._buffer[self._start : self._start + done]
        self._start += done
        if self._early and done < len(out):
            more = min(len(out) - done, len(self._early))
            out[done : done + more] = self._early[:more]
            del self._early[:more]
            done += more
        return done

    def _read_some(self, out: memoryview) -> int:
        """Wait for at least one byte and read what is there, at most len(out)."""
        # TLS may hold decrypted bytes that poll cannot see; trying before asking costs an exception. Behind a
        # whole record there are mostly others.
        ready = self._flowing or self._pending()
        while True:
            if not ready:
                self._wait_readable()
            try:
                n = 0 if self._eof else self._sock.recv_into(out)
            except _WOULD_BLOCK:
                ready = False
                continue
            except (OSError, ValueError) as error:
                raise self._gone(error) from None
            if n == 0:
                self._eof = True
                raise self._gone(None)
            self._flowing = n >= _RECORD
            return n

    def _pending(self) -> bool:
        """Whether TLS holds bytes; whatever is wrong with the socket is found by reading."""
        if not isinstance(self._sock, ssl.SSLSocket):
            return False
        try:
            return self._sock.pending() > 0
        except (OSError, ValueError):
            return True

    def _wait_readable(self) -> None:
        start = perf_counter()
        if self._eof:
            return
        try:
            ready = self._polled(self._readable)
        except ValueError as error:
            raise self._gone(error) from None
        self.ledger.waited(perf_counter() - start)
        if not ready:
            raise self._silent()

    def _polled(self, poller: select.poll) -> bool:
        """Wait, without a turn on the processor, for as long as the bounds allow. ValueError once closed."""
        if self._closed:
            raise ValueError("closed")
        if self.turn is not None:
            self.turn.pause()
        try:
            return bool(poller.poll(self._milliseconds()))
        finally:
            if self.turn is not None:
                self.turn.resume()

    def _milliseconds(self) -> float | None:
        if self.timeout is None and self.deadline is None:
            return None
        bounds = [] if self.timeout is None else [self.timeout]
        if self.deadline is not None:
            bounds.append(max(0.0, self.deadline - monotonic()))
        return min(bounds) * 1000 if bounds else None

    def _silent(self) -> PeerGoneError:
        if self.deadline is not None and monotonic() >= self.deadline:
            return PeerGoneError("the other side was too slow to begin a session; try again")
        return PeerGoneError(
            f"the other side sent nothing for {self.timeout:g} seconds; try again with a new session"
        )

    def _gone(self, error: Exception | None) -> Exception:
        """What to raise when the connection broke: the other side's own reason, if one has arrived."""
        if self._closed:
            return PeerGoneError("this connection was closed on this side; open a new session")
        reason = self._last_words()
        if reason is not None:
            return reason
        if isinstance(error, ssl.SSLError) and _ASKS_FOR_CERTIFICATE.search(error.reason or ""):
            return RefusedError(
                "the server wants a client certificate that it knows; make one with"
                " `sottovoce keys gen client NAME`, have its operator add it, and give it with"
                " --client-certificate"
            )
        if isinstance(error, ssl.SSLError):
            return PeerConnectionError(
                f"TLS with the other side failed ({error.reason or 'broken connection'})"
            )
        return PeerGoneError(
            "the other side closed the connection in the middle of the protocol; start a new session"
        )

    def _last_words(self) -> Exception | None:
        """An error frame at the end of what was received, where nothing else is left unread before it."""
        rest = bytes(self._buffer[self._start : self._end]) + bytes(self._early)
        try:
            while len(rest) < HEADER_SIZE + (1 << 12) and not self._eof:
                data = self._sock.recv(_CHUNK)
                if not data:
                    break
                rest += data
        except (OSError, ValueError):
            pass
        return _find_error(rest)


def _find_error(raw: bytes) -> Exception | None:
    """The error frame among complete frames, if the stream ends with one."""
    while len(raw) >= HEADER_SIZE:
        try:
            header: Header = parse_header(raw[:HEADER_SIZE])
        except Exception:  # noqa: BLE001  (a torn stream has no reason to give)
            return None
        body = raw[HEADER_SIZE : HEADER_SIZE + header.length]
        if header.kind == Kind.ERROR and len(body) == header.length:
            return parse_error(body)
        raw = raw[HEADER_SIZE + header.length :]
    return None


def _tune(sock: socket.socket) -> None:
    """Small frames leave at once, and a vanished host is noticed."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def socket_pair() -> tuple[SocketChannel, SocketChannel]:
    """(client end, server end) over a TCP connection on the loopback interface, without TLS: for tests."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return SocketChannel(Role.CLIENT, near), SocketChannel(Role.SERVER, far)
