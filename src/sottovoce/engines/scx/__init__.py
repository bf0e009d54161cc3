"""SCX: exact inference on encoded activations at nearly plaintext speed, with statistical privacy at best.

Profile `paper` is the published scheme, which `sottovoce.attacks` reads; `hardened` is ours. See
docs/design/scx.md before using either.
"""

from sottovoce.engines.scx.arrays import Arrays, arrays
from sottovoce.engines.scx.parties import ScxDataParty, ScxEngine, ScxModelParty, check_public, data_party
from sottovoce.engines.scx.profile import NAMES, PROFILES, Privacy, Profile, profile_of, statement_lines
from sottovoce.engines.scx.worker import WorkerEngine

__all__ = [
    "NAMES",
    "PROFILES",
    "Arrays",
    "Privacy",
    "Profile",
    "ScxDataParty",
    "ScxEngine",
    "ScxModelParty",
    "WorkerEngine",
    "arrays",
    "check_public",
    "data_party",
    "profile_of",
    "statement_lines",
]
