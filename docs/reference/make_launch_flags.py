"""Write the page about flags of launch commands from the tables that moesim reads them by.

python docs/reference/make_launch_flags.py
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from moesim.files import replace_atomically
from moesim.launch.flags import Flag, flag_table
from moesim.launch.writing import ENGINES

PAGE = Path(__file__).resolve().with_name("launch-flags.md")
NAMES = {"vllm": "vLLM", "sglang": "SGLang", "trtllm": "TensorRT-LLM"}
TOP = """\
# Flags of launch commands

This page is written by `python docs/reference/make_launch_flags.py` from the tables that
`moesim run --from-command` reads commands by ([how to](../how-to/start-from-a-launch-command.md));
nothing on it is typed by hand. Every flag of a command is in one of four lists:

- **understood**: it sets fields of the [scenario](scenario.md);
- **ignored, though a real server would differ** (`changes_serving` in `--json`): moesim does not
  model what it does, and goes on without;
- **ignored**: nothing that is simulated depends on it;
- **refused**: the result would be that of another deployment. The command ends with exit status 2,
  as it does for a flag that is on none of these lists.

Between commas are names of one flag where it is understood, and flags of one kind elsewhere.
`--flag value` and `--flag=value` are the same; of a flag that is given twice the last one counts.
"""
LISTS = (
    ("understood", "understood"),
    ("not-modelled", "ignored, though a real server would differ"),
    ("no-effect", "ignored"),
    ("refused", "refused"),
)
NEGATED = "also `--no-...`"


def page() -> str:
    """The whole page."""
    return TOP + "".join(_section(engine) for engine in ENGINES)


def _section(engine: str) -> str:
    table = flag_table(engine)
    text = f"\n## {NAMES[engine]}\n\n{NAMES[engine]} {table.versions}. Source: {table.source}.\n"
    for effect, title in LISTS:
        flags = [flag for flag in table.flags if flag.effect == effect]
        rows = _understood(flags) if effect == "understood" else _others(flags)
        header = "| flag | sets | |" if effect == "understood" else "| flags | |"
        rule = "|---" * (header.count("|") - 1) + "|"
        text += "\n".join(["", f"### {NAMES[engine]}: {title}", "", header, rule, *rows])
        text += "\n"
    return text


def _understood(flags: Iterable[Flag]) -> Iterator[str]:
    for flag in flags:
        notes = [flag.why, NEGATED] if flag.takes == "boolean" else [flag.why]
        told = _cell("; ".join(note for note in notes if note))
        yield f"| {_quoted(flag.names)} | {_quoted(flag.fields)} | {told} |"


def _others(flags: Iterable[Flag]) -> Iterator[str]:
    """Rows of flags that share a reason."""
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for flag in flags:
        groups.setdefault((flag.why, flag.harmless), []).extend(flag.names)
    for (why, harmless), names in groups.items():
        unless = f" (but for {_quoted(harmless)})" if harmless else ""
        yield f"| {_quoted(names)} | {_cell(why)}{unless} |"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


if __name__ == "__main__":
    with replace_atomically(PAGE) as temporary:
        temporary.write_text(page(), encoding="utf-8")
