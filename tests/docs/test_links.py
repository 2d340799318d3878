"""Links inside README.md and docs/ lead somewhere; pages of docs/ can be reached from its index."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

FENCED = re.compile(r"^(`{3,}).*?^\1`*\s*$", re.M | re.S)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+\s+(.+?)\s*$", re.M)


def prose(page: Path) -> str:
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    plain = (re.sub(r"[`*]|\[|\]\([^)]*\)", "", title) for title in HEADING.findall(prose(page)))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in plain}


def links(page: Path) -> list[tuple[Path, str]]:
    """(target file, anchor) of every link that stays inside the repository."""
    found = []
    for target in LINK.findall(prose(page)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            found.append(((page.parent / path).resolve() if path else page, anchor))
    return found


def test_anchors_are_github_s(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# What `EPLB` does, and why\n```\n# no heading\n```\n## I1: time\n")
    assert anchors(page) == {"what-eplb-does-and-why", "i1-time"}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target, anchor in links(page):
        missing_anchor = anchor and target.suffix == ".md" and target.is_file()
        if not target.exists():
            broken.append(f"{target}")
        elif not target.is_relative_to(ROOT):
            broken.append(f"{target} is outside the repository")
        elif missing_anchor and anchor not in anchors(target):
            broken.append(f"{target}#{anchor}")
    assert broken == []


def test_every_page_of_docs_is_reached_from_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    reached, pending = set[Path](), [index]
    while pending:
        page = pending.pop()
        if page in reached or page.suffix != ".md" or not page.is_file():
            continue
        reached.add(page)
        pending.extend(target for target, _ in links(page))
    orphans = sorted(set((ROOT / "docs").rglob("*.md")) - reached)
    assert orphans == []
