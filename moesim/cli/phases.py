"""Progress of what a study does, one thing after the other."""

from __future__ import annotations

import re
import sys
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from moesim.cli.output import Progress, progress
from moesim.errors import one_line

SMALL_PRINT = re.compile(r", seed \d+$|: .*$")  # of what is being done


class Phases(AbstractContextManager["Phases"]):
    """A bar for each thing that a study does, one after the other; where standard error is no
    terminal a line for each stage, as a study may take minutes. `small_print` is what of a stage's
    name makes no stage of its own."""

    def __init__(self, small_print: re.Pattern[str] = SMALL_PRINT) -> None:
        self._small_print = small_print
        self._what = self._stage = ""
        self._bar: AbstractContextManager[Progress] | None = None
        self._tell: Progress = lambda done, total: None

    def __call__(self, what: str, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            self._line(self._small_print.sub("", what))
            return
        if what != self._what:
            self._close()
            self._what, self._bar = what, progress(what)
            self._tell = self._bar.__enter__()
        self._tell(done, total)

    def _line(self, stage: str) -> None:
        if stage != self._stage:
            print(f"moesim: {one_line(stage)}", file=sys.stderr, flush=True)
            self._stage = stage

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None
