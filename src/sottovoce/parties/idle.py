"""Filling the pool while nobody needs the connection: between two answers, in a thread of its own."""

from threading import Event, Thread

from ..errors import PeerConnectionError, PoolFullError
from .client import Client

# Tokens by which the pool grows in a step: an answer that is asked for meanwhile waits for the step.
_STEP = 2


class IdleFiller:
    """`with IdleFiller(client, tokens):` around waiting for input keeps the pool ready for that many tokens.

    The connection belongs to the filler's thread inside, to the caller's outside; leaving waits for the step
    under way (about a second, a few for matrices). Without a pool it does nothing. A full pool ends the
    filling quietly; any other error is raised when the caller comes back.
    """

    def __init__(self, client: Client, tokens: int) -> None:
        self.client, self.tokens = client, tokens
        self._stop = Event()
        self._error: BaseException | None = None
        self._thread: Thread | None = None

    def __enter__(self) -> "IdleFiller":
        room = self.client.context_length - self.client.length
        wanted = min(self.tokens, room)
        if self.client.has_pool and wanted > 0:
            self._thread = Thread(target=self._fill, args=(wanted,), name="idle-filler", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def _fill(self, wanted: int) -> None:
        try:
            ready = self.client.ready(wanted)
            while ready < wanted and not self._stop.is_set():
                self.client.prepare_step(min(wanted, ready + _STEP))
                ready = self.client.ready(wanted)
        except PoolFullError:
            pass
        except PeerConnectionError as error:
            # A session that is kept comes back with its next step; nothing is lost but the filling.
            if not self.client.is_kept:
                self._error = error
        except BaseException as error:  # noqa: BLE001  (carried to the caller's thread)
            self._error = error
