"""`sottovoce keys`: what servers and clients know each other by. Keys of sessions are no concern of it."""

import json
import os
import re
import secrets
from pathlib import Path
from typing import Any

import click

from .options import json_option, option

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_file_option = option(
    "--file",
    type=click.Path(dir_okay=False),
    envvar="SOTTOVOCE_KEYS_FILE",
    help="The server's --api-key-file.",
)


@click.group()
def keys() -> None:
    """API keys, client certificates, the server's certificate, pinned servers."""


@keys.command("gen")
@click.argument("kind", type=click.Choice(["api", "client"]))
@click.argument("name")
@_file_option
def gen(kind: str, name: str, file: str | None) -> None:
    """Make an API key or a client certificate called NAME.

    api: prints the key, once, and adds its hash to --file. client: writes NAME.pem for the client, and
    NAME.crt for the server's --client-certificates.
    """
    from ..errors import UsageError

    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name: 1 to 64 letters, digits, dots, dashes")
    if kind == "api":
        _new_api_key(name, file)
    else:
        _new_certificate(name)


def _new_api_key(name: str, file: str | None) -> None:
    from ..errors import UsageError
    from ..parties.admission import hash_key

    key = "sv-" + secrets.token_urlsafe(32)
    line = f"{name} sha256:{hash_key(key).hex()}\n"
    if file is None:
        click.echo(f"for the server's --api-key-file: {line}", err=True, nl=False)
    else:
        if name in _names(Path(file)):
            raise UsageError(f"{file} has a key called {name} already; remove it first")
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a") as lines:
            lines.write(line)
    print(key)


def _new_certificate(name: str) -> None:
    from ..errors import UsageError
    from ..net.tls import make_private_directory, self_signed, write_private_file

    private, public = (_clients() / f"{name}.{suffix}" for suffix in ("pem", "crt"))
    if private.exists():
        raise UsageError(f"there is a client certificate called {name} already; remove it first")
    make_private_directory(private.parent)
    key, certificate = self_signed(name)
    write_private_file(private, key + certificate)
    write_private_file(public, certificate)
    print(f"{private}  give it with --client-certificate\n{public}  for the server's operator")


@keys.command("ls")
@_file_option
@json_option
def ls(file: str | None, as_json: bool) -> None:
    """List certificates and pins, and the API keys of --file. Never a secret."""
    rows = _listed(file)
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['kind']:8} {row['name']:24} {row['shows']}")


def _listed(file: str | None) -> list[dict[str, str]]:
    from ..net.tls import Certificate, KnownHosts
    from ..parties.paths import known_hosts_path, server_key_dir, sessions_dir
    from ..parties.vault import guard_of

    rows: list[dict[str, Any]] = []
    if (server_key_dir() / "server-cert.pem").exists():
        shows = Certificate(server_key_dir()).fingerprint
        rows.append({"kind": "server", "name": "certificate", "shows": shows})
    for path in sorted(_clients().glob("*.pem")):
        rows.append({"kind": "client", "name": path.stem, "shows": str(path)})
    for host, fingerprint in sorted(KnownHosts(known_hosts_path()).all().items()):
        rows.append({"kind": "host", "name": host, "shows": fingerprint})
    guard = guard_of(sessions_dir())
    if guard is not None:
        rows.append({"kind": "sessions", "name": "vault", "shows": f"protected by: {guard}"})
    if file is not None:
        rows += [{"kind": "api", "name": name, "shows": file} for name in _names(Path(file))]
    return rows


@keys.command("rm")
@click.argument("kind", type=click.Choice(["api", "client", "host", "server"]))
@click.argument("name")
@_file_option
def rm(kind: str, name: str, file: str | None) -> None:
    """Remove the API key NAME from --file, a client certificate, the pin of a host:port, or the server's
    certificate (NAME certificate): the next start makes another one, which clients must accept.
    """
    from ..errors import UsageError
    from ..net.tls import KnownHosts
    from ..parties.paths import known_hosts_path, server_key_dir

    if kind == "host":
        found = KnownHosts(known_hosts_path()).forget(name)
    elif kind == "client":
        found = (
            _deleted(_clients() / f"{name}.pem", _clients() / f"{name}.crt")
            if _NAME.fullmatch(name)
            else False
        )
    elif kind == "server":
        files = [server_key_dir() / f"server-{part}.pem" for part in ("key", "cert")]
        found = name == "certificate" and _deleted(*files)
    elif file is None:
        raise UsageError("keys rm api needs --file, the server's --api-key-file")
    else:
        found = _without(Path(file), name)
    if not found:
        raise UsageError(f"there is nothing called {name!r} of kind {kind}; `sottovoce keys ls` lists them")
    print(f"removed {kind} {name}")


def _deleted(*paths: Path) -> bool:
    found = paths[0].exists()
    for path in paths:
        path.unlink(missing_ok=True)
    return found


def _names(path: Path) -> list[str]:
    if not path.exists():
        return []
    return [line.split()[0] for line in path.read_text().splitlines() if line.strip() and line[0] != "#"]


def _without(path: Path, name: str) -> bool:
    from ..net.tls import write_private_file

    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.split()[:1] != [name]]
    if len(kept) < len(lines):
        # Whom the operator lets read it, such as the server's user. It holds hashes.
        mode = path.stat().st_mode & 0o777
        write_private_file(path, "".join(kept).encode())
        path.chmod(mode)
    return len(kept) < len(lines)


def _clients() -> Path:
    from ..parties.paths import config_dir

    return config_dir() / "clients"
