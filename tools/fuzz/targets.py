"""What is fuzzed: everything that reads bytes of somebody else, or of a disk.

A target takes bytes and returns; the errors of our own tree are its way of saying no, any other exception is
a finding.
"""

from __future__ import annotations

import lattice
import model_files
import stored
import web
import wire
from target import REFUSALS, Target

TARGETS: dict[str, Target] = {
    **wire.TARGETS,
    **lattice.TARGETS,
    **model_files.TARGETS,
    **stored.TARGETS,
    **web.TARGETS,
}

__all__ = ["REFUSALS", "TARGETS", "Target"]
