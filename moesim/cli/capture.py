"""`moesim calibrate capture`: a routing trace of one's own model and prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.options import JsonOption
from moesim.cli.output import check_file, print_json, progress

if TYPE_CHECKING:
    from calibration.capture.overhead import Overhead
    from calibration.capture.run import Captured


def capture(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A folder with a Hugging Face model, or its name on the hub.",
            show_default=False,
        ),
    ],
    prompts: Annotated[
        list[Path],
        typer.Argument(
            metavar="PROMPTS...",
            help="JSONL files (prompt, text, messages or tokens, and domain), or text files with a "
            "prompt per line.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FILE.safetensors", help="Where to write.", show_default=False
        ),
    ],
    output_tokens: Annotated[
        int, typer.Option(min=0, max=10**6, help="Tokens to generate; 0 captures prompts only.")
    ] = 0,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=100.0, help="Of sampling; 0 is greedy.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Nucleus that is sampled from.")
    ] = 1.0,
    ignore_end: Annotated[
        bool, typer.Option("--ignore-end", help="Generate all tokens, whatever the model ends.")
    ] = False,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Cut prompts to so many tokens.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Only the first prompts of each file.", show_default=False),
    ] = None,
    domain: Annotated[
        str | None,
        typer.Option(
            help="Domain of prompts that do not name theirs; the file's name by default.",
            show_default=False,
        ),
    ] = None,
    label: Annotated[str, typer.Option(help="The key that names a JSONL line's domain.")] = (
        "domain"
    ),
    chat: Annotated[
        bool, typer.Option("--chat", help="Put each prompt in the model's chat template.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Prompts at once.")] = 8,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:N, or spread over all GPUs.")
    ] = "auto",
    dtype: Annotated[
        str, typer.Option(help="Of the weights: auto, bfloat16, float16 or float32.")
    ] = "auto",
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="Of sampling.")] = 0,
    no_weights: Annotated[
        bool, typer.Option("--no-weights", help="Leave the routers' weights out: a third the size.")
    ] = False,
    source: Annotated[
        str,
        typer.Option(
            help="Where model and prompts come from, kept with the trace.", show_default=False
        ),
    ] = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a capture that was interrupted.")
    ] = False,
    overhead: Annotated[
        bool, typer.Option("--overhead", help="Time the first batch with and without the hooks.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a Hugging Face MoE model over prompts and record which experts every token chose.

    Ctrl-C keeps what is done, as a trace; --resume goes on. Needs torch and transformers.
    """
    from moesim.errors import InputError

    if out.suffix != ".safetensors":
        raise InputError("--out", "must end in .safetensors", str(out))
    check_file(out, "--out")
    from calibration.capture.loading import load_model, require_torch
    from calibration.capture.prompts import read_prompts

    require_torch()
    from calibration.capture.overhead import measure_overhead
    from calibration.capture.run import Decoding
    from calibration.capture.run import capture as capture_trace

    read = read_prompts(prompts, domain, label, limit)
    loaded = load_model(model, device, dtype)
    decoding = Decoding(output_tokens, temperature, top_p, seed, ignore_end)
    measured = (
        measure_overhead(loaded, read.prompts[:batch], prompt_tokens, chat) if overhead else None
    )
    about = {"prompt_files": ", ".join(path.name for path in prompts)}
    if source:
        about["source"] = source
    with progress("capturing", remaining=True) as show:
        made = capture_trace(
            loaded,
            read,
            out,
            decoding=decoding,
            batch=batch,
            prompt_tokens=prompt_tokens,
            chat=chat,
            weights=not no_weights,
            resume=resume,
            progress=show,
            provenance=about,
        )
    if as_json:
        print_json(_told(made, out, measured))
    else:
        _print(made, out, measured)
    if not made.complete:
        raise typer.Exit(130)


def _told(made: Captured, out: Path, overhead: Overhead | None) -> dict[str, object]:
    """Times in seconds."""
    trace = made.trace
    return {
        "file": str(out),
        "complete": made.complete,
        "tokens": trace.tokens,
        "prompt_tokens": int(trace.prompt_tokens_S.sum()),
        "sequences": trace.sequences,
        "layers": trace.layers,
        "experts": trace.experts,
        "top_k": trace.top_k,
        "captured_tokens": made.tokens,
        "seconds": made.seconds,
        "overhead": None
        if overhead is None
        else {
            "plain_s": overhead.plain_s,
            "hooked_s": overhead.hooked_s,
            "percent": 100 * overhead.share,
        },
    }


def _print(made: Captured, out: Path, overhead: Overhead | None) -> None:
    trace = made.trace
    print(
        f"Wrote {out}: {trace.tokens:,} tokens ({int(trace.prompt_tokens_S.sum()):,} of prompts) "
        f"of {trace.sequences:,} sequences, {trace.layers} layers, "
        f"{trace.top_k} of {trace.experts} experts"
    )
    if made.seconds > 0:
        print(f"{made.tokens:,} tokens in {made.seconds:.1f} s")
    if overhead is not None:
        print(
            f"The hooks cost {100 * overhead.share:.1f} % of a prefill "
            f"({overhead.plain_s * 1e3:.1f} ms without, {overhead.hooked_s * 1e3:.1f} ms with)"
        )
    if not made.complete:
        print(f"Interrupted: the trace has {trace.provenance['unfinished']}; --resume goes on")
