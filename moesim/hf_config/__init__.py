"""MoEModel from a Hugging Face config.json.

Anything that moesim cannot cost (a layer kind or quantisation it does not know) is refused rather
than ignored.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moesim.architecture import MoEModel
from moesim.errors import InputError
from moesim.hf_config.families import FAMILIES
from moesim.hf_config.fields import MAX_CONFIG_BYTES, Fields, parse_json_object

__all__ = [
    "FAMILIES",
    "MAX_CONFIG_BYTES",
    "Fields",
    "model_from_config",
    "native_precision",
    "parse_json_object",
    "sidecar_precision",
]

MAX_PARAMETERS = 1e14


def model_from_config(config: Mapping[str, Any], name: str, where: str, source: str) -> MoEModel:
    """The architecture that a config.json describes.

    `where` leads the field in error messages. Multimodal configs nest the language model in
    `text_config`; its values win. Raises InputError for an unknown model_type, a missing or
    absurd value, and parts that cannot be costed.
    """
    outer = Fields(config, where)
    fields = outer.nested("text_config") if outer.has("text_config") else outer
    nested = fields if fields.has("model_type") else outer
    family = nested.text("model_type")
    if family not in FAMILIES:
        close = difflib.get_close_matches(family, FAMILIES, n=1)
        hint = f"did you mean {close[0]}?" if close else ""
        raise nested.error("model_type", f"must be one of {', '.join(FAMILIES)}", family, hint)
    tied = fields if fields.has("tie_word_embeddings") else outer
    model = replace(
        FAMILIES[family](fields, family),
        name=name,
        source=source,
        native_precision=native_precision(fields if fields.has("quantization_config") else outer),
        tied_embeddings=tied.flag("tie_word_embeddings", False),
    )
    total = float(model.parameters().total)
    if total > MAX_PARAMETERS:
        raise InputError(where, f"must describe at most {MAX_PARAMETERS:.0e} parameters", total)
    return model


def native_precision(fields: Fields) -> str:
    """The weight format that `quantization_config` names; bf16 without one."""
    if not fields.has("quantization_config"):
        return "bf16"
    given = fields.nested("quantization_config")
    producer = given.nested("producer", required=False).text("name", default="")
    method = given.text("quant_method", default=producer).lower()
    found: str | None = None
    if method in ("fp8", "mxfp4"):
        found = method
    elif method in ("awq", "gptq") and given.integer("bits", 64) == 4:
        found = "int4"
    elif method == "modelopt":
        found = {"NVFP4": "nvfp4", "FP8": "fp8"}.get(given.text("quant_algo"))
    elif method == "compressed-tensors":
        found = _compressed_format(given)
    if found is None:
        raise given.error(
            "quant_method",
            "must store weights as fp8, int4, nvfp4 or mxfp4",
            method,
            "remove quantization_config and set the scenario's precision",
        )
    return found


def sidecar_precision(fields: Fields) -> str:
    """The weight format of a ModelOpt checkpoint's hf_quant_config.json."""
    given = fields.nested("quantization")
    found = {"NVFP4": "nvfp4", "FP8": "fp8"}.get(given.text("quant_algo"))
    if found is None:
        raise given.error("quant_algo", "must be NVFP4 or FP8", given.values["quant_algo"])
    return found


def _compressed_format(given: Fields) -> str | None:
    """The one format of all groups of a compressed-tensors checkpoint, None if there is none."""
    groups = given.nested("config_groups")
    formats = set()
    for name in groups.values:
        weights = groups.nested(name).nested("weights")
        formats.add((weights.text("type"), weights.integer("num_bits", 64)))
    known = {("int", 4): "int4", ("float", 4): "nvfp4", ("float", 8): "fp8"}
    return known.get(formats.pop()) if len(formats) == 1 else None
