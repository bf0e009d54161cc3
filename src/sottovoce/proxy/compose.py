"""From a request to token ids: what is public, what is private, and the same ids as before for what was said.

Clients of chat interfaces send the whole history every time. The ids of an earlier answer are those that were
sampled, not those that its text would be split into, so answered chats are remembered here with their ids;
whatever history continues one of them begins with exactly the tokens that its session holds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

from ..errors import UsageError
from ..models.card import ModelCard
from ..models.chat import Message, Prompt
from .fields import Asked
from .problems import wrong

_REMEMBERED = 64

_Key = tuple[int, tuple[tuple[str, str], ...]]


class Histories:
    """Answered chats, oldest forgotten first. In memory only; private like the chats themselves."""

    def __init__(self) -> None:
        self._tokens: OrderedDict[_Key, tuple[int, ...]] = OrderedDict()
        self._lock = Lock()

    def remember(
        self, messages: Sequence[Message], public: int, answer: str, tokens: tuple[int, ...]
    ) -> None:
        """tokens: of the whole chat with its answer."""
        key = _key([*messages, {"role": "assistant", "content": answer}], public)
        with self._lock:
            self._tokens[key] = tokens
            self._tokens.move_to_end(key)
            while len(self._tokens) > _REMEMBERED:
                self._tokens.popitem(last=False)

    def longest(self, messages: Sequence[Message], public: int) -> tuple[int, tuple[int, ...]]:
        """(n, tokens) of the longest remembered chat that these messages begin with; (0, ()) if none."""
        with self._lock:
            for n in range(len(messages) - 1, 1, -1):
                if messages[n - 1]["role"] == "assistant":
                    found = self._tokens.get(_key(messages[:n], public))
                    if found is not None:
                        return n, found
        return 0, ()


def compose(card: ModelCard, asked: Asked, histories: Histories) -> Prompt:
    """All tokens up to where the answer begins.

    Problem or UsageError for what cannot be said to this model.
    """
    if not asked.chat:
        return _text_prompt(card, asked)
    if card.template is None:
        raise UsageError(f"model {card.name} has no chat template; use /v1/completions")
    whole = card.chat(asked.messages, public_messages=asked.public)
    if not whole.private:
        raise UsageError("the chat is empty; write at least one word")
    n, known = histories.longest(asked.messages, asked.public)
    if n and known[: len(whole.public)] == whole.public:
        behind = card.template.behind_answer(asked.messages[: n - 1], asked.messages[n:])
        if behind is not None:
            tokens = (*known, *card.tokenizer.encode(behind))
            return Prompt(whole.public, tokens[len(whole.public) :])
    return whole


def _text_prompt(card: ModelCard, asked: Asked) -> Prompt:
    if asked.text is not None:
        return card.plain(asked.text)
    if max(asked.tokens) >= card.config.vocab_size:
        raise wrong("prompt", f"token ids of this model are below {card.config.vocab_size}")
    # Given token ids are the user's own, so none of them is public.
    return Prompt((), asked.tokens)


def _key(messages: Sequence[Message], public: int) -> _Key:
    """Clients trim answers before they send them back."""
    return public, tuple((m["role"], m["content"].strip()) for m in messages)
