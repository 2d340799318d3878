"""A model and its tokenizer from a folder or the Hugging Face hub, without running their code.

Weights are read from safetensors only (a `.bin` is a pickle), and code that a repository ships is
never trusted. A model is loaded as the class that its config names, if transformers has it: that
fits the weights' names, also of multimodal models, and knows a `model_type` of others' code
(kimi_k2 names DeepseekV3ForCausalLM).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim.errors import InputError

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, its tokenizer if it has one, and what is known of it."""

    model: Any  # transformers.PreTrainedModel
    tokenizer: Any | None
    name: str
    provenance: dict[str, str]

    @property
    def encoder_decoder(self) -> bool:
        return bool(getattr(self.model.config, "is_encoder_decoder", False))


def require_torch() -> None:
    """InputError that says how to install them where torch or transformers is missing."""
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise InputError(
            "calibrate capture",
            f"needs torch and transformers: {error}",
            None,
            "pip install 'moesim[calibration]'",
        ) from None


def load_model(source: str, device: str, dtype: str, revision: str | None = None) -> Loaded:
    """Load in evaluation mode; `device` is auto, cpu, cuda, cuda:N, mps or spread (all GPUs).

    Raises InputError, in one line, whatever transformers finds wrong.
    """
    import torch
    import transformers
    from transformers.utils import logging

    if dtype not in DTYPES:
        raise InputError("--dtype", f"must be one of {', '.join(DTYPES)}", dtype)
    place = _device(device)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    common: dict[str, Any] = {"trust_remote_code": False, "revision": revision}
    try:
        config = transformers.PretrainedConfig.get_config_dict(source, revision=revision)[0]
        cls = _model_class(config)
        model, info = cls.from_pretrained(
            source,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            use_safetensors=True,
            device_map="auto" if place is None else None,
            output_loading_info=True,
            **_config(cls, config),
            **common,
        )
        if info["missing_keys"]:  # transformers would leave them random
            raise ValueError(f"it lacks the weights {sorted(info['missing_keys'])[:3]}")
        tokenizer = _tokenizer(source, common)
        model = model if place is None else model.to(place)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError) as error:
        raise InputError(source, f"cannot be loaded: {_first_line(error)}") from None
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()
    provenance = {
        "model": source,
        "model_type": str(config.get("model_type")),
        "config_sha256": digest,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": _device_name(model),
        "software": f"transformers {transformers.__version__}, torch {torch.__version__}",
    }
    commit = getattr(model.config, "_commit_hash", None)
    if commit:
        provenance["revision"] = str(commit)
    return Loaded(model.eval(), tokenizer, Path(source).name, provenance)


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _device(device: str) -> Any:
    """A torch device; None for a model spread over all of them."""
    import torch

    if device == "spread":
        return None
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise InputError("--device", "must be auto, cpu, cuda, cuda:N or spread", device) from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise InputError("--device", "must be there: torch finds no CUDA GPU", device)
    return place


def _device_name(model: Any) -> str:
    import torch

    if model.device.type == "cuda":
        return str(torch.cuda.get_device_name(model.device))
    return str(model.device.type)


def _model_class(config: dict[str, Any]) -> Any:
    import transformers

    for name in config.get("architectures") or ():
        cls = getattr(transformers, str(name), None)
        if isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel):
            if not issubclass(cls, transformers.GenerationMixin):
                raise ValueError(f"{name} is no language model that generates")
            return cls
    if config.get("model_type") in transformers.CONFIG_MAPPING:
        if config.get("is_encoder_decoder"):
            return transformers.AutoModelForSeq2SeqLM
        return transformers.AutoModelForCausalLM
    kind = config.get("model_type")
    raise ValueError(f"transformers {transformers.__version__} does not know model_type {kind!r}")


def _config(cls: Any, config: dict[str, Any]) -> dict[str, Any]:
    """The argument `config` where the file's `model_type` is unknown: that of the class.

    transformers goes by it when it stacks the experts' weights, and leaves them out otherwise.
    """
    import transformers

    if config.get("model_type") in transformers.CONFIG_MAPPING:
        return {}
    own = {**config, "model_type": cls.config_class.model_type}
    return {"config": cls.config_class.from_dict(own)}


def _tokenizer(source: str, common: dict[str, Any]) -> Any | None:
    """The tokenizer, padding on the left; None for a model that has none."""
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **common)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return tokenizer
