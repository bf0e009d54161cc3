"""Layouts of vectors and matrices in ciphertext slots, plans of products with them, and who holds which
key."""

from sottovoce.packing.cost import CostModel
from sottovoce.packing.diagonal import MatVecPlan
from sottovoce.packing.groups import Group, all_plans, group_tokens
from sottovoce.packing.search import DEFAULT_BABIES, plan_matvec
from sottovoce.packing.sides import (
    DataSide,
    ModelSide,
    Side,
    exchange_keys,
    give_back_bytes,
    upload_bytes,
)

__all__ = [
    "DEFAULT_BABIES",
    "CostModel",
    "DataSide",
    "Group",
    "MatVecPlan",
    "ModelSide",
    "Side",
    "all_plans",
    "exchange_keys",
    "give_back_bytes",
    "group_tokens",
    "plan_matvec",
    "upload_bytes",
]
