"""What an error tells the other party: never a word of the prompt, whatever program the server sent along."""

import dataclasses
import time

import pytest

from sottovoce.engines.base import EngineOptions
from sottovoce.engines.registry import make_engine
from sottovoce.errors import UnsupportedModelError
from sottovoce.models.chat import ChatTemplate
from sottovoce.parties import Address, Client, Server, Welcome, Wish
from tiny_model import tiny_model

SECRET = "my diagnosis is on page nine"
# A template that fails with the user's words in its text: once on purpose, once by an error of Python's.
THIEVES = (
    "{{ raise_exception(messages[0]['content']) }}",
    "{{ {}[messages[0]['content']].x }}",
)


@pytest.mark.parametrize("source", THIEVES)
def test_a_failing_template_sends_nothing_of_the_prompt(source):
    model = tiny_model()
    card = dataclasses.replace(model.card, template=ChatTemplate(source))
    engine = make_engine(EngineOptions(engine="clear"), model)
    engine.prepare()
    seen, reports = [], []
    server = Server(
        engine.session,
        Welcome(engine.options, engine.public(), card),
        tls=None,
        on_close=reports.append,
        tap=lambda session, view: seen.append(bytes(view)),
    )
    with server:
        with pytest.raises(UnsupportedModelError):
            with Client.connect(Address("127.0.0.1", server.port), Wish(engine="clear"), None) as client:
                client.card.chat(SECRET)
        deadline = time.monotonic() + 300
        while not reports and time.monotonic() < deadline:
            time.sleep(0.01)
    (report,) = reports
    told = report.ended + " ".join(repr(frame) for frame in seen)
    assert not any(word in told for word in SECRET.split() if len(word) > 3), report.ended
