"""Kill one party in the middle of an answer, start it again, ask again: the same tokens?

    python tools/kill_and_resume.py smollm2-135m --kv masked --times 3

With the commands that users have, in directories of their own: `serve` in one process, `generate --session`
in another, SIGKILL to either at a random moment after the prompt was sent, then the same commands once more.
Every line says what was killed, when, whether the client went on by itself or had to be started again, and
whether the answer is that of a session without a kill. Exit code 1 if one is not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = [sys.executable, "-m", "sottovoce"]
PATIENCE = 900.0
PROMPT = "Name three rivers in Europe."


def environment(directory: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SOTTOVOCE_")}
    return kept | {"SOTTOVOCE_CONFIG_DIR": str(directory), "NO_COLOR": "1"}


def wait_for(process: subprocess.Popen[str], word: str) -> str:
    """The line of stderr with this word; what follows stays in the pipe, which holds an answer's notes."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        if word in line:
            return line
        seen.append(line)
    raise SystemExit(f"{' '.join(process.args[3:])} ended with {process.wait()}:\n{''.join(seen)}")  # type: ignore[index]


class Server:
    """`sottovoce serve`, on the same port whenever it is started."""

    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        self.options, self.directory, self.port = options, directory, 0
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [*COMMAND, "serve", self.options.model, "--kv", self.options.kv, "--port", str(self.port)]
        self.process = subprocess.Popen(
            command, env=environment(self.directory), stderr=subprocess.PIPE, text=True
        )
        self.port = int(wait_for(self.process, "listening on").rsplit(":", 1)[1])

    def kill(self, sign: int = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(sign)
        self.process.wait(60)
        assert self.process.stderr is not None
        self.process.stderr.close()


class Asker:
    """`sottovoce generate --session NAME`."""

    def __init__(self, options: argparse.Namespace, directory: Path, port: int, name: str) -> None:
        command = [*COMMAND, "generate", f"127.0.0.1:{port}", options.prompt]
        self.process = subprocess.Popen(
            [*command, "-n", str(options.tokens), "--session", name, "--json"],
            env=environment(directory),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def asked(self) -> None:
        """Wait until the prompt is on its way."""
        wait_for(self.process, "private:")

    def answer(self) -> tuple[list[int] | None, str]:
        """Its tokens, or None and why there are none."""
        out, err = self.process.communicate(timeout=PATIENCE)
        return (None if self.process.returncode else json.loads(out)["token_ids"]), err


def run(options: argparse.Namespace, directory: Path) -> int:
    client, rng, wrong = directory / "client", random.Random(options.seed), 0
    server = Server(options, directory / "server")
    server.start()
    try:
        if options.prepare:
            command = [
                *COMMAND,
                "prepare",
                f"127.0.0.1:{server.port}",
                "--tokens",
                str(options.prepare),
                "-q",
            ]
            subprocess.run(command, env=environment(client), check=True)
        for name in ("first", "undisturbed"):  # the first one also fetches what a client keeps for all
            undisturbed = Asker(options, client, server.port, name)
            undisturbed.asked()
            start = time.monotonic()
            expected, err = undisturbed.answer()
            whole = time.monotonic() - start
            if expected is None:
                raise SystemExit(err)
        print(f"undisturbed: {len(expected)} tokens in {whole:.1f} s", flush=True)
        for i in range(2 * options.times):
            victim, name = ("client", "server")[i % 2], f"trial{i}"
            moment = rng.uniform(0.05, 0.9) * whole
            asker = Asker(options, client, server.port, name)
            asker.asked()
            time.sleep(moment)
            finished = asker.process.poll() is not None
            if victim == "client":
                asker.process.kill()
                asker.process.communicate()
                tokens, how = None, "started again"
            else:
                server.kill()
                server.start()
                tokens, err = asker.answer()
                how = "went on by itself" if tokens is not None else "started again"
            if tokens is None:
                tokens, err = Asker(options, client, server.port, name).answer()
            same = tokens == expected
            wrong += not same
            late = ", which had ended" if finished else ""
            print(
                f"{victim} killed after {moment:.1f} s{late}; the client {how}: "
                + ("the same tokens" if same else f"OTHER: {tokens}\n{err}"),
                flush=True,
            )
    finally:
        server.kill(signal.SIGTERM)
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a name or a path, as for `sottovoce serve`")
    parser.add_argument("--kv", default="masked", choices=["masked", "ciphertext"])
    parser.add_argument("--times", type=int, default=3, help="kills of each party")
    parser.add_argument("--tokens", type=int, default=8, help="of an answer")
    parser.add_argument("--prepare", type=int, default=0, help="tokens to prepare before")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--seed", type=int, default=None, help="the same moments again")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # the server ends with us
    with tempfile.TemporaryDirectory(prefix="sottovoce-kill-") as directory:
        return run(options, Path(directory))


if __name__ == "__main__":
    sys.exit(main())
