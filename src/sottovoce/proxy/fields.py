"""The body of a request, checked: what it asks for, or a 400 that names the field.

Fields that would change the meaning of an answer and cannot be honoured are refused, never ignored; fields
that only label a request (`user`, `metadata`, `store`, …) are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..models.chat import Message
from ..parties import SamplingOptions
from .problems import Problem, wrong

MAX_MESSAGES = 1024
MAX_STOPS = 16
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_ONE = "one answer a request; ask again for another"
_TOOLS = "no engine calls tools; put what the model should know into the messages"
_SCORES = "probabilities are not given out; the text and its token count are"
_PENALTY = "tokens are chosen by temperature, top_p and top_k only"
_GRAMMAR = "answers are free text; ask for the form in the prompt and check it yourself"
_TEXT = "text in, text out"
_TEMPLATE = "the model's own chat template is used; for another, send the text to /v1/completions"
_STOP = "an answer ends at the model's end token, at a text of `stop`, or at max_tokens"
_SINGLE = "send the whole text as one prompt"
# Field -> values that mean "nothing special" and are accepted; why others are not, and what to do.
_NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "n": ((None, 1), _ONE),
    "best_of": ((None, 1), _ONE),
    "use_beam_search": ((None, False), _ONE),
    "length_penalty": ((None, 1), _ONE),
    "tools": ((None, []), _TOOLS),
    "tool_choice": ((None, "none", "auto"), _TOOLS),
    "functions": ((None, []), _TOOLS),
    "function_call": ((None, "none", "auto"), _TOOLS),
    "web_search_options": ((None,), _TOOLS),
    "logprobs": ((None, False), _SCORES),
    "top_logprobs": ((None, 0), _SCORES),
    "prompt_logprobs": ((None, 0), _SCORES),
    "logit_bias": ((None, {}), _PENALTY),
    "presence_penalty": ((None, 0), _PENALTY),
    "frequency_penalty": ((None, 0), _PENALTY),
    "repetition_penalty": ((None, 1), _PENALTY),
    "min_p": ((None, 0), _PENALTY),
    "allowed_token_ids": ((None, []), _PENALTY),
    "bad_words": ((None, []), _PENALTY),
    "min_tokens": ((None, 0), _STOP + "; ignore_eos: true leaves the end token out of it"),
    "stop_token_ids": ((None, []), _STOP),
    "include_stop_str_in_output": ((None, False), _STOP),
    "response_format": ((None, {"type": "text"}), _GRAMMAR),
    "guided_json": ((None,), _GRAMMAR),
    "guided_regex": ((None,), _GRAMMAR),
    "guided_choice": ((None,), _GRAMMAR),
    "guided_grammar": ((None,), _GRAMMAR),
    "structured_outputs": ((None,), _GRAMMAR),
    "echo": ((None, False), _SINGLE),
    "suffix": ((None, ""), _SINGLE),
    "truncate_prompt_tokens": ((None,), _SINGLE),
    "prompt_embeds": ((None,), _SINGLE),
    "audio": ((None,), _TEXT),
    "modalities": ((None, ["text"]), _TEXT),
    "prediction": ((None,), _TEXT),
    "skip_special_tokens": ((None, True), _TEXT),
    "chat_template": ((None,), _TEMPLATE),
    "chat_template_kwargs": ((None, {}), _TEMPLATE),
    "add_generation_prompt": ((None, True), _TEMPLATE),
    "continue_final_message": ((None, False), _TEMPLATE),
}


@dataclass(frozen=True)
class Asked:
    """A request for one answer: a chat (`messages`) or the continuation of a text (`text` or `tokens`).

    public: how many messages at the beginning are marked `"private": false`. late: how many marks came behind
    a private message, where they mean nothing. max_tokens: None for as many as the proxy's default and the
    context allow. ignore_eos: as vLLM has it, for measuring: the model's end token does not end the answer.
    """

    model: str
    messages: tuple[Message, ...] = ()
    text: str | None = None
    tokens: tuple[int, ...] = ()
    public: int = 0
    late: int = 0
    max_tokens: int | None = None
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    stream: bool = False
    include_usage: bool = False

    @property
    def chat(self) -> bool:
        return bool(self.messages)


def parse_chat(body: Mapping[str, Any], defaults: SamplingOptions) -> Asked:
    """The body of /v1/chat/completions."""
    messages, public, late = parse_messages(body.get("messages"))
    return Asked(
        messages=messages,
        public=public,
        late=late,
        **_common(body, defaults, ("max_completion_tokens", "max_tokens")),
    )


def parse_completion(body: Mapping[str, Any], defaults: SamplingOptions) -> Asked:
    """The body of /v1/completions."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    text: str | None = None
    tokens: tuple[int, ...] = ()
    if isinstance(prompt, str) and prompt:
        text = _text(prompt, "prompt")
    elif isinstance(prompt, list) and prompt and all(type(t) is int and t >= 0 for t in prompt):
        tokens = tuple(prompt)
    else:
        raise wrong(
            "prompt", "prompt must be one text or one list of token ids, not empty; send several in turn"
        )
    return Asked(text=text, tokens=tokens, **_common(body, defaults, ("max_tokens",)))


def parse_messages(value: Any) -> tuple[tuple[Message, ...], int, int]:
    """Messages by role and text; how many leading ones are public; how many marks came too late."""
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        raise wrong("messages", f"messages must be a list of 1 to {MAX_MESSAGES} messages")
    messages: list[Message] = []
    public = late = 0
    for i, item in enumerate(value):
        where = f"messages[{i}]"
        if not isinstance(item, dict):
            raise wrong(where, f"{where} must be an object with role and content")
        role = item.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise wrong(where + ".role", f"{where}.role must be system, developer, user or assistant")
        for name in ("tool_calls", "function_call", "audio", "refusal"):
            if item.get(name):
                raise wrong(f"{where}.{name}", f"{where}.{name} is not supported")
        private = item.get("private", True)
        if not isinstance(private, bool):
            raise wrong(where + ".private", f"{where}.private must be true or false")
        if not private and public == i:
            public += 1
        elif not private:
            late += 1
        messages.append({"role": _ROLES[role], "content": _content(item.get("content"), where)})
    if public == len(messages):
        raise wrong("messages", "at least the last message must be private, else there is nothing to protect")
    return tuple(messages), public, late


def _content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return _text(value, where + ".content")
    if isinstance(value, list) and value:
        parts = []
        for part in value:
            if not isinstance(part, dict) or part.get("type") != "text":
                raise wrong(where + ".content", f"{where}.content: only parts of type text are supported")
            parts.append(_text(part.get("text"), where + ".content"))
        return "".join(parts)
    raise wrong(where + ".content", f"{where}.content must be a text or a list of text parts")


def _text(value: Any, where: str) -> str:
    """A text that can be encoded: JSON may smuggle halves of surrogate pairs."""
    if not isinstance(value, str):
        raise wrong(where, f"{where} must be a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise wrong(where, f"{where} holds an unpaired surrogate") from None
    return value


def _common(body: Mapping[str, Any], defaults: SamplingOptions, limit_names: Sequence[str]) -> dict[str, Any]:
    for name, (accepted, why) in _NEUTRAL.items():
        # `== 1` would take True for 1, and the type checks below are for numbers only.
        if name in body and not any(_same(body[name], value) for value in accepted):
            raise wrong(name, f"{name} is not supported by this server: {why}", "unsupported_parameter")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise wrong("model", "model must be the id that /v1/models lists")
    limit = next((body[name] for name in limit_names if body.get(name) is not None), None)
    if limit is not None and (type(limit) is not int or limit < 1):
        raise wrong(limit_names[0], f"{limit_names[0]} must be a whole number of at least 1")
    stream = _flag(body, "stream")
    options = body.get("stream_options")
    if options is not None and (not stream or not isinstance(options, dict)):
        raise wrong("stream_options", "stream_options is an object, and only for stream: true")
    return {
        "model": model,
        "max_tokens": limit,
        "sampling": _sampling(body, defaults),
        "stop": _stops(body.get("stop")),
        "ignore_eos": _flag(body, "ignore_eos"),
        "stream": stream,
        "include_usage": _flag(options or {}, "include_usage"),
    }


def _sampling(body: Mapping[str, Any], defaults: SamplingOptions) -> SamplingOptions:
    seed, top_k = body.get("seed"), body.get("top_k")
    if seed is not None and (type(seed) is not int or not -(1 << 63) <= seed < 1 << 63):
        raise wrong("seed", "seed must be a whole number of 64 bits")
    if top_k is not None and (type(top_k) is not int or not -1 <= top_k <= 1 << 20):
        raise wrong("top_k", "top_k must be a whole number, 0 for all tokens")
    return SamplingOptions(
        _number(body, "temperature", 0.0, 2.0, defaults.temperature),
        _number(body, "top_p", 1e-6, 1.0, defaults.top_p),
        defaults.top_k if top_k is None else max(0, top_k),
        defaults.seed if seed is None else seed & ((1 << 63) - 1),
    )


def _number(body: Mapping[str, Any], name: str, low: float, high: float, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if type(value) not in (int, float) or not low <= value <= high:  # no NaN is in between
        raise wrong(name, f"{name} must be a number from {low:g} to {high:g}")
    return float(value)


def _stops(value: Any) -> tuple[str, ...]:
    values = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(values, list) or len(values) > MAX_STOPS:
        raise wrong("stop", f"stop must be a text or a list of up to {MAX_STOPS} texts")
    return tuple(_text(stop, "stop") for stop in values if stop != "")


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value not in (None, True, False) or type(value) in (int, float):
        raise wrong(name, f"{name} must be true or false")
    return bool(value)


def _same(a: Any, b: Any) -> bool:
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def object_of(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Problem(400, "the body must be a JSON object")
    return value
