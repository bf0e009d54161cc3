"""A server in a process of its own, for commands that need both parties on one machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ..errors import PeerConnectionError
from ..net.tls import KnownHosts

_STOP = 40.0


class ServerProcess:
    """`sottovoce serve` on a free port, with its own configuration directory, stopped on exit."""

    def __init__(
        self,
        directory: Path,
        model: str,
        engine: str,
        kv: str,
        console: Any,
        arithmetic: str = "float",
        start_timeout: float = 300.0,
    ) -> None:
        self._directory = directory
        self._engine = engine
        self._ready, self._log = directory / "ready.json", directory / "server.log"
        self._received, self._report = directory / "received.jsonl", directory / "report.jsonl"
        command = [sys.executable, "-m", "sottovoce", "serve", model, "--engine", engine, "--kv", kv]
        command += ["--arithmetic", arithmetic, "--host", "127.0.0.1", "--port", "0", "--stop-with-parent"]
        command += ["--ready-file", str(self._ready), "--report-file", str(self._report)]
        command += ["--record-received", str(self._received)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SOTTOVOCE_") or k in _KEPT}
        environment["SOTTOVOCE_CONFIG_DIR"] = str(directory / "server-config")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        try:
            self._wait_ready(console, start_timeout)
        except BaseException:
            self.kill()
            raise

    def connect(self, pools: bool = False) -> Any:
        """A client that has shaken hands, pinned in the temporary directory; with a pool there if asked."""
        from ..parties import Address, Client, Pools, Wish

        info = json.loads(self._ready.read_text())
        return Client.connect(
            Address(info["host"], info["port"]),
            Wish(self._engine),
            KnownHosts(self._directory / "known_hosts"),
            pools=Pools(self._directory / "pools", make=True) if pools else None,
        )

    def received(self) -> list[dict[str, Any]]:
        """Every frame the server received: size and first bytes."""
        return _lines(self._received)

    def report(self) -> dict[str, Any]:
        """The server's own report about the last session."""
        reports = _lines(self._report)
        return reports[-1] if reports else {}

    def stop(self) -> None:
        """SIGTERM, and wait: afterwards the reports are complete."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _wait_ready(self, console: Any, timeout: float) -> None:
        start, shown = time.monotonic(), 0
        while not self._ready.exists():
            shown = self._relay(console, shown)
            if self._process.poll() is not None:
                raise _relayed(self._log.read_text(errors="replace"), self._process.returncode)
            if time.monotonic() - start > timeout:
                raise PeerConnectionError(
                    f"the server was not ready after {timeout:g} seconds; see {self._log}"
                )
            time.sleep(0.05)
        self._relay(console, shown)
        console.note(f"the server is process {self._process.pid}, you are process {os.getpid()}")

    def _relay(self, console: Any, shown: int) -> int:
        """Show complete lines of the server's log from position `shown` on; returns the new position."""
        text = self._log.read_bytes()[shown:]
        end = text.rfind(b"\n") + 1
        for line in text[:end].decode(errors="replace").splitlines():
            if not line.startswith("error: "):
                console.note(f"  server: {line}")
        return shown + end


# What a server started by us still takes from the environment.
_KEPT = ("SOTTOVOCE_STORIES260K", "SOTTOVOCE_THREADS", "SOTTOVOCE_ISA", "SOTTOVOCE_CACHE")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _relayed(log: str, code: int) -> Exception:
    """The server's own error line, with an error class of the same exit code."""
    from .. import errors

    last = next((line for line in reversed(log.splitlines()) if line.strip()), "it printed nothing")
    message = last.removeprefix("error: ")
    for cls in (errors.UsageError, errors.PeerConnectionError, errors.RefusedError, errors.ProtocolError):
        if cls.exit_code == code:
            return cls(message)
    return errors.SottovoceError(f"the server could not start: {message}")
