"""Finding a model: one of the shipped presets, or the config.json that a user has."""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

from moesim.architecture import (
    LinearShape,
    MoEModel,
    ParameterCount,
    Status,
    linear_shapes,
)
from moesim.attention import Attention
from moesim.dense_twin import TWIN_KINDS, TwinKind, dense_twin
from moesim.errors import InputError
from moesim.files import read_text
from moesim.hf_config import (
    MAX_CONFIG_BYTES,
    Fields,
    model_from_config,
    parse_json_object,
    sidecar_precision,
)
from moesim.precision import WEIGHT_FORMATS
from moesim.presets import preset_names, read_preset

__all__ = [
    "NOT_MODELLED",
    "Attention",
    "LinearShape",
    "MoEModel",
    "ParameterCount",
    "linear_shapes",
    "load_model",
    "model_aliases",
    "model_names",
]

# Well-known systems that no preset stands for, and why.
NOT_MODELLED = MappingProxyType(
    {
        "claude": "Anthropic has published nothing about its architecture, not even whether it is "
        "a Mixture of Experts",
        "gpt-4o": "OpenAI has published nothing about its architecture",
        "gpt-5": "OpenAI has published nothing about its architecture",
        "gemini-2.5": "Google says that it is a sparse Mixture of Experts but gives no shape; "
        "gemini-1.5-assumed is a stand-in to edit",
        "grok-4": "xAI has published nothing about its architecture",
    }
)


def model_names() -> tuple[str, ...]:
    """Names of the shipped models, sorted."""
    return preset_names("models", ".json")


def model_aliases() -> dict[str, str]:
    """The shipped model of every other name that one has, in small letters."""
    return {alias: preset for preset in model_names() for alias in _aliases(preset)}


def load_model(name_or_path: str) -> MoEModel:
    """A shipped model by name or alias, or a config.json by its path or its folder's.

    `dense-active:MODEL` and `dense-total:MODEL` are its dense twins (moesim.dense_twin).

    A file may also have the presets' own form, ``{"config": ..., "moesim": ...}``, which is how
    an assumed model is replaced by one's own figures. Raises InputError.
    """
    given = str(name_or_path).strip()
    for kind in TWIN_KINDS:
        if given.startswith(prefix := twin_name("", kind)):
            return dense_twin(_load_model(given.removeprefix(prefix)), kind)
    return _load_model(given)


def _load_model(given: str) -> MoEModel:
    """Of a name or path that is no twin's."""
    name = given.lower().replace("_", "-")
    names = model_names()
    if name in names:
        return _from_preset(name)
    if _exists(given):
        path = Path(given)
        try:
            return _from_file(path / "config.json" if path.is_dir() else path)
        except InputError as error:
            rule, value, hint = error.rule, error.value, error.hint
            raise InputError(f"model {error.field}", rule, value, hint) from None
    for preset in names:
        if name in _aliases(preset):
            return _from_preset(preset)
    for system, reason in NOT_MODELLED.items():
        if name == system or name.startswith(f"{system}-"):
            raise InputError("model", f"cannot be {system}: {reason}")
    if given.endswith(".json"):
        raise InputError("model", "must be an existing config.json or a shipped model", given)
    known = {**model_aliases(), **{preset: preset for preset in names}}
    close = difflib.get_close_matches(name, known, n=1) or difflib.get_close_matches(
        name.rpartition("/")[2], known, n=1
    )
    hint = f"did you mean {known[close[0]]}?" if close else "`moesim models` lists them"
    raise InputError("model", "must be a shipped model or the path of a config.json", given, hint)


def twin_name(model: str, kind: TwinKind) -> str:
    """What `load_model` knows the dense twin of a model by."""
    return f"dense-{kind}:{model}"


def _exists(path: str) -> bool:
    try:
        return bool(path) and Path(path).exists()
    except (OSError, ValueError):
        return False


def _aliases(preset: str) -> tuple[str, ...]:
    about = parse_json_object(read_preset("models", f"{preset}.json"), preset)["moesim"]
    return tuple(about.get("aliases", ()))


def _from_preset(name: str) -> MoEModel:
    return _from_parts(parse_json_object(read_preset("models", f"{name}.json"), name), name, name)


def _from_file(path: Path) -> MoEModel:
    where = str(path)
    values = parse_json_object(read_text(path, MAX_CONFIG_BYTES, where), where)
    name = path.resolve().parent.name if path.name == "config.json" else path.stem
    if "moesim" in values:
        return _from_parts(values, name, where)
    model = model_from_config(values, name, where, source=where)
    # ModelOpt writes the quantisation beside the config of the model it quantised.
    sidecar = path.with_name(path.name.replace("config.json", "hf_quant_config.json"))
    if model.native_precision != "bf16" or sidecar == path or not sidecar.is_file():
        return model
    found = parse_json_object(read_text(sidecar, MAX_CONFIG_BYTES, str(sidecar)), str(sidecar))
    return replace(model, native_precision=sidecar_precision(Fields(found, str(sidecar))))


def _from_parts(values: dict[str, Any], name: str, where: str) -> MoEModel:
    """A model in the presets' form: the config, and what is known about where it comes from."""
    file = Fields(values, where)
    about = file.nested("moesim")
    config = file.nested("config").values
    model = model_from_config(dict(config), name, where, about.text("source", limit=2_000))
    precision = about.text("native_precision", default=model.native_precision)
    formats = [each.name for each in WEIGHT_FORMATS]
    if precision not in formats:
        raise about.error("native_precision", f"must be one of {', '.join(formats)}", precision)
    statuses: tuple[Status, ...] = get_args(Status)
    status = about.text("status", default="assumed")
    if status not in statuses:
        raise about.error("status", f"must be one of {', '.join(statuses)}", status)
    name = about.text("name", default=name)
    if not re.fullmatch(r"[\w .+-]{1,100}", name):
        raise about.error("name", "must be made of letters, digits, spaces and ._+-", name)
    date = about.text("date", default="")
    source = f"{model.source} ({date})" if date else model.source
    return replace(
        model,
        name=name,
        status=statuses[statuses.index(status)],
        source=source,
        note=about.text("note", default="", limit=5_000),
        native_precision=precision,
        published_total=about.number("published_total", 1.0, 1e15),
        published_active=about.number("published_active", 1.0, 1e15),
    )
