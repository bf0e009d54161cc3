"""TLS 1.3 between the parties: a self-signed certificate at the server, pinned by the client on first use.

There is no certificate authority in this trust model: the client remembers the fingerprint it met first (as
SSH does) or is given one, and refuses any other. A man in the middle on the very first connection is not
detected unless the fingerprint that `serve` prints is compared or passed to the client.
"""

import errno
import hashlib
import os
import re
import socket
import ssl
import tempfile
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ..errors import CertificateChangedError, CorruptFileError, PeerConnectionError
from ..storage import locked

_VALID_FOR = timedelta(days=3650)
_PEM = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


class ServerContext(ssl.SSLContext):
    """The server's end. clients: certificates (DER) of those that may connect, None for everybody."""

    clients: frozenset[bytes] | None = None


class Certificate:
    """A server's key and self-signed certificate on disk: `server-key.pem` (0600) and `server-cert.pem`."""

    def __init__(self, directory: Path) -> None:
        self.key_path = directory / "server-key.pem"
        self.cert_path = directory / "server-cert.pem"
        if not (self.key_path.exists() and self.cert_path.exists()):
            make_private_directory(directory)
            self._create()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the DER certificate, as the client sees it."""
        return fingerprint(ssl.PEM_cert_to_DER_cert(self.cert_path.read_text()))

    def context(self, clients: Path | None = None) -> ServerContext:
        """For the server's end of connections. clients: a PEM file with the certificates of all clients that
        may connect; None lets everybody.
        """
        context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # No resumption: a ticket would be a second secret to guard, and a session is one connection.
        context.num_tickets = 0
        try:
            context.load_cert_chain(self.cert_path, self.key_path)
        except (ssl.SSLError, OSError) as error:
            raise CorruptFileError(
                f"the TLS key or certificate in {self.key_path.parent} cannot be read "
                f"({error.strerror or error}); delete both files to make new ones "
                "(clients will have to accept the new fingerprint)"
            ) from None
        if clients is not None:
            _trust_only(context, clients)
        return context

    def _create(self) -> None:
        key, certificate = self_signed("sottovoce")
        write_private_file(self.key_path, key)
        write_private_file(self.cert_path, certificate)


def _trust_only(context: ServerContext, clients: Path) -> None:
    context.verify_mode = ssl.CERT_REQUIRED
    # The certificates in the file are trusted themselves; there is no authority above them.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(clients)
        # Nor is one of them an authority: `openssl req -x509` makes certificates that could sign others.
        context.clients = frozenset(map(ssl.PEM_cert_to_DER_cert, _PEM.findall(clients.read_text())))
    except (ssl.SSLError, OSError, ValueError) as error:
        raise CorruptFileError(
            f"the clients' certificates in {clients} cannot be read "
            f"({getattr(error, 'strerror', None) or error}); "
            "put the .crt files that `sottovoce keys gen client NAME` makes into it, one after the other"
        ) from None


def self_signed(name: str) -> tuple[bytes, bytes]:
    """A fresh P-256 key and its certificate, both PEM, for ten years."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + _VALID_FOR)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem, certificate.public_bytes(serialization.Encoding.PEM)


class KnownHosts:
    """The fingerprints a client has accepted: one line "host:port fingerprint", file mode 0600.

    Several clients may use it at the same time: who adds a line holds a lock on `.<name>.lock` beside it, and
    the file is replaced as a whole. pins: whether what is met first is written down.
    """

    def __init__(self, path: Path, pins: bool = True) -> None:
        self.path, self._pins = path, pins

    def all(self) -> dict[str, str]:
        """host:port -> fingerprint."""
        return self._read()

    def forget(self, name: str) -> bool:
        """Remove the pin of host:port; whether there was one."""
        if name not in self._read():
            return False
        with self._locked():
            pins = self._read()
            pins.pop(name, None)
            self._write(pins)
        return True

    def lookup(self, host: str, port: int) -> str | None:
        return self._read().get(f"{host}:{port}")

    def check(self, host: str, port: int, seen: str) -> bool:
        """Pin `seen` on first use (returns True) or compare with the pin (returns False).

        Raises CertificateChangedError if the pin differs.
        """
        pinned = self.lookup(host, port)
        if pinned is None:
            if not self._pins:
                return True
            make_private_directory(self.path.parent)
            with self._locked():
                pins = self._read()
                pinned = pins.get(f"{host}:{port}")  # somebody else's first use, meanwhile
                if pinned is None:
                    self._write({**pins, f"{host}:{port}": seen})
                    return True
        if pinned != seen:
            raise CertificateChangedError(
                f"the certificate of {host}:{port} is not the one pinned on first use "
                f"(pinned {pinned}, seen {seen}); if you know that the server has "
                f"a new one, `sottovoce keys rm host {host}:{port}` forgets the old one (in {self.path}); "
                "otherwise somebody may be listening in"
            )
        return False

    def _locked(self) -> AbstractContextManager[None]:
        lock = self.path.with_name(f".{self.path.name}.lock")
        return locked(os.open(lock, os.O_RDWR | os.O_CREAT, 0o600))

    def _write(self, pins: dict[str, str]) -> None:
        lines = [f"{name} {pin}\n" for name, pin in sorted(pins.items())]
        write_private_file(self.path, "".join(lines).encode())

    def _read(self) -> dict[str, str]:
        try:
            lines = self.path.read_text().splitlines()
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            raise CorruptFileError(f"{self.path} cannot be read ({error}); fix or remove it") from None
        pins = {}
        for number, line in enumerate(lines, 1):
            fields = line.split()
            if not fields or line.startswith("#"):
                continue
            if len(fields) != 2:
                raise CorruptFileError(
                    f"{self.path}, line {number}: expected 'host:port fingerprint'; fix the line"
                )
            pins[fields[0]] = fields[1]
        return pins


def wrap_server(sock: socket.socket, context: ssl.SSLContext, timeout: float = 10.0) -> ssl.SSLSocket:
    """The server's side of the TLS handshake."""
    sock.settimeout(timeout)
    try:
        tls = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        try:
            tls.do_handshake()
            known = context.clients if isinstance(context, ServerContext) else None
            if known is not None and tls.getpeercert(binary_form=True) not in known:
                raise ValueError("a certificate that is none of the clients'")
        except (OSError, ValueError):
            _part(tls)
            raise
        return tls
    except (OSError, ValueError) as error:
        sock.close()
        raise PeerConnectionError(f"a connection failed its TLS handshake ({_why(error)})") from None


def _part(tls: ssl.SSLSocket) -> None:
    """Close so that the alert which says why arrives: closing over unread bytes would destroy it."""
    try:
        with socket.socket(fileno=os.dup(tls.fileno())) as raw:
            raw.settimeout(1.0)
            raw.shutdown(socket.SHUT_WR)
            for _ in range(16):
                if not raw.recv(1 << 16):
                    break
    except OSError:
        pass
    tls.close()


def wrap_client(
    sock: socket.socket,
    host: str,
    port: int,
    pin: KnownHosts | str,
    timeout: float = 10.0,
    certificate: Path | None = None,
) -> tuple[ssl.SSLSocket, str, bool]:
    """The client's side: handshake, then check the fingerprint before a byte of the protocol is sent.

    `pin`: a file of known hosts, or the fingerprint to insist on. certificate: the client's own, with its
    key, for a server that asks for one. Returns (socket, fingerprint, first use).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Trust comes from the pin below, not from names and authorities.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if certificate is not None:
        _load_chain(context, certificate)
    sock.settimeout(timeout)
    try:
        tls = context.wrap_socket(sock)
    except (OSError, ValueError) as error:
        sock.close()
        raise PeerConnectionError(
            f"{host}:{port} does not complete a TLS handshake ({_why(error)}); "
            "check that a sottovoce server listens there, with TLS"
        ) from None
    try:
        seen = fingerprint(tls.getpeercert(binary_form=True) or b"")
        if isinstance(pin, KnownHosts):
            return tls, seen, pin.check(host, port, seen)
        if pin != seen:
            raise CertificateChangedError(
                f"the certificate of {host}:{port} has fingerprint {seen}, not the {pin} that was asked for; "
                "compare with the line that `sottovoce serve` prints"
            )
    except BaseException:
        tls.close()
        raise
    return tls, seen, False


def client_fingerprint(sock: socket.socket) -> str | None:
    """Of the certificate that a client showed to a server that asked for one."""
    der = sock.getpeercert(binary_form=True) if isinstance(sock, ssl.SSLSocket) else None
    return None if der is None else fingerprint(der)


def _load_chain(context: ssl.SSLContext, certificate: Path) -> None:
    try:
        context.load_cert_chain(certificate)
    except (ssl.SSLError, OSError) as error:
        raise CorruptFileError(
            f"the client certificate {certificate} cannot be read ({error.strerror or error}); "
            "`sottovoce keys gen client NAME` makes one"
        ) from None


def fingerprint(der: bytes) -> str:
    """`sha256:` and 64 hexadecimal digits."""
    return "sha256:" + hashlib.sha256(der).hexdigest()


def make_private_directory(path: Path) -> None:
    """Made with what is missing above it; nobody else can look into any of these."""
    for missing in [above for above in (path, *path.parents) if not above.exists()][::-1]:
        missing.mkdir(mode=0o700, exist_ok=True)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))


def write_private_file(path: Path, data: bytes) -> None:
    """Replace a file atomically; nobody else can read it at any moment (mode 0600)."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _why(error: Exception) -> str:
    return (
        str(
            getattr(error, "verify_message", None)
            or getattr(error, "reason", None)
            or getattr(error, "strerror", None)
            or error
        )
        .lower()
        .replace("_", " ")
    )
