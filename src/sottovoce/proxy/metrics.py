"""Counts and times of the proxy, as Prometheus reads them; vLLM's names where vLLM has one. Never content."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from threading import Lock

from .jobs import Answer, Happening

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)


class Counter:
    """A number that grows, by label values."""

    def __init__(self, name: str, help_text: str, *labels: str) -> None:
        self.name, self.help, self._labels = name, help_text, labels
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0}
        self._lock = Lock()

    def add(self, amount: float = 1, *values: str) -> None:
        with self._lock:
            self._values[values] = self._values.get(values, 0) + amount

    def lines(self) -> Iterator[str]:
        yield f"# HELP {self.name} {self.help}"
        yield f"# TYPE {self.name} counter"
        with self._lock:
            items = sorted(self._values.items())
        for values, number in items:
            labels = ",".join(f'{k}="{v}"' for k, v in zip(self._labels, values, strict=True))
            yield f"{self.name}{{{labels}}} {number:g}" if labels else f"{self.name} {number:.16g}"


class Histogram:
    """How often a time fell below each bound."""

    def __init__(self, name: str, help_text: str, bounds: tuple[float, ...] = _SECONDS) -> None:
        self.name, self.help, self.bounds = name, help_text, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = Lock()

    def observe(self, value: float) -> None:
        with self._lock:
            self._counts[bisect_left(self.bounds, value)] += 1
            self._sum += value

    def lines(self) -> Iterator[str]:
        yield f"# HELP {self.name} {self.help}"
        yield f"# TYPE {self.name} histogram"
        with self._lock:
            counts, total = list(self._counts), self._sum
        seen = 0
        for bound, count in zip((*self.bounds, float("inf")), counts, strict=True):
            seen += count
            shown = "+Inf" if bound == float("inf") else f"{bound:g}"
            yield f'{self.name}_bucket{{le="{shown}"}} {seen}'
        yield f"{self.name}_sum {total:g}"
        yield f"{self.name}_count {seen}"


class Metrics:
    """All that the proxy counts."""

    def __init__(self) -> None:
        self.finished_requests = Counter(
            "vllm:request_success_total", "Answers by the reason of their end.", "finished_reason"
        )
        self.failed = Counter("sottovoce:request_failures_total", "Requests without an answer.", "error")
        self.refused = Counter("sottovoce:requests_refused_total", "Requests turned away with 429.")
        self.sessions_opened = Counter("sottovoce:sessions_opened_total", "Sessions set up for an answer.")
        self.prompt_tokens = Counter("vllm:prompt_tokens_total", "Tokens of prompts.")
        self.cached_tokens = Counter("sottovoce:cached_tokens_total", "Of these, held by a session already.")
        self.new_tokens = Counter("vllm:generation_tokens_total", "Tokens generated.")
        self.bytes = Counter("sottovoce:bytes_total", "Bytes of frames, without TLS.", "direction")
        self.rounds = Counter("sottovoce:rounds_total", "Exchanges with the server.")
        self.first = Histogram("vllm:time_to_first_token_seconds", "From the session to the first token.")
        self.each = Histogram("vllm:time_per_output_token_seconds", "Each token but the first.")
        self.whole = Histogram("vllm:e2e_request_latency_seconds", "From the session to the last token.")

    def finished(self, happening: Happening) -> None:
        """Book the end of a request."""
        if not isinstance(happening, Answer):
            self.failed.add(1, type(happening).__name__)
            return
        done, usage = happening.completion, happening.completion.usage
        self.finished_requests.add(1, done.finish_reason)
        self.prompt_tokens.add(happening.prompt_tokens)
        self.cached_tokens.add(happening.cached_tokens)
        self.new_tokens.add(usage.completion_tokens)
        self.bytes.add(usage.bytes_up, "up")
        self.bytes.add(usage.bytes_down, "down")
        self.rounds.add(usage.rounds)
        later = [seconds for seconds, _ in done.per_token]
        self.first.observe(max(0.0, usage.seconds - sum(later)))
        self.whole.observe(usage.seconds)
        for seconds in later:
            self.each.observe(seconds)

    def render(self, running: int, waiting: int) -> str:
        """The exposition text."""
        lines = [
            "# HELP vllm:num_requests_running Answers being made.",
            "# TYPE vllm:num_requests_running gauge",
            f"vllm:num_requests_running {running}",
            "# HELP vllm:num_requests_waiting Requests waiting for a session.",
            "# TYPE vllm:num_requests_waiting gauge",
            f"vllm:num_requests_waiting {waiting}",
        ]
        for metric in vars(self).values():
            lines += metric.lines()
        return "\n".join(lines) + "\n"
