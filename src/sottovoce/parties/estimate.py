"""From a model's description to what each engine would cost; see `engines.estimates`."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from ..dense import DENSE, SENT_BYTES
from ..engines.base import EngineOptions, Progress
from ..engines.estimates import Estimate, Phase
from ..engines.explain import engine_line
from ..engines.hybrid.prepared import model_shapes
from ..engines.public import PublicModel
from ..errors import UnsupportedModelError
from ..models.config import Config
from ..net.ledger import Ledger
from .forecast import Course, forecast
from .machine import MachineSpeed
from .protocol import Command, Verb

_RELINEARISATION = 0.42e-3  # seconds, on the cost model's machine, like the two below
_SENT, _RETURNED = 2.9e-3, 3.7e-3
_MASK_CIPHERTEXT = 0.5e-3
_MACS = 6e9  # a second, of prepared matrices
# A weight in the server's memory: as it was loaded and in fixed point; as plaintexts of online products.
_HELD_BYTES, _ENCODED_BYTES = 6, 24
_TYPICAL = {"rms": (1e-3, 1e2), "layer": (1e-3, 1e2)}

Estimator = Callable[[PublicModel, str, Course, MachineSpeed], Estimate]


def typical(config: Config) -> PublicModel:
    """A public description for a model of which only the shapes are known: ranges as most models have them.

    Other ranges change bytes by less than 0.3 % and rounds by less than 5 %.
    """
    low, high = _TYPICAL[config.norm]
    norm = {"kind": config.norm, "eps": 1e-5, "low": low, "high": high, "square_bits": 6}
    return PublicModel.from_json(
        {
            "config": config.to_json(),
            "weight_bits": 11,
            "score_shift": 0,
            "score_range_bits": 8,
            "norms": [norm] * (2 * config.layers + 1),
        }
    )


def estimate(
    public: PublicModel,
    engine: str,
    kv: str,
    course: Course,
    speed: MachineSpeed | None = None,
    progress: Progress = lambda done, total, what: None,
) -> Estimate:
    """kv: of the engine hybrid, ignored by others. UnsupportedModelError for an engine without estimates.

    progress: of hybrid, which counts token by token (0.3 s each for SmolLM2-135M).
    """
    if engine == "hybrid":
        return _hybrid(public, kv, course, speed or MachineSpeed(), progress)
    if engine in _ESTIMATORS:
        return _ESTIMATORS[engine](public, kv, course, speed or MachineSpeed())
    try:  # an engine may bring its own, with this signature
        found = importlib.import_module(f"sottovoce.engines.{engine}.estimate").estimate
    except (ImportError, AttributeError):
        raise UnsupportedModelError(f"engine {engine!r} has no estimates; use hybrid, clear or scx") from None
    result = found(public, kv, course, speed or MachineSpeed())
    assert isinstance(result, Estimate)
    return result


def _hybrid(
    public: PublicModel, kv: str, course: Course, speed: MachineSpeed, progress: Progress
) -> Estimate:
    options = EngineOptions(kv=kv)
    ledger = forecast(public, options, course, progress).ledger
    config, shapes = public.config, model_shapes(public.config)
    weights = sum(d_out * d_in for d_out, d_in in shapes.values())
    length = course.public + course.private + course.new
    hints = sum(d_out for d_out, _ in shapes.values()) * SENT_BYTES * DENSE.degree if course.prepared else 0
    phases = [_phase(ledger, "setup", 1, speed)]
    if course.prepared:
        phases.append(_phase(ledger, "prepare", course.prepared, speed, "offline"))
    phases.append(_phase(ledger, "prefill", course.private, speed))
    phases.append(_phase(ledger, "decode", course.new - 1, speed))
    keys = ledger.total("setup")
    prepared = course.prepared * sum(SENT_BYTES * d_out for d_out, _ in shapes.values())
    return Estimate(
        "hybrid",
        kv,
        engine_line(options),
        tuple(phases),
        key_bytes=keys.wire_up,
        server_memory=_HELD_BYTES * weights + (hints + prepared if prepared else _ENCODED_BYTES * weights),
        session_memory=_session_memory(config, kv, length) + 2 * keys.wire_up,
        client_memory=150_000_000
        + 8 * config.vocab_size * max(1, config.vocab_size // 50_000)
        + prepared
        + hints,
        client_disk=hints,
        notes=("seconds are estimates, with one core at each party unless --server-cores says otherwise",),
    )


def _session_memory(config: Config, kv: str, length: int) -> int:
    """What the server holds of a conversation of `length` tokens."""
    if kv == "masked":
        return 4 * 8 * 2 * config.layers * length * (config.kv_width + config.heads * length // 8)
    if kv == "none":
        return 0
    block = 8192 // max(1, config.heads * config.head_dim // 2)  # tokens in a block, in two groups
    return 2 * 2 * config.layers * (length // max(1, block) + 1) * 2 * 3 * 8192 * 8


def _phase(ledger: Ledger, name: str, tokens: int, speed: MachineSpeed, *more: str) -> Phase:
    rows = [row for row in ledger.rows() if row.phase in (name, *more)]
    compute = parallel = 0.0
    for row in rows:
        count = row.counters
        parallel += count.get("he_us", 0) / 1e6 * speed.lattice + count.get("prepared_macs", 0) / _MACS
        lattice = count.get("he_sent", 0) * _SENT + count.get("he_returned", 0) * _RETURNED
        lattice += count.get("mask_cts", 0) * _MASK_CIPHERTEXT
        if row.operation.startswith("cache"):
            lattice += count.get("he_returned", 0) * _RELINEARISATION
        compute += row.seconds + lattice * speed.lattice + count.get("cots", 0) * speed.transfer
    return Phase(
        name,
        tokens,
        sum(row.wire_up for row in rows),
        sum(row.wire_down for row in rows),
        sum(row.rounds for row in rows),
        compute + parallel,
        parallel,
    )


def _clear(public: PublicModel, kv: str, course: Course, speed: MachineSpeed) -> Estimate:
    """Four bytes a token up, four bytes a logit down."""
    options, vocab = EngineOptions(engine="clear"), public.config.vocab_size
    ledger = Ledger()

    def step(phase: str, command: Command, tokens: int) -> None:
        with ledger.phase(phase):
            ledger.message(0, len(command.pack()))
            ledger.message(0, 4 * tokens)
            ledger.message(1, 4 * vocab)

    step("prefill", Command(Verb.PREFILL, course.private, (0,) * course.public), course.private)
    for _ in range(course.new - 1):
        step("decode", Command(Verb.DECODE), 1)
    weights = _weights(public.config)
    phases = []
    for name, tokens in (("prefill", course.private + course.public), ("decode", course.new - 1)):
        plain = _phase(ledger, name, tokens, speed)
        compute = 2 * weights * tokens / 2e10 if name == "prefill" else 4 * weights * tokens / 1e10
        phases.append(Phase(name, tokens, plain.bytes_up, plain.bytes_down, plain.rounds, compute))
    return Estimate(
        "clear",
        "-",
        engine_line(options),
        tuple(phases),
        server_memory=4 * weights,
        client_memory=100_000_000,
    )


def _scx(public: PublicModel, kv: str, course: Course, speed: MachineSpeed) -> Estimate:
    """Profile hardened: every block's four matrices at the server, under masks, 8 bytes a number."""
    c = public.config
    gates = 2 if c.gated else 1
    inputs = 2 * c.width + c.q_width + c.ffn_width
    outputs = c.q_width + 2 * c.kv_width + 2 * c.width + gates * c.ffn_width
    weights = _weights(c)

    def phase(name: str, tokens: int, passes: int) -> Phase:
        up, down = 8 * tokens * c.layers * inputs, 8 * tokens * c.layers * outputs
        # Masks' images are products with the user's own weights: as much work again.
        compute = tokens * 4 * weights / 2e10
        return Phase(name, tokens, up, down, 4 * c.layers * passes, compute)

    setup = Phase("setup", 1, 0, 4 * weights, 1, 0.0)
    return Estimate(
        "scx",
        "-",
        "engine scx, profile hardened: statistical privacy under one-time masks; the user has the weights",
        (
            setup,
            phase("prefill", course.public + course.private, 1),
            phase("decode", course.new - 1, course.new - 1),
        ),
        server_memory=4 * weights,
        client_memory=8 * weights,
        exact=False,
        notes=("the weights are given away to the user", "frame headers and commands are not counted"),
    )


def _weights(config: Config) -> int:
    """Numbers in all matrices, a tied head once."""
    shapes = model_shapes(config)
    tied = shapes["embedding", 0] if config.tied_head else (0, 0)
    return sum(d_out * d_in for d_out, d_in in shapes.values()) - tied[0] * tied[1]


_ESTIMATORS: dict[str, Estimator] = {"clear": _clear, "scx": _scx}
