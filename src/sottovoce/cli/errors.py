"""From an exception to one clear line and an exit code."""

import errno
import os
import sys
from collections.abc import Callable

import click

from ..errors import SottovoceError
from .terminal import harmless

INTERRUPTED = 130
_EXTRAS = {
    "starlette": "proxy",
    "uvicorn": "proxy",
    "ray": "ray",
    "keyring": "keyring",
    "huggingface_hub": "hub",
    "matplotlib": "plot",
    "array_api_compat": "scx",
}
_ELSEWHERE = "or set SOTTOVOCE_CONFIG_DIR to a directory of yours if it is sottovoce's own"
_PERMISSIONS = f"check its permissions, {_ELSEWHERE}"
_ROOM = "make room there, or set SOTTOVOCE_CONFIG_DIR to a directory on another disk"
_NAME = "check the name"
_WHAT_TO_DO = {
    errno.EACCES: _PERMISSIONS,
    errno.EPERM: _PERMISSIONS,
    errno.EROFS: f"it cannot be written there; choose another place, {_ELSEWHERE}",
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.ENOENT: _NAME,
    errno.ENOTDIR: _NAME,
    errno.EISDIR: _NAME,
    errno.EEXIST: _NAME,
    errno.ENAMETOOLONG: _NAME,
    errno.ELOOP: _NAME,
    errno.EMFILE: "this process has too many files open; raise `ulimit -n`",
    errno.ENFILE: "the system has too many files open",
    errno.EIO: "the disk has a fault",
}


def run_guarded(command: Callable[[], object]) -> int:
    """Run a command; print its error, if any, as one line on stderr; return the exit code."""
    try:
        result = command()
        return result if isinstance(result, int) else 0
    except SottovoceError as error:
        fail(str(error))
        return error.exit_code
    except click.exceptions.Abort:
        return INTERRUPTED
    except click.UsageError as error:
        error.show(sys.stderr)
        return 2
    except click.ClickException as error:
        fail(error.format_message())
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout left (`| head`): nothing more to say, and nothing to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        fail("out of memory; close other programs or use a smaller model")
        return 1
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in ("", "sottovoce"):
            return _bug(error)
        extra = _EXTRAS.get(package)
        how = package if extra is None else f"'sottovoce[{extra}]'"
        fail(f"this needs the Python package {package}, which is not installed: pip install {how}")
        return 2
    except OSError as error:
        if error.errno not in _WHAT_TO_DO or os.environ.get("SOTTOVOCE_DEBUG"):
            return _bug(error)
        fail(_of_the_system(error))
        return 2
    except Exception as error:  # noqa: BLE001  (a bug: say where, and how to see more)
        return _bug(error)


def _bug(error: Exception) -> int:
    if os.environ.get("SOTTOVOCE_DEBUG"):
        raise error
    fail(f"internal error, {describe(error)}; this is a bug, SOTTOVOCE_DEBUG=1 shows the traceback")
    return 1


def _of_the_system(error: OSError) -> str:
    """A file that the system refuses: which, why, and what helps. Names of files only, no content."""
    assert error.errno is not None
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    why = (error.strerror or os.strerror(error.errno)).lower()
    return f"{where}{why}; {_WHAT_TO_DO[error.errno]}"


def describe(error: BaseException) -> str:
    """Kind of exception and the innermost place in our package.

    Not its text, which may quote private data.
    """
    place, trace = "unknown place", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if "sottovoce/" in name:
            place = f"{name.rsplit('sottovoce/', 1)[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__} in {place}"


def fail(message: str) -> None:
    """One line on stderr."""
    print("error: " + harmless(" ".join(message.split())), file=sys.stderr)
