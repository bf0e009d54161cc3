"""Numbers in Prometheus' text format: counters, gauges and histograms with labels. Thread-safe."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from threading import Lock

Labels = tuple[tuple[str, str], ...]
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500)


class Metric:
    """One name with its help, and a value for every set of labels."""

    kind = ""

    def __init__(self, name: str, help: str) -> None:
        self.name, self.help = name, help
        self._lock = Lock()

    def lines(self) -> list[str]:
        """Without HELP and TYPE."""
        raise NotImplementedError

    def text(self) -> str:
        lines = self.lines()
        head = [f"# HELP {self.name} {self.help}", f"# TYPE {self.name} {self.kind}"]
        return "\n".join([*head, *lines]) + "\n" if lines else ""


class Counter(Metric):
    """A number that only grows."""

    kind = "counter"

    def __init__(self, name: str, help: str, **labels: str) -> None:
        """labels: a set of labels to show from the start."""
        super().__init__(name, help)
        self._values: dict[Labels, float] = {_key(labels): 0.0} if labels else {}

    def add(self, amount: float = 1.0, **labels: str) -> None:
        with self._lock:
            key = _key(labels)
            self._values[key] = self._values.get(key, 0.0) + amount

    def value(self, **labels: str) -> float:
        with self._lock:
            return self._values.get(_key(labels), 0.0)

    def lines(self) -> list[str]:
        with self._lock:
            return [f"{self.name}{_braces(key)} {_number(v)}" for key, v in sorted(self._values.items())]


class Gauge(Metric):
    """Numbers that are looked up when somebody asks."""

    kind = "gauge"

    def __init__(self, name: str, help: str, read: Callable[[], float], **labels: str) -> None:
        super().__init__(name, help)
        self._read, self._labels = read, _key(labels)

    def lines(self) -> list[str]:
        return [f"{self.name}{_braces(self._labels)} {_number(self._read())}"]


class Histogram(Metric):
    """How often a value was below each of `bounds`."""

    kind = "histogram"

    def __init__(self, name: str, help: str, bounds: Sequence[float], **labels: str) -> None:
        super().__init__(name, help)
        self._bounds, self._labels = list(bounds), labels
        self._counts, self._sum = [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float, times: int = 1) -> None:
        with self._lock:
            self._counts[bisect_left(self._bounds, value)] += times
            self._sum += value * times

    def lines(self) -> list[str]:
        with self._lock:
            counts, total = list(self._counts), self._sum
        lines, seen = [], 0
        for bound, count in zip([*map(_number, self._bounds), "+Inf"], counts, strict=True):
            seen += count
            lines.append(f"{self.name}_bucket{_braces(_key({**self._labels, 'le': bound}))} {seen}")
        key = _braces(_key(self._labels))
        return [*lines, f"{self.name}_sum{key} {_number(total)}", f"{self.name}_count{key} {seen}"]


class RequestMetrics:
    """What vLLM counts of requests, under its names: a server has it, and a proxy. label: of all of them."""

    def __init__(self, **label: str) -> None:
        self.prompt_tokens = Counter("vllm:prompt_tokens_total", "Tokens of prompts.", **label)
        self.new_tokens = Counter("vllm:generation_tokens_total", "Tokens behind prompts.", **label)
        self.finished = Counter("vllm:request_success_total", "Requests that ended.", **label)
        self.first = Histogram(
            "vllm:time_to_first_token_seconds", "From the prompt to the first token.", SECONDS, **label
        )
        self.each = Histogram("vllm:time_per_output_token_seconds", "Each further token.", SECONDS, **label)
        self.whole = Histogram(
            "vllm:e2e_request_latency_seconds", "From the prompt to its last token.", SECONDS, **label
        )

    def page(self, gauges: Sequence[Metric] = ()) -> str:
        """These gauges, and every metric that this object has, in Prometheus' text format."""
        return render([*gauges, *(value for value in vars(self).values() if isinstance(value, Metric))])


def render(metrics: Sequence[Metric]) -> str:
    """The page that is scraped."""
    return "".join(metric.text() for metric in metrics)


def _key(labels: Mapping[str, str]) -> Labels:
    return tuple(sorted(labels.items()))


def _braces(key: Labels) -> str:
    if not key:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in key) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
