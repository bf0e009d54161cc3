"""What an operator sees of a server: health, metrics, events; and whom it lets in."""

import contextlib
import http.client
import io
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from kept_sessions import Host, greedy_tokens
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.registry import make_engine
from sottovoce.errors import (
    CorruptFileError,
    PeerConnectionError,
    PeerGoneError,
    RefusedError,
    ServerBusyError,
    UsageError,
)
from sottovoce.net import socket_pair
from sottovoce.net.frame import Kind, pack_header
from sottovoce.net.tls import Certificate, self_signed
from sottovoce.parties import Address, Client, Server, Welcome, Wish
from sottovoce.parties.admission import Admission, ApiKeys
from sottovoce.parties.fair import FairGate
from sottovoce.parties.log import EventLog, JsonLog, sentence
from sottovoce.parties.metrics import ServerMetrics, pool_gauges
from sottovoce.parties.observer import Observers
from sottovoce.parties.prometheus import Counter, Gauge, Histogram, Metric, render
from sottovoce.parties.protocol import Command, Verb
from sottovoce.parties.session import SessionReport
from sottovoce.parties.status import StatusServer
from test_cli import BASE, Serving, environment, model_path, run  # noqa: F401  (fixtures)
from tiny_model import tiny_model

PROMPT = [3, 31, 8, 12]


@pytest.fixture(scope="module")
def engine():
    engine = make_engine(EngineOptions(engine="clear"), tiny_model())
    engine.prepare()
    return engine


def get(port, path, method="GET", headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request(method, path, headers=headers or {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer.headers


def test_text_format():
    counter = Counter("a_total", "Things.", kind="x")
    counter.add(2, kind='quo"te\n')
    histogram = Histogram("t_seconds", "Times.", (0.1, 1))
    for value in (0.05, 0.1, 0.5, 7):
        histogram.observe(value)
    text = render(
        [counter, histogram, Gauge("g", "Now.", lambda: 1.5, m="y"), Counter("none_total", "Empty.")]
    )
    assert text == (
        "# HELP a_total Things.\n# TYPE a_total counter\n"
        'a_total{kind="quo\\"te\\n"} 2\na_total{kind="x"} 0\n'
        "# HELP t_seconds Times.\n# TYPE t_seconds histogram\n"
        't_seconds_bucket{le="0.1"} 2\nt_seconds_bucket{le="1"} 3\nt_seconds_bucket{le="+Inf"} 4\n'
        "t_seconds_sum 7.65\nt_seconds_count 4\n"
        '# HELP g Now.\n# TYPE g gauge\ng{m="y"} 1.5\n'
    )


def test_health_and_metrics_over_http():
    status = StatusServer("127.0.0.1", 0)
    try:
        code, body, headers = get(status.port, "/health")
        assert code == 503 and json.loads(body) == {"status": "loading"} and headers["Retry-After"]
        status.status, status.page = "ready", lambda: "x 1\n"
        assert get(status.port, "/health?x=1")[:2] == (200, '{"status": "ready"}')
        code, body, headers = get(status.port, "/metrics")
        assert (code, body) == (200, "x 1\n") and headers["Content-Type"].startswith(
            "text/plain; version=0.0.4"
        )
        assert get(status.port, "/metrics", "HEAD")[:2] == (200, "")
        assert get(status.port, "/metrics", headers={"Host": "evil.example"})[0] == 403
        assert get(status.port, "/")[0] == 404 and get(status.port, "/health", "POST")[0] == 501
        status.status = "stopping"
        assert get(status.port, "/health")[0] == 503
        with pytest.raises(UsageError, match="metrics-port"):
            StatusServer("127.0.0.1", status.port)
        # Somebody who says nothing, or nonsense, stalls nobody.
        with socket.create_connection(("127.0.0.1", status.port)) as silent:
            assert get(status.port, "/metrics")[0] == 200
            silent.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
            assert b"Error" in silent.makefile("rb").read()
    finally:
        status.close()


def test_a_server_is_counted(engine, tmp_path):
    metrics = ServerMetrics("tiny")
    with Host(engine, tiny_model(), tmp_path, observer=metrics, gate=FairGate(1)) as host:
        metrics.watch(host.server)
        client = host.client()
        greedy_tokens(client, PROMPT, 4)
        assert 'vllm:num_requests_running{model_name="tiny"} 1' in metrics.page()
        client.verify([1, 2])
        client.keep(host.mine, "mine")
        client.close()
        host.wait_until_empty()
        host.client("mine").close()
        host.wait_until_empty()
        page = metrics.page()
    for line in (
        'vllm:prompt_tokens_total{model_name="tiny"} 4',
        'vllm:generation_tokens_total{model_name="tiny"} 5',
        'vllm:request_success_total{model_name="tiny"} 1',
        'vllm:time_to_first_token_seconds_count{model_name="tiny"} 1',
        'vllm:time_per_output_token_seconds_count{model_name="tiny"} 5',
        'vllm:num_requests_running{model_name="tiny"} 0',
        'sottovoce_sessions_total{reason="client_left"} 2',
        "sottovoce_sessions_resumed_total 1",
        "sottovoce_connections 0",
    ):
        assert line in page.splitlines(), (line, page)
    assert "sottovoce_rounds_total" in page and 'sottovoce_bytes_total{direction="up"}' in page


def test_every_metric_is_documented(engine, tmp_path):
    metrics = ServerMetrics("tiny")
    with Host(engine, tiny_model(), tmp_path, observer=metrics) as host:
        metrics.watch(host.server, *pool_gauges(lambda: 0.0, lambda: 0.0))
    shown = [*metrics._gauges, *(value for value in vars(metrics).values() if isinstance(value, Metric))]
    page = (Path(__file__).parent.parent / "docs" / "reference" / "metrics.md").read_text()
    assert len(shown) > 15 and [m.name for m in shown if m.name not in page] == []


def test_nothing_secret_is_logged(engine, tmp_path):
    """Neither tokens nor prompts, keys, shares: every way out of the server, after all kinds of ends."""
    out, events = io.StringIO(), []
    log = EventLog(JsonLog(out))
    text = EventLog(lambda event, fields: events.append(sentence(event, fields)))
    metrics = ServerMetrics("tiny")
    path = tmp_path / "keys"
    path.write_text("ann topsecretkey\n")
    odd = [211, 223, 227, 229, 233, 239, 241, 251]  # no size is one of them
    options = {"observer": Observers(log, text, metrics), "admission": Admission(3, keys=ApiKeys(path))}
    with Host(engine, tiny_model(), tmp_path, **options) as host:
        client = host.client(api_key="topsecretkey")
        client.keep(host.mine, "mine")
        ticket, local = client._keeping.ticket(""), client._keeping.saved.head.ticket
        greedy_tokens(client, odd, 3)
        client.channel.close()
        with pytest.raises(RefusedError, match="does not know this one"):
            host.client(api_key="wrongsecretkey")
        bad = host.client(api_key="topsecretkey")
        bad.channel.send(b"\x01garbage with a secret")
        with pytest.raises(Exception, match="malformed"):
            bad.channel.recv(1)
        broken = host.client(api_key="topsecretkey")
        broken._again = None
        broken._party._vocab = 10**6  # an engine that lies about itself
        with pytest.raises(Exception, match="vocabulary|closed"):
            broken._party._channel.send(b"\x01" + bytes([8, 0, 0, 0]) + bytes(4))
            broken.channel.send(b"\xff\xff\xff\x7f" * 8)
            broken.channel.recv(4)
        host.wait_until_empty()
    told = out.getvalue() + "\n".join(events) + metrics.page() + json.dumps([vars(r) for r in host.reports])
    assert "ann" in told and "session ended" in told
    tickets = [value.hex() for one in (ticket, local) for value in (one.key, one.id)]
    for secret in ("topsecretkey", "wrongsecretkey", *tickets, "garbage"):
        assert secret not in told
    for line in out.getvalue().splitlines():
        entry = json.loads(line)
        assert not {str(value) for value in entry.values()} & {str(token) for token in odd}


def test_events_for_people():
    log = []
    events = EventLog(lambda event, fields: log.append(sentence(event, fields)))
    events.closed(SessionReport(id="ab", peer="192.0.2.1:5", private_tokens=3))
    assert log == ["session ab from 192.0.2.1:5 ended: client left (0 public and 3 private tokens, 0.0 s)"]
    assert sentence("failure", {"session": "ab", "what": "x", "peer": ""}) == "failure: session ab, what x"
    assert sentence("stopping", {}) == "stopping"


def test_api_keys_and_quotas_at_a_server(engine, tmp_path):
    path = tmp_path / "keys"
    path.write_text("ann one sessions=1 context=20\nbob two\n")
    with Host(engine, tiny_model(), tmp_path, admission=Admission(3, keys=ApiKeys(path))) as host:
        for key in (None, "three"):
            with pytest.raises(RefusedError, match="API key"):
                host.client(api_key=key)
        ann = host.client(api_key="one")
        assert ann.context_length == 20
        with pytest.raises(ServerBusyError, match="you have 1"):
            host.client(api_key="one")
        bob = host.client(api_key="two")
        assert bob.context_length == 96
        bob.keep(host.mine, "bobs")
        bob.close()
        ann.close()
        host.wait_until_empty()
        with pytest.raises(RefusedError, match="another API key"):
            host.client("bobs", api_key="one")
        host.client("bobs", api_key="two").close()


def test_client_certificates(engine, tmp_path):
    certificate = Certificate(tmp_path / "server")
    known, stranger = tmp_path / "known.pem", tmp_path / "stranger.pem"
    trusted = b""
    for path in (known, stranger):
        key, own = self_signed(path.stem)
        path.write_bytes(key + own)
        trusted = trusted or own
    (tmp_path / "clients.pem").write_bytes(trusted)
    model = tiny_model()
    tls = certificate.context(tmp_path / "clients.pem")
    with Server(engine.session, Welcome(engine.options, engine.public(), model.card), tls=tls) as server:
        address = Address("127.0.0.1", server.port)

        def connect(path):
            pin = certificate.fingerprint
            return Client.connect(address, Wish("clear"), pin, client_certificate=path)

        with connect(known) as client:
            client.setup()
            assert len(greedy_tokens(client, PROMPT, 3)) == 3
        for path in (None, stranger):
            # The alert with the reason may be lost when the connection is reset.
            with pytest.raises((RefusedError, PeerConnectionError)):
                connect(path)
        (tmp_path / "junk.pem").write_text("junk")
        with pytest.raises(CorruptFileError, match="cannot be read"):
            connect(tmp_path / "junk.pem")
        with pytest.raises(CorruptFileError, match="cannot be read"):
            certificate.context(tmp_path / "junk.pem")


def test_serve_command(model_path, tmp_path, environment):  # noqa: F811
    keys = tmp_path / "keys"
    keys.write_text("ann secret-of-ann\n")
    log = tmp_path / "log.jsonl"
    more = ["--metrics-port", "0", "--log-format", "json", "--log-file", str(log)]
    more += ["--api-key-file", str(keys), "--max-context", "50"]
    server = Serving(model_path, tmp_path, environment, *more)
    try:
        port = server.info["metrics_port"]
        assert get(port, "/health")[0] == 200
        arguments = ("generate", server.address, "hello", "-n", "3", "--insecure-clear", "-q")
        refused = run(*arguments, env=environment)
        assert refused.returncode == 4 and "API key" in refused.stderr
        (tmp_path / "key").write_text("secret-of-ann\n")
        done = run(*arguments, "--api-key", f"@{tmp_path / 'key'}", env=environment)
        assert done.returncode == 0, done.stderr
        keys.write_text("bob secret-of-bob\n")
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 300
        while '"event": "keys"' not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        refused = run(*arguments, "--api-key", f"@{tmp_path / 'key'}", env=environment)
        assert refused.returncode == 4 and "does not know" in refused.stderr
        page = get(port, "/metrics")[1]
        assert "vllm:prompt_tokens_total" in page and "sottovoce_sessions_saved 0" in page
    finally:
        errors = server.stop()
    assert server.process.returncode == 0
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [e["event"] for e in events][0] == "listening" and events[-1]["event"] == "stopped"
    assert any(e["event"] == "session ended" and e["account"] == "ann" for e in events)
    assert '"event": "session opened"' in errors and "secret-of-ann" not in errors + log.read_text() + page
    assert os.stat(log).st_mode & 0o77 == 0


def test_silent_slow_and_hostile_clients_stall_nobody(engine, tmp_path):
    """Even where only one session computes at a time."""
    with Host(engine, tiny_model(), tmp_path, gate=FairGate(1)) as host:
        address = ("127.0.0.1", host.server.port)
        with socket.create_connection(address), socket.create_connection(address) as dripping:
            dripping.sendall(b"SV\x01")
            stuck = host.client()
            stuck.channel.send(Command(Verb.PREFILL, 4).pack())  # and then nothing
            other = host.client()
            assert len(greedy_tokens(other, PROMPT, 5)) == 5
            other.close()
            stuck.channel.close()


def test_a_handshake_that_drips_ends_in_time():
    client, server = socket_pair()
    server.deadline = time.monotonic() + 0.3
    dripping = threading.Event()

    def drip():
        """A frame of which a byte arrives now and then."""
        with contextlib.suppress(OSError):
            client._sock.send(pack_header(Kind.DATA, 1 << 20))
            while not dripping.wait(0.01):
                client._sock.send(b"S")

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        with pytest.raises(PeerGoneError, match="too slow"):
            server.recv(1 << 20)
    finally:
        dripping.set()
        thread.join()
        client.close()
        server.close()
