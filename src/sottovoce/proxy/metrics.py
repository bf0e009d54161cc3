"""Counts and times of the proxy, as Prometheus reads them; vLLM's names where vLLM has one. Never content."""

from __future__ import annotations

from ..parties.prometheus import CONTENT_TYPE, Counter, Gauge, Histogram, render
from .jobs import Answer, Happening

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)


class Metrics:
    """All that the proxy counts."""

    def __init__(self) -> None:
        self.finished_requests = Counter("vllm:request_success_total", "Answers by the reason of their end.")
        self.failed = Counter("sottovoce:request_failures_total", "Requests without an answer.")
        self.refused = Counter("sottovoce:requests_refused_total", "Requests turned away with 429.")
        self.sessions_opened = Counter("sottovoce:sessions_opened_total", "Sessions set up for an answer.")
        self.prompt_tokens = Counter("vllm:prompt_tokens_total", "Tokens of prompts.")
        self.cached_tokens = Counter("sottovoce:cached_tokens_total", "Of these, held by a session already.")
        self.new_tokens = Counter("vllm:generation_tokens_total", "Tokens generated.")
        self.bytes = Counter("sottovoce:bytes_total", "Bytes of frames, without TLS.")
        self.rounds = Counter("sottovoce:rounds_total", "Exchanges with the server.")
        self.first = Histogram(
            "vllm:time_to_first_token_seconds", "From the session to the first token.", _SECONDS
        )
        self.each = Histogram("vllm:time_per_output_token_seconds", "Each token but the first.", _SECONDS)
        self.whole = Histogram(
            "vllm:e2e_request_latency_seconds", "From the session to the last token.", _SECONDS
        )

    def finished(self, happening: Happening) -> None:
        """Book the end of a request."""
        if not isinstance(happening, Answer):
            self.failed.add(error=type(happening).__name__)
            return
        done, usage = happening.completion, happening.completion.usage
        self.finished_requests.add(finished_reason=done.finish_reason)
        self.prompt_tokens.add(happening.prompt_tokens)
        self.cached_tokens.add(happening.cached_tokens)
        self.new_tokens.add(usage.completion_tokens)
        self.bytes.add(usage.bytes_up, direction="up")
        self.bytes.add(usage.bytes_down, direction="down")
        self.rounds.add(usage.rounds)
        later = [seconds for seconds, _ in done.per_token]
        self.first.observe(max(0.0, usage.seconds - sum(later)))
        self.whole.observe(usage.seconds)
        for seconds in later:
            self.each.observe(seconds)

    def render(self, running: int, waiting: int) -> str:
        """The exposition text."""
        now = [
            Gauge("vllm:num_requests_running", "Answers being made.", lambda: running),
            Gauge("vllm:num_requests_waiting", "Requests waiting for a session.", lambda: waiting),
        ]
        return render([*now, *vars(self).values()])


__all__ = ["CONTENT_TYPE", "Metrics"]
