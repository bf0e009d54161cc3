"""Conversations: only new tokens are sent, turns can be stopped, and the commands do what they say."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest

from sottovoce.cli.chat import Chat
from sottovoce.cli.console import Console
from sottovoce.errors import PromptTooLongError, UnsupportedModelError, UsageError
from sottovoce.models.chat import ChatTemplate
from sottovoce.models.model import build
from sottovoce.parties import Conversation, DraftLength, GenerationOptions, NgramDrafter, Speculation
from test_cli import BASE, environment, failed, model_path, serving  # noqa: F401  (fixtures)
from test_speculative import Session
from tiny_model import CONFIG, TEMPLATE, byte_tokenizer, tiny_model

SHORT = GenerationOptions(max_tokens=4)


def with_template(source: str):
    model = tiny_model()
    return build("tiny", CONFIG, model.weights, byte_tokenizer(), ChatTemplate(source))


def logits_agree(client, model, tokens: Sequence[int]):
    """The session's next logits are those of the plaintext model for `tokens` and a token more."""
    held = client.length
    got = client.prefill((), [*tokens[held:], 9])
    client.truncate(held)
    return np.abs(got - model.forward([*tokens, 9])[-1]).max() < 1e-3


def test_later_turns_send_only_what_is_new():
    model = tiny_model()
    session = Session(model)
    with session as client:
        talk = Conversation(client)
        first = talk.ask("hi", SHORT)
        second = talk.ask("and", SHORT)
        third = talk.ask("so?", SHORT)
        tokens = list(client.tokens)
        encode = model.card.tokenizer.encode
        texts = [model.card.chat("hi").tokens, encode("\n<s>user: and\n<s>assistant: ")]
        texts.append(encode("\n<s>user: so?\n<s>assistant: "))
        wanted = [t for text, done in zip(texts, (first, second, third), strict=True)
                  for t in (*text, *done.token_ids)]  # fmt: skip
        assert tokens == wanted[: len(tokens)] and len(wanted) - len(tokens) <= 1
        assert logits_agree(client, model, wanted)
        # The last token of an answer, not yet in the session, goes with the next turn.
        pending = [1 for done in (first, second) if done.finish_reason == "length"]
        new = second.usage.prompt_tokens + third.usage.prompt_tokens
        assert new == len(texts[1]) + len(texts[2]) + len(pending)
        assert second.usage.public_tokens == third.usage.public_tokens == 0 < first.usage.public_tokens


def test_turns_without_a_template_continue_the_text():
    model = tiny_model()
    with Session(model) as client:
        talk = Conversation(client, chat=False, public="known ")
        one = talk.ask("abc", SHORT)
        two = talk.ask("def", SHORT)
        encode = model.card.tokenizer.encode
        wanted = [256, *encode("known "), *encode("abc"), *one.token_ids, *encode("def"), *two.token_ids]
        assert client.tokens == wanted[: client.length]
        assert one.usage.public_tokens == 1 + len("known ")


def test_a_template_that_rewrites_earlier_turns_keeps_the_common_beginning():
    """This one shows only the last user message, behind the number of messages."""
    model = with_template("<s>chat {{ messages | length }}: {{ messages[-1].content }}<s>")
    with Session(model) as client:
        talk = Conversation(client)
        talk.ask("first", SHORT)
        with pytest.raises(UnsupportedModelError, match="public beginning"):
            talk.ask("second", SHORT)
    rewriting = "<s>{% for m in messages %}{{ m.role[0] }}{{ m.content | upper }}{% endfor %}<s>"
    model = with_template(rewriting)
    with Session(model) as client:
        talk = Conversation(client)
        first = talk.ask("first", SHORT)
        second = talk.ask("second", SHORT)
        # The last <s>, where the answer began, moved.
        whole = model.card.chat(
            [
                {"role": "user", "content": "first"},
                {"role": "assistant", "content": first.text},
                {"role": "user", "content": "second"},
            ]
        )
        assert client.tokens[: len(whole)] == list(whole.tokens)
        assert second.usage.prompt_tokens < len(whole)


def test_templates_that_trim_or_contain_the_answer_twice():
    trimming = TEMPLATE.replace("m.content", "m.content | trim")
    for source in (trimming, TEMPLATE.replace("m.content", "m.content ~ m.content")):
        model = with_template(source)
        with Session(model) as client:
            talk = Conversation(client)
            for text in ("a", "b", "c"):
                talk.ask(text, SHORT)
                assert client.tokens == list(talk._tokens)[: client.length]


def test_public_text_first_and_only_once():
    model = tiny_model()
    with Session(model) as client:
        talk = Conversation(client)
        talk.make_public("everybody may know")
        shown = talk.next_prompt("q")
        assert client.length == 0
        assert "everybody" in model.card.tokenizer.decode(shown.public)
        assert model.card.tokenizer.decode(shown.private).startswith("q\n")
        done = talk.ask("q", SHORT)
        assert done.usage.public_tokens == len(shown.public)
        with pytest.raises(UsageError, match="comes first"):
            talk.make_public("more")
    with Session(model) as client:
        with pytest.raises(UsageError, match="not both"):
            Conversation(client, system="secret", public="known")
        with pytest.raises(UsageError, match="template"):
            Conversation(client, system="secret", chat=False)
        talk = Conversation(client, system="secret")
        assert "secret" not in model.card.tokenizer.decode(talk.next_prompt("q").public)
        assert model.card.tokenizer.decode(talk.next_prompt("q").private).startswith("secret")


def test_a_refused_turn_changes_nothing():
    model = tiny_model()
    with Session(model) as client:
        talk = Conversation(client)
        talk.ask("hi", SHORT)
        before = list(client.tokens)
        for text, error in (("x" * 90, PromptTooLongError), ("  ", UsageError)):
            with pytest.raises(error):
                talk.ask(text, SHORT)
            assert client.tokens == before
        talk.ask("short", SHORT)
        assert client.tokens[: len(before)] == before


def test_forgetting_keeps_the_public_beginning():
    model = tiny_model()
    with Session(model) as client:
        talk = Conversation(client)
        one = talk.ask("hi", SHORT)
        public = one.usage.public_tokens
        talk.forget()
        assert client.length == public
        two = talk.ask("hi", SHORT)
        assert two.token_ids == one.token_ids and two.usage.public_tokens == 0


def test_guesses_come_from_earlier_turns():
    model = tiny_model()
    with Session(model) as client:
        talk = Conversation(client, chat=False)
        speculation = Speculation(NgramDrafter(), DraftLength(fixed=3))
        first = talk.ask("abcdef", GenerationOptions(max_tokens=6), speculation=speculation)
        talk.ask("abcdef", GenerationOptions(max_tokens=6), speculation=speculation)
        assert speculation.drafted > first.usage.drafted_tokens


# --- the command
# -----------------------------------------------------------------------------------------------------------


class Lines(list):
    """Stands in for a terminal's or a file's standard input."""

    def isatty(self):
        return False


def chat_with(monkeypatch, client, lines, capsys, speculation=None, options=SHORT):
    monkeypatch.setattr(sys, "stdin", Lines(line + "\n" for line in lines))
    chat = Chat(Console(), Conversation(client), options, speculation)
    code = chat.run()
    return code, chat, capsys.readouterr()


def test_commands(monkeypatch, capsys, tmp_path):
    (tmp_path / "known.txt").write_text("known to all")
    lines = [
        f"/public {tmp_path / 'known.txt'}",
        "hello",
        "",
        "again",
        "/cost",
        "/help",
        "/new",
        "hello",
        "/quit",
    ]
    with Session(tiny_model()) as client:
        code, chat, (out, notes) = chat_with(monkeypatch, client, [*lines, "never"], capsys)
        assert code == 0 and len(chat.answers) == 3 and client.channel
    assert out == "".join(done.text + "\n" for done in chat.answers)
    assert "known.txt: 12 characters that the server will be able to read" in notes
    assert "2 answers:" in notes and "prefill" in notes and "Ctrl-C stops" in notes
    assert chat.answers[0].token_ids == chat.answers[2].token_ids
    assert notes.count("tokens that the server can read") == 1


def test_cost_tells_of_guesses(monkeypatch, capsys):
    speculation = Speculation(NgramDrafter(), DraftLength(fixed=2))
    with Session(tiny_model()) as client:
        lines = ["aaaaaaaa", "/cost"]
        _, _, (_, notes) = chat_with(monkeypatch, client, lines, capsys, speculation)
    assert f"guesses: {speculation.drafted}, of which {speculation.accepted} accepted" in notes


def test_errors_end_a_script_and_not_a_person(monkeypatch, capsys):
    for line in ("/nonsense", "/public /no/such/file", "x" * 100):
        with Session(tiny_model()) as client, pytest.raises(UsageError):
            chat_with(monkeypatch, client, [line], capsys)
    said = iter(["/nonsense", "hi", "/public x", "/quit"])
    monkeypatch.setattr(Lines, "isatty", lambda self: True)
    monkeypatch.setattr("builtins.input", lambda prompt: next(said))
    with Session(tiny_model()) as client:
        code, chat, (_, notes) = chat_with(monkeypatch, client, [], capsys)
    assert code == 0 and len(chat.answers) == 1
    assert "error: unknown command /nonsense" in notes and "error: /public cannot read" in notes


def interrupting(client, at):
    """Press Ctrl-C when these engine steps begin."""
    steps, decode = iter(range(1000)), client.decode

    def step(*arguments):
        if next(steps) in at:
            os.kill(os.getpid(), signal.SIGINT)
        return decode(*arguments)

    client.decode = step


def test_ctrl_c_stops_the_answer_and_the_session_goes_on(monkeypatch, capfd):
    with Session(tiny_model()) as client:
        interrupting(client, {2})
        code, chat, (_, notes) = chat_with(
            monkeypatch, client, ["hi", "more"], capfd, options=GenerationOptions(max_tokens=12)
        )
        first, second = chat.answers
    assert code == 0 and "stopping after this token" in notes
    assert first.finish_reason == "cancelled" and len(first.token_ids) == 4
    assert second.finish_reason in ("length", "stop") and second.usage.prompt_tokens > 0


def test_ctrl_c_twice_leaves(monkeypatch, capfd):
    session = Session(tiny_model())
    with session as client:
        interrupting(client, {2, 3})
        monkeypatch.setattr("sottovoce.parties.generation._Run._take", keep_going(client))
        code, chat, _ = chat_with(monkeypatch, client, ["hi", "more"], capfd, options=GenerationOptions(40))
    assert code == 130 and len(chat.answers) == 1


def keep_going(client):
    """Take tokens, and press once more before `should_stop` is asked."""
    from sottovoce.parties.generation import _Run

    take = _Run._take

    def pressed(run, chosen):
        reason = take(run, chosen)
        if run.should_stop():
            os.kill(os.getpid(), signal.SIGINT)
        return reason

    return pressed


def test_the_command_line(serving, environment):  # noqa: F811
    done = subprocess.run(
        [*BASE, "chat", serving.address, "--insecure-clear", "-n", "4", "--draft", "ngram"],
        env=environment,
        input="hello\n/cost\nhello\n/quit\n",
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2 and "guesses by ngram" in done.stderr
    assert "1 answers" in done.stderr and "Traceback" not in done.stderr
    assert "ended: client left" in serving.stop_behind_a_session()


def test_draft_flags(serving, environment, model_path):  # noqa: F811
    base = [*BASE, "generate", serving.address, "abcabcabc", "--insecure-clear", "-n", "12", "--json"]

    def run(*flags):
        return subprocess.run([*base, *flags], env=environment, capture_output=True, text=True, timeout=240)

    import json

    plain = json.loads(run().stdout)
    for flags in (["--draft", "ngram"], ["--draft", str(model_path), "--draft-tokens", "3"]):
        value = json.loads(run(*flags).stdout)
        assert value["token_ids"] == plain["token_ids"]
    assert value["usage"]["drafted_tokens"] == value["usage"]["accepted_tokens"] > 0
    assert value["usage"]["verification_steps"] <= 4
    failed(run("--draft", "no-such-model"), 2, "no-such-model")
    assert run("--draft", "ngram", "--draft-tokens", "0").returncode == 2


def test_demo_with_guesses(environment, model_path):  # noqa: F811
    done = subprocess.run(
        [*BASE, "demo", "hi", "--model", str(model_path), "--engine", "clear", "-n", "8"]
        + ["--draft", str(model_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "guesses (" in done.stderr and "how many were right" in done.stderr
