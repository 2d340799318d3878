"""`moesim trace`: look at, import, make and export routing traces."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.options import JsonOption
from moesim.cli.output import (
    check_file,
    console,
    print_json,
    print_notes,
    print_table,
    progress,
)
from moesim.cli.trace_study import TraceArgument, compare, info

if TYPE_CHECKING:
    from moesim.routing.formats.base import Recording
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
        typer.Argument(
            metavar="FILE...", help="Files or folders of one recording.", show_default=False
        ),
    ],
    out: OutOption,
    model: Annotated[
        str,
        typer.Option(
            help="The model whose router chose: a shipped one, a config.json, or any name.",
            show_default=False,
        ),
    ],
    format_name: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="Instead of telling it by content.",
            show_default=False,
        ),
    ] = None,
    phase: Annotated[
        Phase | None,
        typer.Option(
            help="What was recorded of each sequence, where the files do not say it.",
            show_default=False,
        ),
    ] = None,
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
        typer.Option(min=1, help="Number of experts, instead of the model's.", show_default=False),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=1, help="Experts per token, instead of the model's.", show_default=False),
    ] = None,
    source: Annotated[
        str,
        typer.Option(help="Where the data comes from, kept with the trace.", show_default=False),
    ] = "",
) -> None:
    """Make a trace of what an engine recorded, or a marginal profile where it only counted.

    Reads SGLang's expert distribution recorder, routed_experts of SGLang and vLLM, TensorRT-LLM's
    expert statistics, llama.cpp's imatrix, CSV, JSON of public collections, and .npz.
    """
    from moesim.routing.importers import about_model, import_recording
    from moesim.routing.recording import layers_note

    _check_recording_name(out, files)
    about = about_model(
        model,
        phase=None if phase is None else phase.value,
        domains=tuple(domain or ()),
        index=index,
        label=label,
        experts=experts,
        top_k=top_k,
        provenance={"source": source} if source else None,
    )
    made, found = import_recording(files, about, format_name)
    print(f"Recognised {found.name}: {found.title}")
    _save_recording(made, out)
    if note := layers_note(len(made.layers_L), about):
        print_notes(console(), [note])


@app.command("synth")
def synth(
    model: Annotated[
        str,
        typer.Option(help="A shipped model, or the path of a config.json.", show_default=False),
    ],
    out: OutOption,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.yaml",
            help="A routing profile, shipped or fitted; the model's own by default.",
            show_default=False,
        ),
    ] = None,
    marginals: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Counts that an engine made (from trace import), to keep to.",
            show_default=False,
        ),
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
    from moesim.routing.marginal_profile import MarginalProfile
    from moesim.routing.profiles import completed_trace, default_trace, load_profile

    _check_trace_name(out)
    chosen = load_model(model)
    settings = None if profile is None else load_profile(profile)
    if marginals is None:
        made = default_trace(chosen, seed, tokens, settings)
    else:
        counted = MarginalProfile.open(marginals)
        made = completed_trace(counted, chosen, seed, tokens, settings)
    made.save(out)
    _print_written(made, out)


@app.command("fit")
def fit(
    trace: TraceArgument,
    out: OutOption,
    seed: Annotated[int, typer.Option(min=0, help="Of the traces it is compared with.")] = 0,
) -> None:
    """Fit the generator to a trace: a routing profile for `moesim trace synth --profile`."""
    from moesim.errors import InputError
    from moesim.routing.profiles import fit_profile, save_profile
    from moesim.routing.shipped import open_trace

    if out.suffix != ".yaml":
        raise InputError("--out", "must end in .yaml", str(out))
    check_file(out, "--out")
    profile = fit_profile(open_trace(trace), out.stem, seed)
    save_profile(profile, out)
    told = profile.settings
    print(
        f"Wrote {out}: strength {told.strength:.3g}, request share {told.request_share:.3g}, "
        f"{told.topics} topics, {told.prompt_template_tokens} + {told.output_template_tokens} "
        "template tokens"
    )


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
    from moesim.routing.shipped import open_trace

    check_file(out, "--out")
    opened = open_trace(trace)
    if sequences is not None and sequences < opened.sequences:
        opened = opened.subset(range(sequences))
    export_trace(opened, out)
    _print_written(opened, out)


@app.command("fetch")
def fetch(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Without one, the list.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Where to write the trace; NAME.safetensors here by default.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Download a public recording of real routing and import it (pip install 'moesim[download]').

    Files are checked against a known SHA-256 and kept in the cache folder.
    """
    from moesim.routing.downloads import fetch_trace, find_public_trace

    if name is None:
        _list_public_traces(as_json)
        return
    chosen = find_public_trace(name)
    target = out or Path(f"{chosen.name}.safetensors")
    _check_trace_name(target)
    size = f"{len(chosen.files)} files of {chosen.total_bytes / 1e6:.1f} MB"
    print(f"{chosen.about}: {size} from {chosen.base_url}")
    print(f"Licence: {chosen.licence} ({chosen.licence_url})")
    with progress(f"fetching {chosen.name}") as tell:
        made = fetch_trace(chosen, progress=tell)
    _save_recording(made, target)


def _list_public_traces(as_json: bool) -> None:
    from moesim.routing.downloads import public_traces

    if as_json:
        print_json([trace.model_dump() for trace in public_traces()])
        return
    rows = [
        [trace.name, trace.about, f"{trace.total_bytes / 1e6:.1f} MB", trace.licence]
        for trace in public_traces()
    ]
    print_table(console(), ["public trace", "what", "size", "licence"], rows, numbers=False)


def _save_recording(made: Recording, out: Path) -> None:
    from moesim.errors import InputError
    from moesim.routing.marginal_profile import MarginalProfile

    profile = isinstance(made, MarginalProfile)
    ending = ".json" if profile else ".safetensors"
    if out.suffix != ending:
        kind = "counts only, which make a marginal profile" if profile else "a trace"
        raise InputError("--out", f"must end in {ending}: the files hold {kind}", str(out))
    made.save(out)
    if isinstance(made, MarginalProfile):
        print(
            f"Wrote {out}: a marginal profile of {len(made.layers_L)} layers, "
            f"{made.top_k} of {made.experts} experts"
        )
        print(f"Next: moesim trace synth --model {made.model} --marginals {out} --out FILE")
    else:
        _print_written(made, out)


def _check_recording_name(out: Path, files: Sequence[Path]) -> None:
    """What can be said of --out before anything is read."""
    from moesim.errors import InputError

    if out.resolve() in {file.resolve() for file in files}:
        raise InputError("--out", "must not be a file that is read", str(out))
    if out.suffix not in (".safetensors", ".json"):
        rule = "must end in .safetensors, or in .json where the files hold counts only"
        raise InputError("--out", rule, str(out))
    check_file(out, "--out")


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
