"""Text of four domains, out of Debian packages and Python itself, split into documents.

| domain | text | package | licence |
|---|---|---|---|
| english | King James Bible, a document per chapter | bible-kjv-text | public domain |
| french | Debian Reference in French | debian-reference-fr | GPL-2+ |
| python | the standard library of the interpreter that runs this | | PSF-2.0 |
| metamath | statements of set.mm, without proofs, comments | metamath-databases | CC0-1.0 |
"""

from __future__ import annotations

import gzip
import re
import subprocess
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from moesim.errors import InputError

DOMAINS = ("english", "french", "python", "metamath")
PACKAGES = "bible-kjv bible-kjv-text debian-reference-fr metamath-databases"
FRENCH = Path("/usr/share/debian-reference/debian-reference.fr.txt.gz")
METAMATH = Path("/usr/share/metamath/databases/set.mm")
DOCUMENT_LETTERS = 4096
# French is 1 MB; more of the others than this would be sampled away.
MOST_LETTERS = 6_000_000
# Every so-manieth document is kept from training: losses and captured prompts are of these.
HELD_OUT = 10


def read_corpus() -> dict[str, list[str]]:
    """Documents of each domain, in their order. InputError names the packages to install."""
    try:
        return {
            "english": _chapters(),
            "french": _cut(_paragraphs(gzip.decompress(FRENCH.read_bytes()).decode())),
            "python": _python(),
            "metamath": _cut(_statements(METAMATH.read_text(encoding="ascii"))),
        }
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(
            "corpus", f"cannot be read: {error}", None, f"apt install {PACKAGES}"
        ) from None


def split(documents: list[str]) -> tuple[list[str], list[str]]:
    """(documents to train on, documents held out): every tenth is held out."""
    kept = [text for i, text in enumerate(documents) if i % HELD_OUT]
    return kept, documents[::HELD_OUT]


def _chapters() -> list[str]:
    """The Bible, each verse without its reference."""
    run = subprocess.run(
        ["bible", "-f", "gen1:1-rev22:21"], capture_output=True, text=True, timeout=120, check=True
    )
    chapters: dict[str, list[str]] = {}
    for line in run.stdout.splitlines():
        reference, _, verse = line.partition(" ")
        chapters.setdefault(reference.partition(":")[0], []).append(verse)
    return ["\n".join(verses) for verses in chapters.values()]


def _python() -> list[str]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    documents: list[str] = []
    letters = 0
    for path in sorted([*folder.glob("*.py"), *folder.glob("[a-z]*/*.py")]):
        if {"test", "tests", "site-packages", "idlelib", "pydoc_data"} & set(path.parts):
            continue
        if path.parent.name == "encodings":  # tables of code points
            continue
        documents += _cut(path.read_text(encoding="utf-8", errors="ignore").splitlines(True))
        letters += path.stat().st_size
        if letters > MOST_LETTERS:
            break
    return documents


def _paragraphs(text: str) -> list[str]:
    """Paragraphs without the indentation that the layout gave them."""
    return [re.sub(r"[ \t]*\n[ \t]*", "\n", part).strip() + "\n\n" for part in text.split("\n\n")]


def _statements(text: str) -> list[str]:
    """Axioms and theorems, a line each: `label $p assertion`, without proofs."""
    text = re.sub(r"\$\(.*?\$\)", " ", text, flags=re.S)
    found = re.findall(r"(\S+)\s+(\$[ap])\s+(\|-.*?)\s+\$[=.]", text, flags=re.S)
    lines = [f"{label} {kind} {' '.join(body.split())}\n" for label, kind, body in found]
    step = max(1, sum(map(len, lines)) // MOST_LETTERS)
    return lines[::step]


def _cut(pieces: Iterable[str]) -> list[str]:
    """Documents of about 4096 letters out of pieces that stay whole."""
    documents, held = [], ""
    for piece in pieces:
        held += piece
        if len(held) >= DOCUMENT_LETTERS:
            documents.append(held)
            held = ""
    return [*documents, held] if held.strip() else documents
