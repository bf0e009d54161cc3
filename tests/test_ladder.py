"""Imports point down the ladder of packages only: the drawing in the architecture is kept true by this test.

A module may import from its own package and from rungs below it. Modules that stand on one rung do not import
each other.
"""

import ast
from pathlib import Path

import pytest

import sottovoce

ROOT = Path(sottovoce.__file__).parent

LADDER = [
    {"__main__"},
    {"cli", "proxy", "bench", "attacks"},
    {"parties"},
    {"engines"},
    {"kvcache"},
    {"models"},
    {"mpc"},
    {"correlations"},
    {"packing"},
    {"ot", "bgv", "ckks", "dense"},
    {"rlwe"},
    {"ring"},
    {"net"},
    {"_native"},
    {"runs", "storage"},
    {"errors"},
]
RUNG = {name: number for number, rung in enumerate(LADDER) for name in rung}
# What the command line shows of benchmarks and attacks it takes from their packages; they never import it.
# The proxy is among the things that are measured.
SAME_RUNG = {("cli", "bench"), ("cli", "attacks"), ("cli", "proxy"), ("bench", "proxy")}


def top_level(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_packages(path: Path) -> set[str]:
    """First components below `sottovoce` that a file imports, anywhere in it."""
    package = ("sottovoce", *path.relative_to(ROOT).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "sottovoce" and len(parts) > 1:
                found.add(parts[1])
    return found


def violations(path: Path) -> list[str]:
    own = top_level(path)
    if own == "__init__":
        return []
    result = []
    for name in sorted(imported_packages(path) - {own, "__version__"}):
        if name not in RUNG:
            result.append(f"{own} imports {name}, which is on no rung")
        elif RUNG[name] <= RUNG[own] and (own, name) not in SAME_RUNG:
            result.append(f"{own} imports {name}, which is not below it")
    return result


SOURCES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    assert top_level(path) == "__init__" or top_level(path) in RUNG, f"give {top_level(path)} a rung"
    assert not violations(path)


def test_the_check_sees_every_form_of_import(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "net").mkdir()
    bad = tmp_path / "net" / "x.py"
    for line in (
        "import sottovoce.ring.ntt",
        "from sottovoce import ring",
        "from sottovoce.ring import ntt",
        "from ..ring import ntt",
        "from .. import ring",
        "def f():\n    from ..ring.ntt import g",
        "if TYPE_CHECKING:\n    from ..ring import h",
    ):
        bad.write_text(line)
        assert violations(bad) == ["net imports ring, which is not below it"], line
    bad.write_text("from ..errors import FrameError\nfrom .frame import x\nfrom . import y\nimport numpy\n")
    assert not violations(bad)


def test_no_module_is_called_utils():
    assert not [path for path in SOURCES if path.stem in ("utils", "util", "helpers", "misc", "common")]
