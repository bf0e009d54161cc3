"""Where chat templates run: Jinja's sandbox, with a budget.

A template is a program that the server wrote and that runs at the client, on the user's text. The sandbox
keeps it away from Python; the budget ends one that would not end. Every loop's steps and every call are
counted, so recursion counts too. Powers and repetitions, which take memory in one step, have bounds of
their own. What is left to a hostile template: to use some memory, and to say something by the *length* of
its text (see SECURITY.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 200_000
MAX_REPEATED = 1 << 20  # characters or items that one repetition may make, and the largest number in a call


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """An environment for one template. SecurityError, a TemplateError, when its budget is spent."""

    intercepted_binops = frozenset(("*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True)
        self.steps = 0
        self.globals.pop("lipsum", None)
        self.globals["raise_exception"] = _raise_exception
        self.filters["_counted"] = self._counted

    def begin(self) -> None:
        """A new rendering: the budget is whole again."""
        self.steps = 0

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        self._step()
        for value in (*args, *kwargs.values()):
            if isinstance(value, int) and abs(value) > MAX_REPEATED:
                raise SecurityError("a template asks for too much at once")
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:  # noqa: D102
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "**":
            if not numbers or abs(left) > 1 << 16 or abs(right) > 16:
                raise SecurityError("a template raises to a large power")
        elif operator == "%" and not numbers:
            raise SecurityError("a template formats text with %; use the filter")
        elif operator == "*" and not numbers:
            sequence, count = (right, left) if isinstance(left, int) else (left, right)
            if not isinstance(count, int) or len(sequence) * count > MAX_REPEATED:
                raise SecurityError("a template repeats something too often")
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, "_counted", [], [], None, None, lineno=loop.lineno)
        return tree

    def _counted(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._step()
            yield item

    def _step(self) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise SecurityError(f"a template takes more than {MAX_STEPS} steps")


def _raise_exception(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message)[:200])
