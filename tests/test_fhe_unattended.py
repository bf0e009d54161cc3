"""Steps of the fhe engine that go on without their client, and answers that are collected later."""

import socket
import threading
from functools import partial

import numpy as np
import pytest

from kept_sessions import Host, greedy_tokens
from sottovoce.cli import session as session_cli
from sottovoce.engines.fhe import parties
from sottovoce.errors import PeerConnectionError, PeerGoneError
from sottovoce.parties import Client, Conversation, GenerationOptions, Wish
from sottovoce.parties.admission import Admission
from sottovoce.parties.observer import Observer
from sottovoce.parties.saved import SavedSession
from test_fhe_engine import engine  # noqa: F401  (fixture)


class Cutter:
    """Counts the steps that are computed, and calls `cut` once at a point of the next one.

    points: "layer" (the first), "logits" (computed, not sent).
    """

    def __init__(self, monkeypatch):
        self.computed, self.point, self.cut = 0, None, None
        self.go = None  # waited for after the cut
        cutter = self

        def counted(compute, progress):
            cutter.computed += 1

            def layered(layer):
                cutter.reached("layer")
                progress(layer)

            out = compute(layered)
            cutter.reached("logits")
            return out

        class Counting(parties.Program):
            def step(self, one_hot, head=True, progress=None):
                return counted(partial(super().step, one_hot, head), progress)

        class CountingChunks(parties.ChunkProgram):
            def run(self, one_hot, count, head=True, progress=None):
                return counted(partial(super().run, one_hot, count, head), progress)

        monkeypatch.setattr(parties, "Program", Counting)
        monkeypatch.setattr(parties, "ChunkProgram", CountingChunks)

    def at(self, point, client, go=None):
        self.point, self.go = point, go

        def cut():
            client.channel._sock.shutdown(socket.SHUT_RDWR)

        self.cut = cut

    def reached(self, point):
        if point == self.point:
            self.point = None
            self.cut()
            if self.go is not None:
                assert self.go.wait(300)


@pytest.fixture
def cutter(monkeypatch):
    return Cutter(monkeypatch)


@pytest.fixture
def host(engine, tmp_path):  # noqa: F811
    engine.keep_in(tmp_path)
    with Host(engine, engine.model, tmp_path) as host:
        yield host
    engine.directory = None


def check(engine, tokens, prompt):  # noqa: F811
    """Up to the noise, what the plain model would have chosen."""
    text = list(prompt)
    for token in tokens:
        plain = engine.model.forward(text)[-1]
        assert plain[token] > plain.max() - 0.2
        text.append(token)


def test_a_connection_that_breaks_costs_no_step(engine, host, cutter):  # noqa: F811
    client = host.client()
    client.keep(host.mine, "talk")
    cutter.at("layer", client)
    tokens = greedy_tokens(client, [104, 101], 1, [256])  # a chunk of two tokens
    assert cutter.computed == 1 and client.resumed == 1
    for point in ("logits", "layer"):
        cutter.at(point, client)
        tokens.append(int(np.argmax(client.decode(tokens[-1]))))
    # In the middle of the upload: what was not sent was not computed, and is sent again.
    send, left = client.channel.send, [2]

    def breaking(payload):
        left[0] -= 1
        if not left[0]:
            client.channel._sock.shutdown(socket.SHUT_RDWR)
        send(payload)

    client.channel.send = breaking
    tokens.append(int(np.argmax(client.decode(tokens[-1]))))
    assert client.resumed == 4 and cutter.computed == 4
    check(engine, tokens, [256, 104, 101])
    client.close()


def status(host, monkeypatch):
    """What `sottovoce session status talk` finds."""

    def connect(console, server, flags, saved, waiting):
        return Client(*host.connected(Wish("fhe")), saved=saved, waiting=waiting)

    monkeypatch.setattr(session_cli, "open_client", connect)
    return session_cli._ask_status(None, SavedSession.open(host.mine, "talk"), {})


def test_a_client_leaves_and_another_process_collects(engine, host, cutter, monkeypatch):  # noqa: F811
    client = host.client()
    client.keep(host.mine, "talk")
    client._again = None
    go, tokens = threading.Event(), []
    cutter.at("layer", client, go)
    with pytest.raises(PeerConnectionError):
        client.prefill([256], [104])
    # Its session lists a token that is on its way, and the server computes it.
    entry = host.mine.find("talk")
    assert entry.facts["waiting"] == 2 and entry.facts["tokens"] == 0
    assert session_cli._tokens(entry.facts) == "0 + 2 waiting"
    assert status(host, monkeypatch) == {"state": "computing", "done": 0, "total": 1}
    heard = []

    def waiting(done, total):
        heard.append((done, total))
        go.set()

    client = host.client("talk", waiting=waiting)
    assert heard and heard[0] == (0, 1)
    assert client.tokens == [256, 104] and cutter.computed == 1
    tokens.append(int(np.argmax(client.last())))
    twice = client.last()
    assert (client.last() == twice).all()  # the same bytes: nothing new is drawn
    # The answer was sent, and the client died before it wrote anything down; then the server did, too.
    original = client._party._logits

    def dying(count):
        original(count)
        raise PeerGoneError("killed")

    client._party._logits, client._again = dying, None
    with pytest.raises(PeerGoneError):
        client.decode(tokens[-1])
    client.channel.close()
    host.stop(60.0)
    host.start()
    assert status(host, monkeypatch) == {"state": "answered", "tokens": 3, "here": 3}
    client = host.client("talk")
    assert client.tokens == [256, 104, tokens[0]] and cutter.computed == 2
    tokens.append(int(np.argmax(client.last())))
    assert cutter.computed == 2
    tokens.append(int(np.argmax(client.decode(tokens[-1]))))
    assert "waiting" not in host.mine.find("talk").facts
    check(engine, tokens, [256, 104])
    client.close()


def test_an_answer_to_something_else_is_not_taken(engine, host, cutter):  # noqa: F811
    client = host.client()
    client.keep(host.mine, "talk")
    client.prefill([256], [104])
    saved = SavedSession.open(host.mine, "talk")
    assert saved.digest and not saved.waiting
    client._keeping.digest = bytes(32)
    with pytest.raises(Exception, match="other ciphertexts"):
        client.last()
    # Without a kept answer the token is computed once more.
    client = host.client("talk")
    client.truncate(1)
    client.prefill([], [104])
    client.decode(101)
    client.truncate(2)
    assert cutter.computed == 3
    assert np.abs(client.last() - engine.model.forward([256, 104])[-1]).max() < 0.1
    assert cutter.computed == 4
    client.close()


def test_a_waiting_client_needs_no_second_place(engine, tmp_path, cutter, monkeypatch):  # noqa: F811
    """And a step that goes on alone holds one; deleting the session ends it."""
    engine.keep_in(tmp_path)
    go, ended = threading.Event(), []

    class Watching(Observer):
        def closed(self, report):
            ended.append(report.ended)

    with Host(engine, engine.model, tmp_path, admission=Admission(1), observer=Watching()) as host:
        client = host.client(patience=0.1)
        client.keep(host.mine, "talk")
        client._again = None
        cutter.at("layer", client, go)
        with pytest.raises(PeerConnectionError):
            client.prefill([256], [104])
        assert host.server.admission.running == 1
        with pytest.raises(Exception, match="full"):
            host.client()
        again = host.client("talk", waiting=lambda done, total: go.set())
        assert cutter.computed == 1 and again.tokens == [256, 104]
        go.clear()
        again._again = None
        cutter.at("layer", again, go)
        with pytest.raises(PeerConnectionError):
            again.decode(101)
        cancel = host.kept.cancel

        def cancelling(id=None):
            cancel(id)
            go.set()

        monkeypatch.setattr(host.kept, "cancel", cancelling)
        host.client("talk", forget=True, setup=False).close()
        host.wait_until_empty()
        assert any("cancelled" in reason for reason in ended) and not len(host.kept)
    engine.directory = None


def test_unsaved_sessions_end_with_their_client(engine, tmp_path, cutter):  # noqa: F811
    with Host(engine, engine.model, tmp_path) as host:
        client = host.client()
        cutter.at("layer", client)
        with pytest.raises(PeerConnectionError):
            client.prefill([256], [104, 101])
        host.wait_until_empty()
        assert cutter.computed <= 2


def test_an_interrupted_answer_goes_on(engine, host, cutter):  # noqa: F811
    """Ctrl-C in the middle of a token; the same message later gives the same answer, with nothing twice."""
    wanted = GenerationOptions(4)
    client = host.client()
    client.keep(host.mine, "talk")
    steps = []

    def progress(done, total, what):
        steps.append(done)
        if len(steps) == 3:  # of the prompt, and of two tokens
            raise KeyboardInterrupt

    done = Conversation(client, chat=False).ask("h", wanted, progress=progress)
    assert done.finish_reason == "cancelled" and client.waiting == 1 and len(done.token_ids) == 2
    again = host.client("talk")
    assert again.length == 4
    shown = []
    more = Conversation(again, chat=False).ask("h", wanted, shown.append)
    assert more.token_ids[:2] == done.token_ids and more.finish_reason == "length"
    assert cutter.computed == 4 and "".join(shown) == more.text
    check(engine, more.token_ids, engine.model.card.plain("h").tokens)
    # It is an answer like any other now: another message follows it.
    assert again.notes["conversation"]["said"][1]["content"] == more.text and "answering" not in again.notes
    assert again.length == 5 and not again.waiting
    again.close()
