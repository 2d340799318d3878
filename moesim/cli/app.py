"""The `moesim` command: what it is made of, and how it ends.

Exit status: 0 done; 2 refused (bad input, wrong usage), with one line on standard error; 1 a defect
of moesim or a failing disk; 130 interrupted. `--debug` adds the traceback.
"""

from __future__ import annotations

import atexit
import gc
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from moesim import __version__
from moesim.cli.commands import Commands
from moesim.errors import InputError, one_line

COLLECT_AFTER = 50_000  # objects; Python's own threshold is 700
DONE, DEFECT, REFUSED, INTERRUPTED = 0, 1, 2, 130
# What typer says of a value that an option does not know.
CHOICE = re.compile(
    r"Invalid value for '(?P<option>--[\w-]+)'.*?: (?:Value error, )?'(?P<given>.*)' is not one of "
    r"(?P<named>'[^']*'(?:, '[^']*')*)\.?$",
    re.DOTALL,
)

app = typer.Typer(
    name="moesim",
    cls=Commands,
    help="What a Mixture-of-Experts model will do on a serving cluster, before it is rented.",
    epilog="Every result is labelled with how far it can be trusted. `--debug`, anywhere, shows "
    "the traceback of an error.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"moesim {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def _start_quickly() -> None:
    """Settings of a process that runs one command and ends: together a fifth of a short run."""
    # Imports make many objects and hardly any garbage; what is left at the end goes with the
    # process, and nothing has to be looked for there.
    gc.set_threshold(COLLECT_AFTER)
    atexit.register(gc.freeze)
    # pydantic looks through all installed packages for plugins, which check no scenario.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (those of the process by default); the exit status."""
    if argv is None:
        _start_quickly()
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"] or ["--help"]
    with warnings.catch_warnings():
        if not (debug or sys.warnoptions):
            warnings.simplefilter("ignore")  # a library's advice to programmers
        try:
            status = typer.main.get_command(app).main(arguments, "moesim", standalone_mode=False)
            sys.stdout.flush()
        except SystemExit as stop:  # rich and typer end like this when nobody reads on
            return stop.code if isinstance(stop.code, int) else DEFECT
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return DEFECT
        except (KeyboardInterrupt, typer.Abort):
            return INTERRUPTED
        except Exception as error:
            if debug:
                traceback.print_exc()
            status, text = _explain(error)
            print(f"moesim: error: {one_line(text)}", file=sys.stderr)
    return status if isinstance(status, int) else DONE


def _explain(error: Exception) -> tuple[int, str]:
    if isinstance(error, InputError):
        return REFUSED, str(error)
    # Usage errors are click's, which typer takes from elsewhere depending on its version.
    format_message = getattr(error, "format_message", None)
    if callable(format_message):
        choice = CHOICE.search(str(format_message()))
        if choice is not None:
            *others, last = choice["named"].replace("'", "").split(", ")
            rule = f"must be {', '.join(others)} or {last}" if others else f"must be {last}"
            return REFUSED, str(InputError(choice["option"], rule, choice["given"]))
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "moesim"
        return REFUSED, f"{str(format_message()).rstrip('.')} (see: {command} --help)"
    if isinstance(error, OSError) and error.strerror:
        return DEFECT, f"{error.filename or 'output'}: {error.strerror}"
    return DEFECT, f"{type(error).__name__}: {error} (a defect of moesim; --debug shows where)"
