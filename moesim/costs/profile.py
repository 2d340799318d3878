"""Profile: every free number of the step cost, read from a file that says where each came from."""

from __future__ import annotations

import functools
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from moesim.errors import InputError
from moesim.files import read_text
from moesim.plain_yaml import read_yaml
from moesim.spec import Spec

Fraction = Field(gt=0.0, le=1.0)
Seconds = Field(ge=0.0, le=10.0)


class ComputeProfile(Spec):
    """Reached fractions of the datasheet's rates, and fixed times of kernels."""

    gemm_flops_fraction: float = Fraction
    gemm_bytes_fraction: float = Fraction
    prefill_attention_flops_fraction: float = Fraction
    decode_attention_bytes_fraction: float = Fraction
    expert_flops_fraction: float = Fraction
    expert_bytes_fraction: float = Fraction
    expert_tile_tokens: int = Field(ge=1, le=1024)
    kernel_s: float = Seconds
    eager_kernel_s: float = Seconds
    elementwise_passes: float = Field(ge=0.0, le=100.0)

    @field_validator("expert_tile_tokens")
    @classmethod
    def _power_of_two(cls, tile: int) -> int:
        """Steps round up to tiles by shifting bits."""
        if tile & (tile - 1):
            raise ValueError("must be a power of two")
        return tile


class NetworkProfile(Spec):
    """Fixed times of collectives; bandwidths belong to the links of the cluster.

    `kv_setup_s` passes before the first byte of a request's keys and values moves from pool to
    pool: 6.7 ms, the mean time to post the 1,785 reads of 167 MB with vLLM's NixlConnector, which
    took 38.7 ms in all (3 prefill and 1 decode instance in one node, block size 64; vllm issue
    #50913, 2026-08-28; trust B). `low_latency_base_s` and `normal_base_s` take the place of the
    fitted fixed times of DeepEP (presets/collectives.csv) where they are set.
    """

    all_reduce_base_s: float = Seconds
    collective_base_s: float = Seconds
    low_latency_base_s: float | None = Field(default=None, ge=0.0, le=10.0)
    normal_base_s: float | None = Field(default=None, ge=0.0, le=10.0)
    message_header_bytes: int = Field(ge=0, le=4096)
    kv_setup_s: float = Field(default=0.0067, ge=0.0, le=10.0)


class OverheadProfile(Spec):
    """Host time of the engine that the GPU waits for."""

    step_s: float = Seconds
    request_s: float = Seconds
    prefill_step_s: float = Seconds
    arrival_s: float = Seconds
    # Kernels of a layer that no table times (norms, rotary embedding, routing), and what prompts
    # take beyond the sum of their kernels, which are launched one by one.
    layer_s: float = Field(default=0.0, ge=0.0, le=0.01)
    prefill_ratio: float = Field(default=1.0, ge=0.5, le=4.0)
    # Launching one operation of a step with prompts from Python: such a step takes no less than all
    # its launches.
    launch_s: float = Field(default=0.0, ge=0.0, le=0.01)
    # Tokenising one token of a prompt.
    arrival_token_s: float = Field(default=0.0, ge=0.0, le=0.001)

    def arrival_delay_s(self, prompt_tokens_N: NDArray[np.int32]) -> float:
        """Time from a request's arrival to the scheduler, for the mean prompt."""
        mean = float(prompt_tokens_N.mean()) if prompt_tokens_N.size else 0.0
        return self.arrival_s + self.arrival_token_s * mean


class MemoryProfile(Spec):
    """What the engine leaves of a GPU's memory for weights and keys and values."""

    utilisation: float = Fraction
    reserved_bytes: float = Field(ge=0.0)


class PowerProfile(Spec):
    """Power that a GPU draws in each phase, as fractions of its limit (`power_w` of the preset).

    One number a phase, from published measurements; draw grows with batch size in truth.
    idle: 80 W of an H200's 700 W with nothing to do (Serial Alice GPU Energy Benchmark, 2026-06).
    prefill: compute-bound, near the limit: 593 W of 700 W at most on that H200, 680 W on an H100
    (same source); prompt phases peak at or above the limit of A100s (POLCA, arXiv 2308.12908).
    decode: memory-bound. 137 to 300 W of an H200's 700 W at batches up to 32 (Ma et al., arXiv
    2605.11999), 300 W at batch 1 to 600 W at batch 128 on an H100 (ML.ENERGY v3, arXiv 2601.22076,
    as quoted by the vLLM semantic router's power model): 0.2 to 0.86, of which this is the middle.
    Read 2026-11-22, second hand: trust B; decode C.
    """

    idle_fraction: float = Field(default=0.115, ge=0.0, le=1.0)
    prefill_fraction: float = Field(default=0.9, gt=0.0, le=1.5)
    decode_fraction: float = Field(default=0.5, gt=0.0, le=1.5)


class Profile(Spec):
    """Timing data for one kind of machine and engine; `label` goes with every result."""

    label: str
    date: str
    # Where operators' times come from: the rates below, or kernels measured on this GPU.
    kernels: Literal["rates", "measured"] = "rates"
    compute: ComputeProfile
    network: NetworkProfile
    overhead: OverheadProfile
    memory: MemoryProfile
    power: PowerProfile = PowerProfile.default()


def load_profile(
    name_or_path: str, engine: str = "vllm", field: str = "deployment.profile"
) -> Profile:
    """A shipped profile by name, or one from a YAML file; `measured` is the engine's own.

    Raises InputError.
    """
    return _parse_profile(profile_text(name_or_path, engine, field), field)


def profile_text(name_or_path: str, engine: str = "vllm", field: str = "deployment.profile") -> str:
    """The YAML behind `load_profile`. Raises InputError."""
    name_or_path = engine if name_or_path == "measured" else name_or_path
    shipped = resources.files("moesim.presets").joinpath("profiles")
    names = sorted(
        p.name.removesuffix(".yaml") for p in shipped.iterdir() if p.name.endswith(".yaml")
    )
    if name_or_path in names:
        return shipped.joinpath(f"{name_or_path}.yaml").read_text(encoding="utf-8")
    if Path(name_or_path).suffix in (".yaml", ".yml"):
        return read_text(name_or_path, max_bytes=4e6, field=field)
    known = ", ".join(["auto", "measured", *names])
    raise InputError(field, f"must be one of {known} or a .yaml file", name_or_path)


@functools.lru_cache(maxsize=8)
def _parse_profile(text: str, field: str) -> Profile:
    """Many runs share a profile, and reading YAML takes as long as a small one of them."""
    data = read_yaml(text, field)
    if isinstance(data, dict) and hasattr(data.get("date"), "isoformat"):
        data["date"] = data["date"].isoformat()
    return Profile.parse(data, field)
