"""Counts and times of the proxy, as Prometheus reads them; vLLM's names where vLLM has one. Never content."""

from __future__ import annotations

from ..parties.prometheus import CONTENT_TYPE, Counter, Gauge, RequestMetrics
from .jobs import Answer, Happening


class Metrics(RequestMetrics):
    """All that the proxy counts. Times count from when an answer has its session."""

    def __init__(self) -> None:
        super().__init__()
        self.failed = Counter("sottovoce_request_failures_total", "Requests without an answer.")
        self.refused = Counter("sottovoce_requests_refused_total", "Requests turned away with 429.")
        self.sessions_opened = Counter("sottovoce_sessions_opened_total", "Sessions set up for an answer.")
        self.cached_tokens = Counter(
            "sottovoce_cached_tokens_total", "Tokens of prompts that a session held already."
        )
        self.bytes = Counter("sottovoce_bytes_total", "Bytes of frames, without TLS.")
        self.rounds = Counter("sottovoce_rounds_total", "Exchanges with the server.")

    def ended(self, happening: Happening) -> None:
        """Book the end of a request."""
        if not isinstance(happening, Answer):
            self.failed.add(error=type(happening).__name__)
            return
        done, usage = happening.completion, happening.completion.usage
        self.finished.add(finished_reason=done.finish_reason)
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
        return self.page(
            [
                Gauge("vllm:num_requests_running", "Answers being made.", lambda: running),
                Gauge("vllm:num_requests_waiting", "Requests waiting for a session.", lambda: waiting),
            ]
        )


__all__ = ["CONTENT_TYPE", "Metrics"]
