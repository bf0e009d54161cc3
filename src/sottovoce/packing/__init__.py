"""Layouts of vectors and matrices in ciphertext slots, plans of products with them, and who holds which
key."""

from sottovoce.packing.cost import CostModel
from sottovoce.packing.diagonal import DEFAULT_BABIES, MatVecPlan, plan_matvec
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
    "MatVecPlan",
    "ModelSide",
    "Side",
    "exchange_keys",
    "give_back_bytes",
    "plan_matvec",
    "upload_bytes",
]
