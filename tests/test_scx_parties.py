"""The engine scx over real sockets, through a worker, and only for those who accept what it is."""

import json
import signal
import subprocess
import sys
import time

import pytest

from kept_sessions import Host, go_on, greedy_tokens
from scx_sessions import engine_of
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.explain import engine_line, what_the_server_sees, who_learns_what
from sottovoce.engines.scx import PROFILES, WorkerEngine, bundle, check_public
from sottovoce.errors import IntegrityError, ParameterMismatchError, ProtocolError
from sottovoce.models.model import greedy
from sottovoce.net.tls import Certificate
from sottovoce.parties import Address, Client, GenerationOptions, Server, Welcome, Wish, generate
from tiny_model import save_tiny_model, tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return Certificate(tmp_path_factory.mktemp("key"))


@pytest.fixture(scope="module", params=sorted(PROFILES))
def host(request, model, certificate):
    engine = engine_of(model, request.param)
    welcome = Welcome(engine.options, engine.public(), model.card)
    with Server(engine.session, welcome, tls=certificate.context()) as server:
        server.profile = request.param
        yield server


def connect(server, certificate, profile=None):
    client = Client.connect(
        Address("127.0.0.1", server.port), Wish("scx", profile=profile), certificate.fingerprint
    )
    client.setup()
    return client


def answer(client, model):
    done = generate(client, model.card.chat("hello"), GenerationOptions(max_tokens=10))
    return done.token_ids


def expected(model):
    return greedy(model, model.card.chat("hello").tokens, 10, model.card.tokenizer.eos_ids)


def test_several_sessions_at_once_answer_like_plaintext(host, model, certificate):
    with connect(host, certificate) as first, connect(host, certificate, host.profile) as second:
        assert answer(first, model) == expected(model) == answer(second, model)


def test_a_second_turn_goes_on_where_the_first_ended(host, model, certificate):
    turns = [model.card.plain("abc"), model.card.plain("de")]
    with connect(host, certificate) as client:
        client.prefill((), turns[0].tokens)
        logits = client.prefill((), turns[1].tokens)
    plain = model.forward([*turns[0].tokens, *turns[1].tokens])[-1]
    assert abs(logits - plain).max() < 1e-4


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_a_kept_session_goes_on_at_a_server_that_started_again(model, tmp_path, profile):
    prompt = [3, 31, 8, 12]
    wanted = greedy(model, prompt, 10)
    with Host(engine_of(model, profile), model, tmp_path) as home:
        first = home.client()
        first.keep(home.mine, "mine")
        assert greedy_tokens(first, prompt, 4) == wanted[:4]
        first.close()
        home.stop()
        home.start()
        second = home.client("mine")
        assert go_on(second, 7) == wanted[3:10]
        second.close()


def test_who_has_not_accepted_it_is_refused(host, certificate):
    wrong = "paper" if host.profile == "hardened" else "hardened"
    for wish in (Wish(), Wish("clear"), Wish("scx", profile=wrong)):
        with pytest.raises(ParameterMismatchError):
            Client.connect(Address("127.0.0.1", host.port), wish, certificate.fingerprint)


def test_a_changed_statement_is_refused(model, certificate):
    engine = engine_of(model, "paper")
    lie = {**engine.public(), "privacy": PROFILES["hardened"].privacy.to_json()}
    with Server(
        engine.session, Welcome(engine.options, lie, model.card), tls=certificate.context()
    ) as server:
        with pytest.raises(ProtocolError, match="privacy statement"):
            connect(server, certificate)


def test_weights_come_once_and_are_those_that_were_announced(host, model, certificate):
    bundle._last.clear()  # of an earlier test's session
    with connect(host, certificate) as first, connect(host, certificate) as second:
        assert answer(second, model) == expected(model)
        sent, again = (client.ledger.total("setup").bytes_down for client in (first, second))
    assert again < sent - model.weights.embedding.nbytes
    engine = engine_of(model, host.profile)
    lie = {**engine.public(), "weights": "0" * 64}
    with Server(
        engine.session, Welcome(engine.options, lie, model.card), tls=certificate.context()
    ) as server:
        with pytest.raises(IntegrityError, match="announced"):
            connect(server, certificate)


@pytest.mark.parametrize("change", [{"weights": 1}, {"worker": None}, {"config": []}, {"more": 1}])
def test_a_malformed_description_is_refused(model, change):
    engine = engine_of(model, "paper")
    with pytest.raises(ProtocolError, match="malformed"):
        check_public(engine.options, {**engine.public(), **change})


def test_a_worker_answers_for_users_without_weights(host, model, certificate):
    with connect(host, certificate) as asked:
        welcome = asked.welcome
    engine = WorkerEngine(welcome.options, welcome.public, lambda: connect(host, certificate))
    offer = Welcome(engine.options, engine.public(), model.card)
    with Server(engine.session, offer, tls=certificate.context()) as worker:
        with connect(worker, certificate) as client:
            assert answer(client, model) == expected(model)
            received = client.ledger.total("setup").bytes_down
            client.truncate(3)
            assert len(client.verify([1, 2, 3])) == 3
    weights = sum(array.nbytes for _, array in model.weights.named())
    assert received - len(model.card.to_bytes()) < weights // 4  # no weights came


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "sottovoce", *arguments], capture_output=True, text=True, timeout=240
    )


def test_serve_refuses_without_the_flag(tmp_path):
    refused = run("serve", str(save_tiny_model(tmp_path)), "--engine", "scx", "--port", "0")
    assert refused.returncode == 4 and "--accept-statistical-privacy" in refused.stderr
    assert run("worker", "127.0.0.1:1").returncode == 4


@pytest.mark.slow
def test_the_commands_with_a_worker_beside_the_server(tmp_path, monkeypatch):
    monkeypatch.setenv("SOTTOVOCE_CONFIG_DIR", str(tmp_path / "config"))
    ready, accept = tmp_path / "ready.json", "--accept-statistical-privacy"
    command = ["serve", str(save_tiny_model(tmp_path)), "--engine", "scx", "--profile", "paper", accept]
    command += ["--port", "0", "--worker", "0", "--ready-file", str(ready)]
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "sottovoce", *command], stderr=log, stdin=subprocess.DEVNULL
    )
    try:
        texts = []
        for file in (ready, tmp_path / "ready.json.worker"):
            deadline = time.monotonic() + 240
            while not file.exists():
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.05)
            where = json.loads(file.read_text())
            flags = [accept, "--fingerprint", where["fingerprint"], "-n", "4", "--raw", "--json"]
            refused = run("generate", f"127.0.0.1:{where['port']}", "hello", *flags[1:])
            assert refused.returncode == 4 and accept in refused.stderr
            done = run("generate", f"127.0.0.1:{where['port']}", "hello", *flags)
            assert done.returncode == 0, done.stderr
            assert "NOT cryptography" in done.stderr and "the server can read: prompt" in done.stderr
            texts.append(json.loads(done.stdout)["token_ids"])
        model = tiny_model()
        wanted = greedy(model, model.card.plain("hello").tokens, 4, model.card.tokenizer.eos_ids)
        assert texts == [wanted, wanted]
        shown = json.loads(run("verify", f"127.0.0.1:{where['port']}", "--json").stdout)
        assert shown["profile"] == "paper" and shown["privacy"] == PROFILES["paper"].privacy.to_json()
        assert "worker" in done.stderr
        assert "NOT cryptography" in (tmp_path / "log").read_text()  # what the server said when it started
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 0
        log.close()


def test_the_words_about_who_learns_what():
    paper, hardened = (EngineOptions(engine="scx", profile=name) for name in ("paper", "hardened"))
    assert "no cryptography" in engine_line(paper) and "every token" in what_the_server_sees(paper)
    assert "everything" in {server for _, _, server in who_learns_what(paper, 1, 2, 3)}
    assert "everything" not in {server for _, _, server in who_learns_what(hardened, 1, 2, 3)}
    assert "assume" in what_the_server_sees(EngineOptions(engine="scx", profile="else"))
