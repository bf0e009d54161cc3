"""Layouts of vectors and matrices in ciphertext slots, and the plans of products with them."""

from sottovoce.packing.cost import CostModel
from sottovoce.packing.diagonal import DEFAULT_BABIES, MatVecPlan, plan_matvec

__all__ = ["DEFAULT_BABIES", "CostModel", "MatVecPlan", "plan_matvec"]
