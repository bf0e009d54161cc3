"""Links between pages lead somewhere, and the index of docs/ leads to every page.

Generated benchmark tables come and go with measurements: the index of benchmarks names each, linked or not.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
FOLDERS = ("docs", "deploy", "tools", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
ELSEWHERE = ("http://", "https://", "mailto:")


def prose(page: Path) -> str:
    """The page without its fenced blocks, in which brackets are code and # begins a comment."""
    return CODE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[tuple[Path, str]]:
    """(file, anchor) of every relative link of a page."""
    found = []
    for target in LINK.findall(prose(page)):
        if not target.startswith(ELSEWHERE):
            path, _, anchor = target.partition("#")
            found.append(((page.parent / path).resolve() if path else page, anchor))
    return found


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ +(.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in links(page):
        assert target.exists(), f"{page.relative_to(ROOT)} links to {target}, which does not exist"
        assert target.is_relative_to(ROOT), f"{page.relative_to(ROOT)} links out of the repository: {target}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), (
                f"{page.relative_to(ROOT)}: no heading #{anchor} in {target.name}"
            )


def test_the_index_names_every_page_once() -> None:
    listed = [
        target for target, _ in links(DOCS / "README.md") if target.is_file() and DOCS in target.parents
    ]
    assert len(listed) == len(set(listed)), "a page is listed twice"
    here = {page for page in DOCS.rglob("*.md") if page != DOCS / "README.md"}
    tables = {page for page in here if page.parent == DOCS / "benchmarks" and page.name != "README.md"}
    assert here - tables - set(listed) == set()


def test_the_index_of_benchmarks_names_every_table() -> None:
    index = DOCS / "benchmarks" / "README.md"
    named = set(re.findall(r"^\| \[?(\w+)\b", prose(index), re.MULTILINE))
    assert {page.stem for page in index.parent.glob("*.md")} - {"README"} <= named


def test_decisions_are_numbered_and_have_a_status() -> None:
    pages = sorted((DOCS / "adr").glob("*.md"))
    assert [page.name[:4] for page in pages] == [f"{number + 1:04d}" for number in range(len(pages))]
    for number, page in enumerate(pages):
        assert re.match(rf"# {number + 1}\. .+\n\nStatus: \w+", page.read_text(encoding="utf-8")), page.name
