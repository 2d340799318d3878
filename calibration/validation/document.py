"""A document as blocks, written as Markdown with pictures beside it, or as one HTML file.

Texts may hold `code`, *emphasis*, **strong** and [links](page.md); HTML shows links as their text.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path

from moesim.files import replace_atomically
from moesim.report.export import png, svg
from moesim.report.figure import Figure

WIDTH = 100
PIXELS_PER_POINT = 1.5
MORE_CSS = "th, td { overflow-wrap: normal; }\n"  # a long cell must not break its neighbours' words
SENTENCE = 40  # characters beyond which a cell holds no number
# Labels of runs come from strangers: nothing may run or reach out, whatever they hold.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Heading:
    level: int
    text: str


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Points:
    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Cells are plain text; the first column names the row."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


Block = Heading | Text | Points | Table | Figure


def write_markdown(blocks: Sequence[Block], path: Path) -> None:
    """Write the page, and its charts as PNG in the folder of its name beside it."""
    folder = path.with_suffix("")
    for block in blocks:
        if isinstance(block, Figure) and block.chart is not None:
            with replace_atomically(folder / f"{block.key}.png") as temporary:
                temporary.write_bytes(png(block, scale=PIXELS_PER_POINT))
    with replace_atomically(path) as temporary:
        temporary.write_text(markdown(blocks, folder.name), encoding="utf-8")


def write_html(blocks: Sequence[Block], path: Path) -> None:
    """Write the document as one HTML file; it appears whole or not at all."""
    with replace_atomically(path) as temporary:
        temporary.write_text(html(blocks), encoding="utf-8")


def markdown(blocks: Sequence[Block], folder: str) -> str:
    """The document as Markdown whose pictures lie in `folder`."""
    return "\n\n".join(_markdown(block, folder) for block in blocks) + "\n"


def _markdown(block: Block, folder: str) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {text}"
        case Text(text):
            return _filled(text)
        case Points(items):
            return "\n".join("- " + _filled(item, "  ").lstrip() for item in items)
        case Table(header, rows):
            rule = "|---" * len(header) + "|"
            return "\n".join([_line(header), rule, *(_line(row) for row in rows)])
    if block.chart is None:
        return _filled(block.title)
    picture = f"![{block.title}]({folder}/{block.key}.png)"
    return f"{picture}\n\n{_filled(block.caption)}"


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


def html(blocks: Sequence[Block]) -> str:
    """The document as one HTML page without scripts; the first heading is its title."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "moesim")
    css = resources.files("moesim.report").joinpath("page.css").read_text(encoding="utf-8")
    body = "\n".join(_html(block) for block in blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{css}{MORE_CSS}</style>\n</head>\n<body>\n{body}\n"
        "</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{_inline(text)}</h{level}>"
        case Text(text):
            return f"<p>{_inline(text)}</p>"
        case Points(items):
            return "<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in items) + "</ul>"
        case Table(header, rows):
            return _html_table(header, rows)
    if block.chart is None:
        return f"<p>{_inline(block.title)}</p>"
    return (
        f'<figure><div class="chart">{svg(block)}</div>'
        f"<figcaption>{_inline(block.caption)}</figcaption></figure>"
    )


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(_cell(cell) for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _cell(text: str) -> str:
    """Sentences and words to the left, numbers (the page's style) to the right."""
    words = "".join(text.split()).isalpha() or len(text) > SENTENCE
    return (
        f'<td style="text-align:left">{escape(text)}</td>' if words else f"<td>{escape(text)}</td>"
    )


def _inline(text: str) -> str:
    """Escaped, then the few marks that texts may hold."""
    shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", escape(text))
    shown = re.sub(r"`([^`]+)`", r"<code>\1</code>", shown)
    shown = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", shown)
    return re.sub(r"\*([^*]+)\*", r"<em>\1</em>", shown)
