"""The examples of README.md and docs/ run as they stand.

The info string of a fence says what happens to it:

```yaml file=first.yaml        written to that file
```console test                the lines after "$ " run in bash, and what they print is compared
```python test                 a page's blocks run as one program, after its console blocks
```console untested="reason"   shown only

A page is one test and gets one empty working folder, where `scenarios` is the repository's. A
console command may go on after a backslash, and must succeed unless it ends in "# exit N". Under
it stand lines that its output must contain, in this order and with others in between; "..." stands
for anything within a line. A page that says `<!-- examples: slow -->` runs with the slow tests.
Every python and console fence must be one or the other: nothing is left out silently.

README.md runs as its reader runs it, with a process for each command. On other pages, commands that
are `moesim` and plain arguments, and Python blocks, run in this process: starting dozens of
interpreters took most of these tests' time.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moesim.cli import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
RUNNABLE = ("python", "console")
TIME_LIMIT_S = 300
STARTED_FROM_A_SHELL = ("README.md",)
SHELL = re.compile(r"[|&;<>$`*?~(){}\n]|^\w+=|\s#")
TERMINAL = {"COLUMNS": "120", "NO_COLOR": "1"}

FENCE = re.compile(
    r"^(?P<ticks>`{3,})(?P<info>[^`\n]*)\n(?P<body>.*?)^(?P=ticks)`*\s*$", re.M | re.S
)
EXIT = re.compile(r"\s+# exit (\d+)$")
UNTESTED = re.compile(r'^untested="[^"]+"$')


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    note: str  # the info string after the language
    body: str


@dataclass(frozen=True)
class Command:
    text: str
    status: int
    expected: tuple[str, ...]


def blocks(text: str) -> list[Block]:
    found = []
    for match in FENCE.finditer(text):
        language, _, note = match["info"].strip().partition(" ")
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(line, language, note.strip(), match["body"]))
    return found


def commands(body: str) -> list[Command]:
    """The commands of a console block, each with the lines it has to print."""
    found: list[Command] = []
    lines = iter(body.splitlines())
    for line in lines:
        if line.startswith("$ "):
            text = line[2:]
            while text.endswith("\\"):
                text = text[:-1] + next(lines, "").lstrip()
            exit_note = EXIT.search(text)
            status = int(exit_note[1]) if exit_note else 0
            found.append(Command(EXIT.sub("", text), status, ()))
        elif line.strip():
            assert found, f"output before the first command: {line!r}"
            last = found.pop()
            found.append(Command(last.text, last.status, (*last.expected, line.strip())))
    return found


def missing_line(output: str, expected: tuple[str, ...]) -> str | None:
    """The first expected line that is not in the output after the ones before it."""
    rest = iter(" ".join(line.split()) for line in output.splitlines())
    for wanted in expected:
        words = " ".join(wanted.split())
        pattern = ".*".join(re.escape(part.strip()) for part in words.split("..."))
        if not any(re.search(pattern, line) for line in rest):
            return wanted
    return None


def run_console(block: Block, folder: Path, own_process: bool) -> None:
    for command in commands(block.body):
        words = [] if SHELL.search(unquoted(command.text)) else shlex.split(command.text)
        if words[:1] == ["moesim"] and not own_process:
            status, output = called(words[1:], folder)
        else:
            status, output = started(["bash", "-c", command.text], folder)
        assert status == command.status, f"$ {command.text}\n{output}"
        missing = missing_line(output, command.expected)
        assert missing is None, f"$ {command.text}\ndoes not print {missing!r}:\n{output}"


def unquoted(text: str) -> str:
    """A command without what its quotes keep from the shell."""
    return re.sub(r"'[^']*'|\"[^\"$`]*\"", "", text)


def started(command: list[str], folder: Path) -> tuple[int, str]:
    """Exit status and all that is printed by a process of its own."""
    bin_folder = Path(sys.executable).parent
    run = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **TERMINAL, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    return run.returncode, run.stdout


def called(arguments: list[str], folder: Path) -> tuple[int, str]:
    """As `started`, of the command `moesim` in this process."""
    with printed(folder) as output, pytest.MonkeyPatch.context() as patch:
        for name, value in TERMINAL.items():
            patch.setenv(name, value)
        status = main(arguments)
    return status, output.getvalue()


@contextlib.contextmanager
def printed(folder: Path) -> Iterator[io.StringIO]:
    """All that is printed by what runs in the folder; a run that never ends kills the process."""
    output = io.StringIO()
    signal.alarm(TIME_LIMIT_S)
    try:
        with (
            contextlib.chdir(folder),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
        ):
            yield output
    finally:
        signal.alarm(0)


def run_python(code: list[Block], folder: Path, page: str, own_process: bool) -> None:
    """Run a page's Python blocks as one program, with the page's line numbers in a traceback."""
    padded = ["\n" * block.line + block.body for block in code]
    if own_process:
        program = "".join(f"exec(compile({text!r}, {page!r}, 'exec'))\n" for text in padded)
        status, output = started([sys.executable, "-c", program], folder)
        assert status == 0, output
        return
    names: dict[str, Any] = {"__name__": "__main__"}
    with printed(folder) as output:
        try:
            for text in padded:
                exec(compile(text, page, "exec"), names)
        except Exception:
            traceback.print_exc()
            names = {}
    assert names, output.getvalue()


def run_page(text: str, folder: Path, page: str) -> None:
    own_process = page in STARTED_FROM_A_SHELL
    code = []
    for block in blocks(text):
        if block.note.startswith("file="):
            target = (folder / block.note.removeprefix("file=")).resolve()
            assert target.is_relative_to(folder.resolve()), f"{page}:{block.line} writes {target}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.body, encoding="utf-8")
        elif block.language == "console" and block.note == "test":
            run_console(block, folder, own_process)
        elif block.language == "python" and block.note == "test":
            code.append(block)
    if code:
        run_python(code, folder, page, own_process)


def page_parameters() -> list[object]:
    parameters = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        if any(block.note == "test" for block in blocks(text)):
            marks = [pytest.mark.slow] if "<!-- examples: slow -->" in text else []
            name = str(path.relative_to(ROOT))
            parameters.append(pytest.param(path, id=name, marks=marks))
    return parameters


@pytest.mark.parametrize("page", page_parameters())
def test_examples_of(page: Path, tmp_path: Path) -> None:
    (tmp_path / "scenarios").symlink_to(ROOT / "scenarios")
    run_page(page.read_text(encoding="utf-8"), tmp_path, str(page.relative_to(ROOT)))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_example_says_whether_it_is_tested(page: Path) -> None:
    undecided = [
        f"{page.relative_to(ROOT)}:{block.line}"
        for block in blocks(page.read_text(encoding="utf-8"))
        if block.language in RUNNABLE and block.note != "test" and not UNTESTED.match(block.note)
    ]
    assert undecided == []


# The runner itself


def test_console_blocks_are_compared_with_what_is_printed(tmp_path: Path) -> None:
    page = """
```console test
$ printf 'one\\ntwo 2.5 s\\nthree\\n'
one
two ... s
$ echo a \\
  b
a b
$ false  # exit 1
```
"""
    run_page(page, tmp_path, "page")


@pytest.mark.parametrize(
    "body",
    [
        "$ false\n",
        "$ true  # exit 2\n",
        "$ echo one\ntwo\n",
        "$ printf 'b\\na\\n'\na\nb\n",
        "output without a command\n",
        "$ moesim no-such-command\n",
        "$ moesim --version  # exit 2\n",
        "$ moesim --version\nmoesim none\n",
    ],
)
def test_a_wrong_console_block_fails(tmp_path: Path, body: str) -> None:
    with pytest.raises(AssertionError):
        run_page(f"```console test\n{body}```\n", tmp_path, "page")


@pytest.mark.parametrize("words", ["--version", "run demo --set model=mixtral-8x7"])
def test_a_command_says_in_this_process_what_it_says_in_its_own(words: str, tmp_path: Path) -> None:
    assert called(words.split(), tmp_path) == started(["moesim", *words.split()], tmp_path)


@pytest.mark.parametrize("page", ["page", *STARTED_FROM_A_SHELL])
def test_python_blocks_share_names_and_read_the_page_s_files(tmp_path: Path, page: str) -> None:
    text = """
```yaml file=in/a.yaml
seed: 3
```
```python test
x = 1
```
```python untested="shown only"
x = 2
```
```python test
from pathlib import Path

assert x == 1
assert Path("in/a.yaml").read_text() == "seed: 3\\n"
```
"""
    run_page(text, tmp_path, page)


@pytest.mark.parametrize("page", ["page", *STARTED_FROM_A_SHELL])
def test_a_failing_python_block_is_reported_with_its_line(tmp_path: Path, page: str) -> None:
    with pytest.raises(AssertionError, match=f'File "{page}", line 4'):
        run_page("text\n\n```python test\n1 / 0\n```\n", tmp_path, page)
