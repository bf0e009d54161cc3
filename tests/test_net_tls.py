"""TLS 1.3, and the pin on first use."""

import contextlib
import socket
import ssl
from datetime import UTC, datetime, timedelta
from threading import Thread

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from sottovoce.errors import CertificateChangedError, CorruptFileError, PeerConnectionError
from sottovoce.net import Role, SocketChannel, run_pair
from sottovoce.net.tls import (
    Certificate,
    KnownHosts,
    client_fingerprint,
    fingerprint,
    wrap_client,
    wrap_server,
    write_private_file,
)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return Certificate(tmp_path_factory.mktemp("server"))


def tls_pair(certificate, pin, host="127.0.0.1"):
    """(client channel, server channel, first use)"""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    wrapped = []
    thread = Thread(target=lambda: wrapped.append(wrap_server(far, certificate.context())))
    thread.start()
    tls, seen, first = wrap_client(near, host, 7443, pin)
    thread.join()
    assert seen == certificate.fingerprint and tls.version() == "TLSv1.3"
    return SocketChannel(Role.CLIENT, tls), SocketChannel(Role.SERVER, wrapped[0]), first


def test_traffic_and_large_exchange(certificate, tmp_path):
    client, server, first = tls_pair(certificate, KnownHosts(tmp_path / "known_hosts"))
    assert first

    def party(ch):
        assert bytes(ch.exchange(bytes([ch.role]) * 3, 3)) == bytes([1 - ch.role]) * 3
        return sum(len(ch.exchange(bytes(size), size)) for size in (1, 16384, 65536, 65537, 20_000_000))

    got, other = run_pair(party, party, (client, server))
    assert got == other
    client.close()


def test_pin_is_kept_and_enforced(certificate, tmp_path):
    pins = KnownHosts(tmp_path / "config" / "known_hosts")
    assert tls_pair(certificate, pins)[2]
    assert not tls_pair(certificate, pins)[2]
    assert pins.path.stat().st_mode & 0o777 == 0o600
    assert pins.path.parent.stat().st_mode & 0o777 == 0o700
    other = Certificate(tmp_path / "other")
    with pytest.raises(CertificateChangedError, match="not the one pinned"):
        tls_pair(other, pins)


def test_many_first_uses_at_once(tmp_path):
    """Every client keeps its line, whoever writes at the same time; no reader ever sees half a file."""
    path, hosts = tmp_path / "known_hosts", range(40)
    firsts = []

    def use(host):
        firsts.append((KnownHosts(path).check(f"h{host % 20}", 1, "sha256:00"), host % 20))

    threads = [Thread(target=use, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(host for first, host in firsts if first) == list(range(20))
    assert len(path.read_text().splitlines()) == 20 and path.stat().st_mode & 0o777 == 0o600
    assert {entry.name for entry in tmp_path.iterdir()} == {"known_hosts", ".known_hosts.lock"}


def test_a_file_that_cannot_be_replaced_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        write_private_file(tmp_path / "taken", b"x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


def test_given_fingerprint(certificate):
    tls_pair(certificate, certificate.fingerprint)
    with pytest.raises(CertificateChangedError, match="asked for"):
        tls_pair(certificate, "sha256:" + "0" * 64)


def test_key_is_private_and_kept(certificate):
    assert certificate.key_path.stat().st_mode & 0o777 == 0o600
    assert Certificate(certificate.key_path.parent).fingerprint == certificate.fingerprint


def test_older_tls_is_refused(certificate):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    failures = []

    def serve():
        try:
            wrap_server(far, certificate.context())
        except PeerConnectionError as error:
            failures.append(error)

    thread = Thread(target=serve)
    thread.start()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        context.wrap_socket(near)
    thread.join()
    assert failures


def test_server_without_tls_gives_a_clear_error():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    far.sendall(b"hello, this is not TLS at all\n")
    with pytest.raises(PeerConnectionError, match="TLS handshake"):
        wrap_client(near, "localhost", 1, "sha256:00")
    far.close()


def test_damaged_files(tmp_path):
    path = tmp_path / "known_hosts"
    path.write_text("# comment\n\nonly-one-field\n")
    with pytest.raises(CorruptFileError, match="line 3"):
        KnownHosts(path).lookup("h", 1)
    Certificate(tmp_path)
    (tmp_path / "server-key.pem").write_text("nonsense")
    with pytest.raises(CorruptFileError, match="delete both files"):
        Certificate(tmp_path).context()


def test_a_clients_certificate_makes_no_others(certificate, tmp_path):
    """One that says it is an authority, as openssl makes them: who has it is one client, not as many as he
    likes, each with a quota of its own."""
    key, root = issued("client")
    (tmp_path / "known.crt").write_bytes(root.public_bytes(Encoding.PEM))
    context = certificate.context(tmp_path / "known.crt")
    assert seen_by_server(context, tmp_path, key, root) == fingerprint(root.public_bytes(Encoding.DER))
    other, minted = issued("another", root, key)
    with pytest.raises(PeerConnectionError, match="none of the clients"):
        seen_by_server(context, tmp_path, other, minted, root)


def issued(name, issuer=None, key_of_issuer=None):
    """A key and its certificate, which may sign others."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    return key, (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .sign(key_of_issuer or key, hashes.SHA256())
    )


def seen_by_server(context, directory, key, *chain):
    """The fingerprint that the server has of a client with this key and certificate."""
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / "client.pem").write_bytes(pem + b"".join(c.public_bytes(Encoding.PEM) for c in chain))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, own = listener.getsockname()[1], directory / "client.pem"

        def connect():
            raw = socket.create_connection(("127.0.0.1", port))
            with contextlib.suppress(PeerConnectionError, OSError):
                wrap_client(raw, "127.0.0.1", port, KnownHosts(directory / "hosts"), certificate=own)[
                    0
                ].close()

        thread = Thread(target=connect)
        thread.start()
        try:
            with wrap_server(listener.accept()[0], context) as tls:
                return client_fingerprint(tls)
        finally:
            thread.join()
