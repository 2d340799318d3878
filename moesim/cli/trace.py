"""`moesim trace`: look at, import, make and export routing traces."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.output import check_file
from moesim.cli.trace_study import TraceArgument, compare, info

if TYPE_CHECKING:
    from moesim.routing.trace import RoutingTrace

app = typer.Typer(help="Routing traces: which experts each token chose, at each layer.")


class Phase(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"


OutOption = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="FILE", help="Where to write it.", show_default=False),
]


app.command("info")(info)
app.command("compare")(compare)


@app.command("import")
def import_trace(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE.npz...", help="One or more shards.", show_default=False),
    ],
    out: OutOption,
    model: Annotated[str, typer.Option(help="The model whose router chose.", show_default=False)],
    phase: Annotated[
        Phase, typer.Option(help="What the files recorded of each sequence.", show_default=False)
    ],
    domain: Annotated[
        list[str] | None,
        typer.Option(
            help="Domain of all files, or once for each; the files' names by default.",
            show_default=False,
        ),
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="A list that names each sequence's domain, by the files' seq_index.",
            show_default=False,
        ),
    ] = None,
    label: Annotated[str, typer.Option(help="The key of the index that is the domain.")] = (
        "category"
    ),
    experts: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of experts, instead of the files' own.", show_default=False
        ),
    ] = None,
    source: Annotated[
        str,
        typer.Option(help="Where the data comes from, kept with the trace.", show_default=False),
    ] = "",
) -> None:
    """Make a trace of .npz files: ids [tokens, layers, top-k], seq_lens, num_experts."""
    from moesim.routing.importers import import_npz

    _check_trace_name(out)
    about = {"imported_from": ", ".join(file.name for file in files)}
    if source:
        about["source"] = source
    domains = domain[0] if domain and len(domain) == 1 else domain
    made = import_npz(
        files,
        model=model,
        phase=phase.value,
        domain=domains,
        index=index,
        label=label,
        experts=experts,
        provenance=about,
    )
    made.save(out)
    _print_written(made, out)


@app.command("synth")
def synth(
    model: Annotated[
        str,
        typer.Option(help="A shipped model, or the path of a config.json.", show_default=False),
    ],
    out: OutOption,
    profile: Annotated[
        str | None,
        typer.Option(help="Generator settings; the model's own by default.", show_default=False),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=4_000_000,
            help="Length; what takes a few seconds by default.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
) -> None:
    """Make a synthetic trace with the statistics published for a model's router."""
    from moesim.model import load_model
    from moesim.routing.profiles import default_trace, load_profile

    _check_trace_name(out)
    chosen = load_model(model)
    settings = None if profile is None else load_profile(profile)
    made = default_trace(chosen, seed, tokens, settings)
    made.save(out)
    _print_written(made, out)


@app.command("export")
def export(
    trace: TraceArgument,
    out: OutOption,
    sequences: Annotated[
        int | None,
        typer.Option(min=1, help="Only so many, from the first on.", show_default=False),
    ] = None,
) -> None:
    """Write a trace for other tools, as .npz or .csv."""
    from moesim.routing.export import export_trace
    from moesim.routing.trace import RoutingTrace

    check_file(out, "--out")
    opened = RoutingTrace.open(trace)
    if sequences is not None and sequences < opened.sequences:
        opened = opened.subset(range(sequences))
    export_trace(opened, out)
    _print_written(opened, out)


def _check_trace_name(out: Path) -> None:
    from moesim.errors import InputError

    if out.suffix != ".safetensors":
        raise InputError("--out", "must end in .safetensors", str(out))
    check_file(out, "--out")


def _print_written(trace: RoutingTrace, path: Path) -> None:
    print(
        f"Wrote {path}: {trace.tokens:,} tokens of {trace.sequences:,} sequences, "
        f"{trace.layers} layers, {trace.top_k} of {trace.experts} experts"
    )
