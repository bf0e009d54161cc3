"""What is public is a constant, also where a template writes the beginning anew once a chat goes on."""

import pytest

from kept_sessions import Host
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.registry import make_engine
from sottovoce.models.chat import ChatTemplate
from sottovoce.models.model import build
from sottovoce.parties import Conversation, GenerationOptions
from tiny_model import CONFIG, byte_tokenizer, tiny_model

SHORT = GenerationOptions(max_tokens=3)
# The system message stands before the last user message, as Mistral's templates have it.
BEFORE_THE_LAST = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}"
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }} {% endif %}"
    "{{ m.content }}<s>{% elif m.role == 'assistant' %}{{ m.content }}{% endif %}{% endfor %}"
)


@pytest.fixture
def host(tmp_path):
    model = build("tiny", CONFIG, tiny_model().weights, byte_tokenizer(), ChatTemplate(BEFORE_THE_LAST))
    engine = make_engine(EngineOptions("clear"), model)
    engine.prepare()
    with Host(engine, model, tmp_path) as running:
        yield running


def test_a_conversation_that_the_server_lost_stays_private(host):
    """Its first turn had a longer public beginning than the whole has that is sent again."""
    client = host.client()
    client.keep(host.mine, "mine")
    talk = Conversation(client, public="all know")
    talk.ask("my secret", SHORT)
    client.close()
    host.wait_until_empty()
    host.kept.store.remove(host.kept.store.entries()[0].id)
    again = host.client("mine")
    going_on = Conversation(again)
    shown = going_on.next_prompt("more")
    text = again.card.tokenizer.decode(shown.public, keep_special=True)
    assert "secret" not in text
    going_on.ask("more", SHORT)
    again.close()
    host.wait_until_empty()
    assert host.reports[-1].public_tokens == len(shown.public) == 1


def test_also_where_its_answer_was_cut_off(host):
    """The turn was noted before its answer was there; what the session holds of it was lost as well."""
    client = host.client()
    client.keep(host.mine, "mine")
    talk = Conversation(client, public="all know")
    talk.ask("my secret", SHORT)
    whole = client.card.chat([*talk._messages(), *talk.said, {"role": "user", "content": "more"}])
    client.notes["answering"] = {"prompt": list(whole.tokens), "tokens": [9]}
    client.checkpoint()
    client.close()
    host.wait_until_empty()
    host.kept.store.remove(host.kept.store.entries()[0].id)
    again = host.client("mine")
    shown = Conversation(again).next_prompt("more")
    assert shown.public == whole.public and shown.private == (*whole.private, 9)
    again.close()
