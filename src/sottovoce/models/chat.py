"""Prompts at the client: chat templates, and which of a prompt's tokens are public.

Public tokens are prefilled by the server in the clear, so they must be constants. They are found by
rendering the template with placeholder messages, never by looking at the user's text; a template that would
put the user's own words into the constant part is refused. The text behind the public part is tokenised on
its own, so even the place where the public tokens end says nothing about it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import jinja2

from sottovoce.errors import CorruptFileError, UnsupportedModelError, UsageError
from sottovoce.models.sandbox import TemplateEnvironment
from sottovoce.models.tokenizer import Tokenizer

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

MAX_TEMPLATE = 1 << 16
# Two placeholder texts without a common beginning or end, and with nothing that a template would strip.
_PLACEHOLDERS = ("q7Xv", "Zk3W")


@dataclass(frozen=True)
class Prompt:
    """Token ids: a public beginning that the server may see, then the private rest."""

    public: tuple[int, ...]
    private: tuple[int, ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.public + self.private

    def __len__(self) -> int:
        return len(self.public) + len(self.private)


class ChatTemplate:
    """A model's Jinja chat template, rendered in Jinja's sandbox with nothing but the messages in reach."""

    def __init__(self, source: str, variables: Mapping[str, str] | None = None) -> None:
        if len(source) > MAX_TEMPLATE:
            raise CorruptFileError(f"chat template of {len(source)} characters, the limit is {MAX_TEMPLATE}")
        self.source = source
        self.variables = dict(variables or {})

    def render(self, messages: Sequence[Message], *, continue_reply: bool = True) -> str:
        """The prompt's text; with `continue_reply` it ends where the assistant's answer begins."""
        # Role and content only: anything else that a message has, such as a name, would pass for a constant.
        plain = [{key: m[key] for key in ("role", "content") if key in m} for m in messages]
        try:
            environment, template = self._compiled
            environment.begin()
            text = template.render(
                messages=plain,
                add_generation_prompt=continue_reply,
                **self.variables,
            )
            text.encode()  # a template can write halves of surrogate pairs, which no tokenizer takes
            return text
        except Exception as error:  # a template is a program that somebody else wrote: it can fail in any way
            raise UnsupportedModelError(f"the model's chat template fails: {error}") from error

    def constant_beginning(
        self, messages: Sequence[Message], *, public_system: bool = False, public_messages: int = 0
    ) -> str:
        """The text that every chat with messages of these roles begins with.

        With `public_system` the system message's text counts as constant, i.e. the user agreed to publish it;
        so does the text of the first `public_messages` messages.
        """

        def masked(placeholder: str) -> str:
            kept = ("system",) if public_system else ()
            return self.render(
                [
                    m if m["role"] in kept or i < public_messages else {**m, "content": placeholder}
                    for i, m in enumerate(messages)
                ]
            )

        return os.path.commonprefix([masked(placeholder) for placeholder in _PLACEHOLDERS])

    def behind_answer(self, earlier: Sequence[Message], more: Sequence[Message]) -> str | None:
        """The text from the end of an answer to `earlier` to where the answer to `more` begins.

        None if the template writes earlier messages differently once more follow.
        """
        mark = secrets.token_hex(16)  # stands for the answer
        rendered = self.render([*earlier, {"role": "assistant", "content": mark}, *more])
        before, found, behind = rendered.partition(mark)
        return behind if found and mark not in behind and before == self.render(earlier) else None

    def prompt(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        *,
        public_system: bool = False,
        public_messages: int = 0,
    ) -> Prompt:
        """Tokens of a chat, split into the template's constant beginning and the private rest."""
        _check_messages(messages)
        text = self.render(messages)
        constant = self.constant_beginning(
            messages, public_system=public_system, public_messages=public_messages
        )
        if not text.startswith(constant):
            raise UnsupportedModelError(
                "the model's chat template changes its beginning with the message, so no part of it can be "
                "public; use a plain prompt"
            )
        return Prompt(tuple(tokenizer.encode(constant)), tuple(tokenizer.encode(text[len(constant) :])))

    @cached_property
    def _compiled(self) -> tuple[TemplateEnvironment, jinja2.Template]:
        environment = TemplateEnvironment()
        try:
            return environment, environment.from_string(self.source)
        except jinja2.TemplateError as error:
            raise UnsupportedModelError(f"the model's chat template is not valid Jinja: {error}") from error


def plain_prompt(tokenizer: Tokenizer, text: str) -> Prompt:
    """Text as it stands, behind the model's constant first token (which is public)."""
    first = tokenizer.bos_id if tokenizer.bos_id is not None else next(iter(tokenizer.eos_ids), None)
    private = tuple(tokenizer.encode(text))
    if not private:
        raise UsageError("the prompt is empty; write at least one word")
    return Prompt(() if first is None else (first,), private)


def _check_messages(messages: Sequence[Message]) -> None:
    if not messages:
        raise UsageError("a chat needs at least one message")
    for message in messages:
        if message.get("role") not in ("system", "user", "assistant") or "content" not in message:
            raise UsageError("every chat message needs a role (system, user, assistant) and a content")
