"""What an attack is: something that runs against real halves of an engine and says how much it got.

Every attack carries controls: the same code against a target in which one safeguard is left out. If a control
does not break, the attack proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

from sottovoce.attacks.prompts import Prompts, read_prompts
from sottovoce.models import Model, load_model

Tokens = Sequence[int]
Progress = Callable[[int, int, str], None]


def _silent(done: int, total: int, what: str) -> None:
    pass


@dataclass
class Setting:
    """What an attack is run with. samples: prompts, trials or sessions, as the attack counts them."""

    profile: str
    samples: int = 100
    model_name: str = "smollm2-135m"
    text: str | None = None
    length: int = 24  # tokens of a prompt
    progress: Progress = _silent
    loaded: Model | None = None  # instead of model_name

    @cached_property
    def model(self) -> Model:
        return self.loaded if self.loaded is not None else load_model(self.model_name)

    def for_control(self) -> Setting:
        """The same with a quarter of the samples, at least eight: enough to see that an attack can break."""
        fewer = min(self.samples, max(8, self.samples // 4))
        return replace(self, samples=fewer, loaded=self.model)

    @cached_property
    def prompts(self) -> Prompts:
        return read_prompts(self.model, self.text, self.samples, self.length)


@dataclass(frozen=True)
class Control:
    """The same attack where a safeguard is missing."""

    name: str
    success_rate: float


@dataclass(frozen=True)
class Outcome:
    """success_rate: share of tokens, weights or trials that the attacker got. details: whatever explains
    it."""

    success_rate: float
    controls: tuple[Control, ...]
    samples: int
    details: dict[str, Any] = field(default_factory=dict)


class Attack(Protocol):
    """target: the engine. profiles: what it can be run against, the first by default. samples: by default."""

    name: str
    target: str
    profiles: tuple[str, ...]
    samples: int
    says: str

    def run(self, setting: Setting) -> Outcome: ...


def to_json(attack: Attack, setting: Setting, outcome: Outcome) -> dict[str, Any]:
    """The keys that `sottovoce attack --json` prints."""
    return {
        "attack": attack.name,
        "target": attack.target,
        "profile": setting.profile,
        "samples": outcome.samples,
        "success_rate": outcome.success_rate,
        "control_success_rate": min((c.success_rate for c in outcome.controls), default=None),
        "controls": [{"name": c.name, "success_rate": c.success_rate} for c in outcome.controls],
        "details": outcome.details,
    }
