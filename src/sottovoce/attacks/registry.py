"""From an attack's name to the attack. Modules load when an attack is chosen."""

from __future__ import annotations

import importlib

from sottovoce.attacks.base import Attack
from sottovoce.errors import UsageError

# Name -> (module, class).
ATTACKS = {
    "vocabulary-matching": ("scx_matching", "VocabularyMatching"),
    "greedy-matching": ("scx_matching", "GreedyMatching"),
    "kv-inversion": ("scx_matching", "KvInversion"),
    "gram-matrix": ("scx_gram", "GramMatrix"),
    "brute-force": ("scx_order", "BruteForce"),
    "lm-reordering": ("scx_order", "LmReordering"),
    "two-layer-fitting": ("scx_noise", "TwoLayerFitting"),
    "dp-accounting": ("scx_noise", "DpAccounting"),
    "weight-extraction": ("hybrid_weights", "WeightExtraction"),
    "transcript-uniformity": ("hybrid_transcript", "TranscriptUniformity"),
    "correlation-reuse": ("hybrid_reuse", "CorrelationReuse"),
    "ckks-key-recovery": ("fhe_key_recovery", "CkksKeyRecovery"),
}


def attack_named(name: str) -> Attack:
    if name not in ATTACKS:
        raise UsageError(f"unknown attack {name!r}; known are {', '.join(ATTACKS)}")
    module, attribute = ATTACKS[name]
    attack: Attack = getattr(importlib.import_module(f"sottovoce.attacks.{module}"), attribute)()
    return attack
