"""Checkpoints as launch commands name them: which shipped model, and the format of its weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moesim.errors import InputError
from moesim.model import MoEModel, load_model, model_aliases, model_names
from moesim.precision import native_formats

# Shapes that a shipped model has under another name, in the format that they were published in.
_PUBLISHED = {
    "kimi-k2-thinking": ("kimi-k2", "int4"),
    "minimax-m2.1": ("minimax-m2", "fp8"),
}
# Endings of names: formats, and what says nothing of shape or format. awq stands for int4 in every
# linear layer, int4 for int4 in experts alone.
_FORMATS = {
    r"(nv)?fp4(-v\d)?": "nvfp4",
    r"mxfp4": "mxfp4",
    r"fp8(-dynamic|-kv|-block)?": "fp8",
    r"(block-|channel-)?int8": "fp8",
    r"w8a8": "fp8",
    r"(awq|gptq)(-int4|-4bit)?": "awq",
    r"int4(-awq|-gptq)?": "awq",
    r"w4a16": "awq",
    r"w4afp8": "int4",
    r"bf16": "bf16",
}
_PLAIN = re.compile(r"-(instruct|thinking|base|chat|it|hf|original|\d{4}|v\d+\.\d+)$")
# What --quantization and the like are called, by what the weights take.
QUANTISATIONS = {
    "": None,
    "none": None,
    "compressed-tensors": None,
    **dict.fromkeys(("fp8", "modelopt", "modelopt_fp8", "w8a8_fp8", "fbgemm_fp8"), "fp8"),
    **dict.fromkeys(("ptpc_fp8", "deepspeedfp", "mxfp8", "fp8_block_scales", "deepgemm"), "fp8"),
    **dict.fromkeys(("w8a8_int8", "experts_int8", "int8"), "fp8"),
    **dict.fromkeys(("awq", "awq_marlin", "gptq", "gptq_marlin", "moe_wna16", "int4"), "awq"),
    **dict.fromkeys(("w4a16", "w4a8_awq", "w4a16_awq", "marlin", "auto-round"), "awq"),
    "w4afp8": "int4",
    **dict.fromkeys(("modelopt_fp4", "petit_nvfp4", "nvfp4"), "nvfp4"),
    **dict.fromkeys(("w8a16", "w8a8_sq_per_channel"), "fp8"),
    **dict.fromkeys(("mxfp4", "gpt-oss-mxfp4", "w4a8_mxfp4_mxfp8", "w4a16_mxfp4"), "mxfp4"),
}
KV_TYPES = {
    **dict.fromkeys(("", "auto", "bf16", "bfloat16", "float16", "fp16", "half"), "bf16"),
    **dict.fromkeys(("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "fp8_ds_mla"), "fp8"),
}
TYPES = dict.fromkeys(("", "auto", "bfloat16", "bf16", "float16", "fp16", "half"), True)


@dataclass(frozen=True)
class Checkpoint:
    """A shipped model (or a file), and its weights where they are not as it was published."""

    model: str
    loaded: MoEModel
    weights: str | None = None
    experts: str | None = None

    def precision(self) -> dict[str, str]:
        """Fields of a scenario's `precision`."""
        found = {"weights": self.weights, "experts": self.experts}
        return {name: value for name, value in found.items() if value is not None}


def find_checkpoint(name: str, quantisation: str | None, model: str | None = None) -> Checkpoint:
    """The checkpoint of that name (a Hugging Face id or a path).

    `quantisation`: the format that a flag asks for. `model`: the shipped model or config.json to
    take for a name that moesim does not know. Raises InputError.
    """
    found, stored = (model, None) if model else _shape(name)
    if found is None:
        hint = "--set model=NAME says which shipped model, or whose config.json, has its shape"
        raise InputError("model", "is no checkpoint that moesim knows", name, hint)
    loaded = load_model(found)
    wanted = quantisation or _ending(name.lower())[1] or stored
    if wanted is None or wanted == loaded.native_precision:
        return Checkpoint(_model_name(found), loaded)
    # A checkpoint in four bits stays so, whatever kernel a flag asks for.
    if quantisation == "fp8" and loaded.native_precision in ("int4", "nvfp4", "mxfp4"):
        return Checkpoint(_model_name(found), loaded)
    if wanted == "awq":
        return Checkpoint(_model_name(found), loaded, "int4")
    weights, experts = native_formats(wanted, loaded.is_moe)
    return Checkpoint(_model_name(found), loaded, weights, experts)


def _model_name(found: str) -> str:
    return found if Path(found).suffix or "/" in found else load_model(found).name


def _shape(name: str) -> tuple[str | None, str | None]:
    """(shipped model or path, format it is stored in where its name is a known other one)."""
    if _is_path(name):
        return name, None
    aliases = model_aliases()
    known = {alias.rpartition("/")[2]: model for alias, model in aliases.items()}
    known |= {model: model for model in model_names()}
    for tried in _names(name):
        if tried in _PUBLISHED:
            return _PUBLISHED[tried]
        if tried in known:
            return known[tried], None
    return None, None


def _is_path(name: str) -> bool:
    path = Path(name)
    try:
        return (path / "config.json").is_file() or path.is_file()
    except (OSError, ValueError):
        return False


def _names(name: str) -> Iterator[str]:
    """The name without its owner, then without its known endings, one after the other."""
    short = name.rstrip("/").rpartition("/")[2].lower()[:200]
    while short:
        yield short
        shorter = _ending(short)[0]
        shorter = shorter if shorter != short else _PLAIN.sub("", short)
        short = "" if shorter == short else shorter


def _ending(name: str) -> tuple[str, str | None]:
    """(name without the ending that says a format, that format)."""
    for pattern, kind in _FORMATS.items():
        match = re.search(rf"-{pattern}$", name)
        if match:
            return name[: match.start()], kind
    return name, None
