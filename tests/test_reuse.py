"""Histories sent again find the session that holds them; nobody's public beginning becomes another one."""

import pytest

from sottovoce.errors import PeerGoneError, ServerBusyError, UsageError
from sottovoce.parties import LiveSessions, continue_from


class Session:
    """The part of a client that reuse looks at."""

    def __init__(self):
        self.tokens, self.begun, self.public_count, self.closed = [], False, 0, None

    length = property(lambda self: len(self.tokens))

    def truncate(self, length):
        if self.closed:
            raise PeerGoneError("gone")
        del self.tokens[length:]

    def close(self, error=None):
        self.closed = error or True

    def answer(self, prompt):
        if not self.begun:
            self.begun, self.public_count = True, len(prompt.public)
        else:
            assert not prompt.public or not self.tokens[: self.public_count]
        self.tokens += prompt.tokens


class Opened:
    def __init__(self, most):
        self.clients = []
        self.live = LiveSessions(self._open, most)

    def _open(self):
        self.clients.append(Session())
        return self.clients[-1]

    def ask(self, tokens, public):
        with self.live.lease(tokens, public) as lease:
            lease.client.answer(lease.prompt)
            assert lease.client.tokens == list(tokens)
            return self.clients.index(lease.client), lease.cached_tokens, lease.prompt


def test_a_continued_history_sends_only_what_is_new():
    opened = Opened(1)
    assert opened.ask((1, 2, 3, 4), 2)[1:2] == (0,)
    number, cached, prompt = opened.ask((1, 2, 3, 4, 5, 6), 2)
    assert (number, cached, prompt.public, prompt.private) == (0, 4, (), (5, 6))
    # The same once more: the last token has to be sent again, its answer was never kept.
    assert opened.ask((1, 2, 3, 4, 5, 6), 2)[1] == 5
    # Another chat with the same beginning keeps just that.
    assert opened.ask((1, 2, 9, 9), 2)[:2] == (0, 2)


def test_another_public_beginning_takes_another_session():
    opened = Opened(1)
    opened.ask((1, 2, 3, 4), 2)
    for tokens, public in (((1, 2, 3, 4), 3), ((1, 2, 3, 4), 1), ((7, 2, 3), 2), ((1, 2, 3), 0)):
        before = len(opened.clients)
        number, cached, _ = opened.ask(tokens, public)
        assert (number, cached) == (before, 0) and opened.clients[before - 1].closed


def test_text_that_became_private_is_not_taken_for_public():
    client = Session()
    client.answer(continue_from(client, (1, 2, 3), 2))
    with pytest.raises(UsageError, match="another public beginning"):
        continue_from(client, (1, 2, 3), 0)
    with pytest.raises(UsageError, match="empty"):
        continue_from(client, (1, 2), 2)


def test_each_chat_keeps_its_session_while_there_is_room():
    opened = Opened(2)
    a, b = (0, 1, 1, 1), (0, 2, 2, 2)
    assert [opened.ask(a, 1)[0], opened.ask(b, 1)[0]] == [0, 1]
    for _ in range(3):
        a, b = (*a, 5), (*b, 6)
        assert opened.ask(a, 1)[:2] == (0, len(a) - 1)
        assert opened.ask(b, 1)[:2] == (1, len(b) - 1)
    assert opened.ask((0, 3, 3), 1)[0] == 0  # the oldest one makes room


def test_sessions_in_use_are_nobody_elses():
    opened = Opened(1)
    with opened.live.lease((1, 2), 1), pytest.raises(ServerBusyError) as busy:
        opened.ask((1, 2), 1)
    assert busy.value.retry_after and opened.ask((1, 3), 1)[0] == 0


def test_errors_end_the_session_unless_both_parties_are_in_step():
    opened = Opened(1)
    opened.ask((1, 2), 1)
    with pytest.raises(UsageError), opened.live.lease((1, 2, 3), 1):
        raise UsageError("too long")
    assert opened.ask((1, 2, 3), 1)[0] == 0
    with pytest.raises(PeerGoneError), opened.live.lease((1, 2, 3), 1):
        raise PeerGoneError("gone")
    assert isinstance(opened.clients[0].closed, PeerGoneError)
    assert opened.ask((1, 2, 3), 1)[0] == 1
    opened.live.close()
    assert opened.clients[1].closed is True
    with pytest.raises(ServerBusyError):
        opened.ask((1, 2), 1)


def test_a_session_that_ended_while_idle_is_replaced():
    opened = Opened(1)
    opened.ask((1, 2, 3, 4), 1)
    opened.clients[0].close()
    assert opened.ask((1, 2, 9), 1)[:2] == (1, 0)
    assert opened.ask((1, 2, 9, 9), 1)[:2] == (1, 3)
