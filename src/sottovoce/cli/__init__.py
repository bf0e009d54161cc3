"""The command line. Commands load their modules when they run, so that the first output comes at once."""

import os
import sys
from collections.abc import Sequence

from .errors import run_guarded


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: runs a command and ends the process with its exit code.

    Codes: 0 ok, 2 usage, 3 connection, 4 refused by policy, 5 protocol or integrity, 1 anything else, 130
    interrupted.
    """
    # OpenBLAS's threads spin for 25 ms after a product, on the core that the other party, or our own
    # kernels, would use. Read when NumPy is loaded, so set before anything else; child processes inherit it.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "14")
    from .root import cli

    code = run_guarded(
        lambda: cli.main(args=None if arguments is None else list(arguments), standalone_mode=False)
    )
    sys.stdout.flush()
    sys.stderr.flush()
    if code == 130:
        # Worker threads of native kernels may still run; nobody waits for them after Ctrl-C.
        os._exit(code)
    sys.exit(code)


__all__ = ["main"]
