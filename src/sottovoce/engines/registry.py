"""From an engine's name to its two halves. Imports are lazy: the client never loads what only servers
need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sottovoce.engines.base import DataParty, Engine, EngineOptions
from sottovoce.errors import ParameterMismatchError

if TYPE_CHECKING:
    from sottovoce.models import Model

ENGINES = ("hybrid", "fhe", "scx", "clear")
KV_STRATEGIES = ("ciphertext", "masked", "none")
ARITHMETICS = ("float", "fixed")
CORRELATIONS = ("pair", "dealer")
PROFILES = ("none", "paper", "hardened")


def check_options(options: EngineOptions) -> None:
    """Refuse combinations that no engine offers (ParameterMismatchError)."""
    for name, value, known in (
        ("engine", options.engine, ENGINES),
        ("KV strategy", options.kv, KV_STRATEGIES),
        ("arithmetic", options.arithmetic, ARITHMETICS),
        ("source of correlations", options.correlations, CORRELATIONS),
        ("profile", options.profile, PROFILES),
    ):
        if value not in known:
            raise ParameterMismatchError(f"unknown {name} {value!r}; this version knows {', '.join(known)}")
    if (options.engine == "scx") != (options.profile != "none"):
        raise ParameterMismatchError(
            "the engine scx, and no other, needs a profile; use --profile paper or hardened"
        )


def make_engine(options: EngineOptions, model: Model) -> Engine:
    """The server's side: an engine over a loaded model. Call `prepare` before the first session."""
    check_options(options)
    if options.engine == "hybrid":
        from sottovoce.engines.hybrid import HybridEngine

        return HybridEngine(options, model)
    if options.engine == "fhe":
        from sottovoce.engines.fhe import FheEngine

        return FheEngine(options, model)
    if options.engine == "scx":
        from sottovoce.engines.scx import ScxEngine

        return ScxEngine(options, model)
    from sottovoce.engines.clear import ClearEngine

    return ClearEngine(options, model)


def make_data_party(options: EngineOptions, public: dict[str, Any]) -> DataParty:
    """The client's half, from the public description that the server sent (validated here)."""
    check_options(options)
    if options.engine == "hybrid":
        from sottovoce.engines.hybrid import HybridDataParty

        return HybridDataParty(options, public)
    if options.engine == "fhe":
        from sottovoce.engines.fhe import FheDataParty

        return FheDataParty(options, public)
    if options.engine == "scx":
        from sottovoce.engines.scx import data_party

        return data_party(options, public)
    from sottovoce.engines.clear import ClearDataParty

    return ClearDataParty(options, public)
