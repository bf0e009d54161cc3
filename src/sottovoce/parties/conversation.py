"""A conversation of several turns in one session: each turn sends only what is new.

The template's text around a new message is put behind the answer's own tokens, so nothing that the cache
holds is computed twice. Where a template rewrites earlier turns, the longest common beginning is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..engines.base import Progress
from ..errors import UnsupportedModelError, UsageError
from ..models.chat import ChatTemplate, Message, Prompt
from .client import Client
from .generation import Completion, GenerationOptions, generate
from .speculative import Speculation


class Conversation:
    """What was said, and which of it the session holds.

    chat: speak through the model's template (None: if there is one); otherwise the text goes on as it is.
    system: a private system message. public: text in its place that the server MAY READ. A client whose
    saved session had a conversation goes on with that one.
    """

    def __init__(
        self,
        client: Client,
        *,
        chat: bool | None = None,
        system: str | None = None,
        public: str | None = None,
    ) -> None:
        template = client.card.template
        self.client = client
        self._template: ChatTemplate | None = None if chat is False else template
        if chat and template is None:
            raise UsageError(f"model {client.card.name} has no chat template; use --raw")
        if system and self._template is None:
            raise UsageError("--system-prompt needs a chat template; leave it away or drop --raw")
        self._system, self._public = system, ""
        self._said: list[Message] = []
        self._tokens: tuple[int, ...] = ()  # of everything said; the session holds a beginning of them
        self._public_count = 0  # of them, constants at the beginning
        if client.notes.get("conversation"):
            self._restore(client.notes["conversation"], chat)
        elif public:
            self.make_public(public)

    def make_public(self, text: str) -> None:
        """Text before the conversation that the server MAY READ. UsageError once anything was said."""
        if self._tokens or self.client.length:
            raise UsageError(
                "public text comes first, and this conversation has begun; it takes a new session"
            )
        if self._system:
            raise UsageError("public text takes the place of the system message; give one of them, not both")
        self._public = text

    def ask(
        self,
        text: str,
        options: GenerationOptions,
        on_text: Callable[[str], None] = lambda text: None,
        progress: Progress | None = None,
        speculation: Speculation | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Completion:
        """The answer to the next message; arguments and leakage as in `generate`.

        A UsageError leaves the conversation as it was. The answer to the same message, where a saved session
        was cut off in it, goes on.
        """
        whole = self._next(text)
        tokens = whole.tokens
        answered = self._unfinished(tokens)
        prompt = self._new_part(whole) if answered is None else self._rest(_longer(whole, answered))
        note: dict[str, list[int]] = {"prompt": list(tokens)}
        self.client.notes["answering"] = note
        done = generate(
            self.client, prompt, options, on_text, progress, speculation, should_stop,
            answered=answered, noting=lambda chosen: note.update(tokens=list(chosen)),
        )  # fmt: skip
        if self.client.waiting:
            return done  # interrupted in a step that the server may end: the session goes on from there
        del self.client.notes["answering"]
        self._public_count = len(whole.public)
        self._said += [{"role": "user", "content": text}, {"role": "assistant", "content": done.text}]
        self._tokens = (*tokens, *done.token_ids)
        if self.client.is_kept:
            self.note()
        return done

    @property
    def said(self) -> list[Message]:
        """Messages so far, the user's and the model's in turn."""
        return list(self._said)

    def note(self) -> None:
        """Keep the conversation with the session, if that is kept."""
        self.client.notes["conversation"] = {
            "said": self._said,
            "tokens": list(self._tokens),
            "system": self._system,
            "public": self._public,
            "public_count": self._public_count,
            "chat": self._template is not None,
        }
        self.client.checkpoint()

    def _restore(self, noted: dict[str, Any], chat: bool | None) -> None:
        """Go on with what a saved session noted; its system message and public text are part of it."""
        if chat is None and not noted["chat"]:
            self._template = None
        if noted["chat"] != (self._template is not None):
            raise UsageError(
                "the saved conversation was held the other way; use --chat or --raw as when it began"
            )
        self._said = [dict(message) for message in noted["said"]]
        self._tokens = tuple(noted["tokens"])
        self._system, self._public = noted["system"], noted["public"]
        self._public_count = int(noted["public_count"])

    def next_prompt(self, text: str) -> Prompt:
        """What `ask` would send, without sending anything: to be shown before."""
        whole = self._next(text)
        answered = self._unfinished(whole.tokens)
        if answered is not None:
            whole = _longer(whole, answered)
            return self._split(whole, self._same(whole.tokens))
        return self._split(whole, self._kept(whole.tokens))

    def forget(self) -> None:
        """Begin anew in the same session; its public beginning stays. The server learns that."""
        self._said, self._tokens = [], ()
        if self.client.is_kept:
            self.note()
        if self.client.length > self.client.public_count:
            self.client.truncate(self.client.public_count)

    def _next(self, text: str) -> Prompt:
        """All tokens of the conversation up to where the answer to `text` begins, and which of them are
        constants."""
        if not text.strip():
            raise UsageError("the message is empty; write at least one word")
        if not self._tokens:
            return self._beginning(text)
        if self._template is None:
            return self._behind(self.client.card.tokenizer.encode(text))
        return self._continued(self._template, text)

    def _beginning(self, text: str) -> Prompt:
        card = self.client.card
        if self._template is None:
            plain = card.plain(text)
            prompt = Prompt((*plain.public, *card.tokenizer.encode(self._public)), plain.private)
        else:
            prompt = card.chat(self._messages(text), public_system=bool(self._public))
        self._public_count = len(prompt.public)
        return prompt

    def _behind(self, more: list[int]) -> Prompt:
        """What was said, and more."""
        return Prompt(self._tokens[: self._public_count], (*self._tokens[self._public_count :], *more))

    def _continued(self, template: ChatTemplate, text: str) -> Prompt:
        """The text that the template puts behind the last answer, in tokens of its own."""
        behind = template.behind_answer([*self._messages(), *self._said[:-1]], [_user(text)])
        if behind is not None:
            return self._behind(self.client.card.tokenizer.encode(behind))
        # What is constant is another beginning than the first turn's, perhaps a shorter one.
        whole = [*self._messages(), *self._said, _user(text)]
        return self.client.card.chat(whole, public_system=bool(self._public))

    def _messages(self, text: str | None = None) -> list[Message]:
        """The system message, if there is one, and a first message, if it is given."""
        system = self._public or self._system
        first: list[Message] = [{"role": "system", "content": system}] if system else []
        return first if text is None else [*first, _user(text)]

    def _unfinished(self, tokens: tuple[int, ...]) -> list[int] | None:
        """What was chosen of an answer to just this, if the session was cut off in it."""
        noted = self.client.notes.get("answering") or {}
        return noted["tokens"] if noted.get("prompt") == list(tokens) and "tokens" in noted else None

    def _rest(self, whole: Prompt) -> Prompt:
        """What the session does not hold of a text that was cut off; perhaps nothing."""
        same = self._same(whole.tokens)
        if same < self.client.length:
            self.client.truncate(same)
        return self._split(whole, same)

    def _new_part(self, whole: Prompt) -> Prompt:
        """What the session does not hold yet; makes it forget what does not belong to it."""
        kept = self._kept(whole.tokens)
        if kept < self.client.length:
            self.client.truncate(kept)
        return self._split(whole, kept)

    def _kept(self, tokens: tuple[int, ...]) -> int:
        """Length of the common beginning of the session and `tokens`, short of the last one."""
        same = self._same(tokens)
        if same < self.client.public_count:
            raise UnsupportedModelError("the chat template changes its public beginning; start a new session")
        return min(same, len(tokens) - 1)

    def _same(self, tokens: tuple[int, ...]) -> int:
        """Length of the common beginning."""
        pairs = enumerate(zip(self.client.tokens, tokens, strict=False))
        return next((i for i, (a, b) in pairs if a != b), min(self.client.length, len(tokens)))

    def _split(self, whole: Prompt, kept: int) -> Prompt:
        """Without what the session holds. Public tokens only begin one: behind others all are private."""
        return Prompt((), whole.tokens[kept:]) if kept else whole


def _longer(whole: Prompt, answered: list[int]) -> Prompt:
    return Prompt(whole.public, (*whole.private, *answered))


def _user(text: str) -> Message:
    return {"role": "user", "content": text}
