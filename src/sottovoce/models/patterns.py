"""Patterns by which a tokenizer cuts text: refused unless matching is bounded by their structure.

A client takes its tokenizer from the server, and runs its regular expressions on the prompt. Expressions with
back-tracking can take exponential time, `(a+)+c`, and a server could so find out about a prompt by how long
the client is silent. Accepted is what patterns of real tokenizers are made of, and no more:

- characters, classes, alternatives, groups, looking ahead or behind; no references and no recursion;
- `*`, `+` and `{n,}` on a character or class outside of groups, at most twice in an alternative, and the
  second time with nothing behind it that could fail;
- `?` on anything; `{n,m}` on a character or class;
- at most `_WAYS` ways to choose among alternatives and bounded repetitions, over all the pattern, and
  `_UNBOUNDED` unbounded repetitions.

An attempt at one place of the text then takes time linear in its length, and cutting it at most quadratic.
"""

from __future__ import annotations

import re

from sottovoce.errors import CorruptFileError, UnsupportedModelError

MAX_PATTERN = 1024
_WAYS = 256
_UNBOUNDED = 16
_DEPTH = 8
_LONG = 64  # a repetition of more counts as unbounded

_ESCAPE = re.compile(
    r"\\(?:[pP]\{\^?\w+\}|x[0-9a-fA-F]{2}|x\{[0-9a-fA-F]+\}|u[0-9a-fA-F]{4}|[sSdDwWhHrntfvbBAzZ]|[^\w\s])"
)
_GROUP = re.compile(r"\((?:\?(?:i?(?:-i)?:|<?[=!]|>)|(?!\?))")
# Behind {n,m} a `?` or `+` is another quantifier in this dialect, hence refused.
_REPEAT = re.compile(r"([*+?])[?+]?|\{(\d{1,4})?(,?)(\d{1,4})?\}")


def check_pattern(pattern: str) -> None:
    """UnsupportedModelError for a pattern that could take long, CorruptFileError for a malformed one."""
    if len(pattern) > MAX_PATTERN:
        raise CorruptFileError(
            f"tokenizer: a pattern of {len(pattern)} characters, the limit is {MAX_PATTERN}"
        )
    parser = _Parser(pattern)
    ways = parser.alternatives(0)
    if parser.at < len(pattern):
        raise _refused("a ')' too many")
    if ways > _WAYS or parser.unbounded > _UNBOUNDED:
        raise _refused("too many choices")


class _Parser:
    """One pass over a pattern; `at` is where it is."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.at, self.unbounded = pattern, 0, 0

    def alternatives(self, depth: int) -> int:
        """Up to the end of the group; the number of ways through it."""
        if depth > _DEPTH:
            raise _refused("groups in groups in groups")
        ways = self._sequence(depth)
        while self._next() == "|":
            self.at += 1
            ways += self._sequence(depth)
        return ways

    def _sequence(self, depth: int) -> int:
        ways, unbounded = 1, 0
        while (character := self._next()) not in ("", "|", ")"):
            inside, group = self._atom(character, depth), character == "("
            lowest, highest = self._repeat()
            endless = highest is None or highest > _LONG
            if group and (lowest, highest) not in ((1, 1), (0, 1)):
                raise _refused("a repeated group")
            if endless and depth:
                raise _refused("a repetition inside of a group")
            if unbounded == 2 and lowest:
                raise _refused("two repetitions with something behind them")
            unbounded += endless
            if unbounded > 2:
                raise _refused("more than two repetitions in a row")
            if group:
                ways *= inside if lowest else inside + 1
            elif not endless:
                ways *= 1 + (highest or 0) - lowest
            if ways > _WAYS:
                raise _refused("too many choices")
            self.unbounded += endless
        return ways

    def _atom(self, character: str, depth: int) -> int:
        """Past one character, class or group; the ways through it."""
        if character == "(":
            opening = _GROUP.match(self.pattern, self.at)
            if opening is None:
                raise _refused("a kind of group that is not known to be harmless")
            self.at = opening.end()
            ways = self.alternatives(depth + 1)
            self._expect(")")
            return ways
        if character == "[":
            self._class(0)
        elif character == "\\":
            self._escape()
        elif self._quantifier() is not None:
            raise _refused("a repetition of nothing, or of a repetition")
        else:
            self.at += 1
        return 1

    def _class(self, depth: int) -> None:
        """Past [...], which may hold other classes."""
        if depth > _DEPTH:
            raise _refused("classes in classes in classes")
        self.at += 1
        if self._next() == "^":
            self.at += 1
        first = True
        while (character := self._next()) != "]" or first:
            if character == "":
                raise CorruptFileError("tokenizer: a pattern with a '[' that does not end")
            first = False
            if character == "[":
                self._class(depth + 1)
            elif character == "\\":
                self._escape()
            else:
                self.at += 1
        self.at += 1

    def _escape(self) -> None:
        found = _ESCAPE.match(self.pattern, self.at)
        if found is None:
            raise _refused("an escape that is not known to be harmless")
        self.at = found.end()

    def _repeat(self) -> tuple[int, int | None]:
        """Past a quantifier, if there is one: at least and at most how often."""
        found = self._quantifier()
        if found is None:
            return 1, 1
        self.at = found.end()
        if found[1]:
            return int(found[1] == "+"), 1 if found[1] == "?" else None
        lowest, highest = int(found[2] or 0), found[4]
        if not found[3]:
            highest = found[2]
        return lowest, None if highest is None else max(lowest, int(highest))

    def _quantifier(self) -> re.Match[str] | None:
        found = _REPEAT.match(self.pattern, self.at)
        return None if found is None or found[0] in ("{}", "{,}") else found

    def _next(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def _expect(self, character: str) -> None:
        if self._next() != character:
            raise CorruptFileError(f"tokenizer: a pattern without a {character!r} that belongs there")
        self.at += 1


def _refused(why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"tokenizer: a pattern that might take very long on some texts ({why}); use a model with another"
        " tokenizer.json"
    )
