"""Scenario: everything a run depends on, validated; and reading it from YAML."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from moesim.costs.exchanges import PLAIN
from moesim.deployment_spec import Count, DeploymentSpec, PoolSpec
from moesim.errors import InputError
from moesim.files import read_text
from moesim.plain_yaml import read_yaml
from moesim.policies.batching import ChunkedPrefill, InFlight, PrefillFirst, Static
from moesim.policies.faults import FaultsSpec
from moesim.price_spec import EconomicsSpec
from moesim.spec import Spec
from moesim.topology import BackgroundTransfer, Topology
from moesim.workload.arrivals import MAX_REQUESTS
from moesim.workload.workload import Workload


class PrecisionSpec(Spec):
    """Number formats; None follows the model's own files."""

    weights: str | None = None
    experts: str | None = None
    kv_cache: Literal["bf16", "fp8"] = "bf16"
    dispatch: Literal["bf16", "fp8"] | None = None


class ClusterSpec(Spec):
    """The machines: GPUs in nodes, and what connects the nodes."""

    gpu: str
    gpus_per_node: Count = 8
    nodes: Count = 1
    fabric: str | None = None  # None: the GPU's usual one
    # Of the links between leaves and spine where a topology is given, else of all NICs.
    oversubscription: float = Field(1.0, ge=1.0, le=64.0)
    scale_up_domain: Count | None = None  # GPUs that one scale-up switch joins; None: the GPU's
    topology: Topology | None = None
    background: tuple[BackgroundTransfer, ...] = Field((), max_length=10_000)


class RoutingSpec(Spec):
    """Where the tokens' experts come from.

    `trace` is a file made by `moesim trace` or `moesim calibrate capture`, a shipped recording
    (`tiny-moe`: 32 experts, top-4), or `synthetic` (the generator fitted to the model's
    published statistics), `uniform` (independent and uniform) or `balanced` (perfectly even over
    any run of tokens, as prompts are; requests that decode in step share the experts of their row).
    """

    trace: str = "synthetic"
    # `replay` counts the experts of each step's own tokens; `averaged` takes the mean of batches of
    # the step's size, sampled beforehand: as fast as a dense model, and without routing's variance.
    mode: Literal["replay", "averaged"] = "replay"
    # Length of a generated trace; None: enough for the model within a few seconds.
    tokens: int | None = Field(None, ge=256, le=4_000_000)


class SLOSpec(Spec):
    """Service-level objective: the share of requests within all given limits is reported."""

    ttft_s: float | None = Field(None, gt=0.0)
    tpot_s: float | None = Field(None, gt=0.0)
    e2e_s: float | None = Field(None, gt=0.0)


def _warmup(value: object) -> object:
    """One message for the three things allowed, where a union would report each on its own."""
    if value in ("auto", "none") or (type(value) is int and 0 <= value <= MAX_REQUESTS):
        return value
    raise ValueError("must be auto, none or a number of requests")


class MeasureSpec(Spec):
    """Which requests count. `auto`: all of a trace or closed loop, MSER-5 truncation otherwise.

    `statistics`: `exact` keeps every token's time and every step; `streaming` counts gaps between
    tokens in bins and adds steps up as they come (docs/explanation/streaming.md); `auto`: streaming
    where the workload has more than 20 million output tokens.
    """

    warmup: Annotated[Literal["auto", "none"] | int, BeforeValidator(_warmup)] = "auto"
    statistics: Literal["auto", "exact", "streaming"] = "auto"


def _printable(text: str) -> str:
    if not text.isprintable():  # a terminal would obey control characters
        raise ValueError("must be one line of printable text")
    return text


class Scenario(Spec):
    """Everything a run depends on."""

    name: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
    question: str = ""
    model: str
    precision: PrecisionSpec = PrecisionSpec.default()
    cluster: ClusterSpec
    deployment: DeploymentSpec = DeploymentSpec.default()
    routing: RoutingSpec = RoutingSpec.default()
    workload: Workload
    faults: FaultsSpec | None = None
    slo: SLOSpec = SLOSpec.default()
    economics: EconomicsSpec = EconomicsSpec.default()
    measure: MeasureSpec = MeasureSpec.default()
    seed: int = Field(0, ge=0, lt=2**63)

    @property
    def batching(self) -> ChunkedPrefill | PrefillFirst | InFlight | Static:
        """The batching settings, or the engine's default."""
        if self.deployment.batching is not None:
            return self.deployment.batching
        if self.deployment.engine == "trtllm":
            return InFlight()
        return ChunkedPrefill() if self.deployment.engine == "vllm" else PrefillFirst()

    def pools(self) -> tuple[tuple[str, Scenario], ...]:
        """(name, scenario of its own) of each pool: prefill, then decode; ("", self) without."""
        split = self.deployment.disaggregation
        if split is None:
            return (("", self),)
        return tuple((name, self._pool(pool)) for name, pool in split.pools().items())

    def _pool(self, pool: PoolSpec) -> Scenario:
        own = {**pool.own(), "disaggregation": None}
        return self.model_copy(update={"deployment": self.deployment.model_copy(update=own)})

    def exchanges(self) -> tuple[str, str]:
        """How tokens reach their experts in steps (with prefill, of decode only)."""
        parallel, choice = self.deployment.parallelism, self.deployment.exchange
        if self.deployment.attention_ffn is not None:
            return (self.deployment.attention_ffn.transfers,) * 2
        if parallel.attention_dp == 1:
            alone = parallel.attention_tp == 1
            return (PLAIN[0],) * 2 if alone else (PLAIN[1],) * 2
        if choice == "auto":
            choice = "deepep" if self.deployment.engine == "sglang" else "allgather-reducescatter"
        if choice == "deepep":
            return "deepep-normal", "deepep-low-latency"
        return choice, choice


def load_scenario(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Scenario:
    """A scenario from a YAML file or by the name of a shipped one, with `a.b=c` overrides applied.

    Paths in the file are relative to it. Raises InputError.
    """
    path = find_scenario(name_or_path)
    data = read_yaml(read_text(path, max_bytes=1e6), str(name_or_path))
    if not isinstance(data, dict):
        raise InputError(str(name_or_path), "must be a YAML mapping of scenario fields")
    return Scenario.parse(with_overrides(data, overrides, path.parent))


def with_overrides(data: dict[str, Any], overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """The data of a scenario with `a.b=c` overrides, paths relative to `folder` made absolute."""
    data = copy.deepcopy(data)
    for override in overrides:
        _apply(data, override)
    resolve_paths(data, folder)
    return data


# Folder of the shipped scenarios behind docs/questions; their names begin with it.
QUESTIONS = "questions"


def scenarios_folder() -> Path:
    """Where the shipped scenarios are: in an installed package, or beside it in a checkout."""
    installed = Path(__file__).resolve().parent / "scenarios"
    return installed if installed.is_dir() else installed.parent.parent / "scenarios"


def scenario_names() -> tuple[str, ...]:
    """Names of the shipped scenarios."""
    return tuple(sorted(path.stem for path in scenarios_folder().glob("*.yaml")))


def find_scenario(name_or_path: str | Path) -> Path:
    """The file of a scenario; InputError names the closest shipped ones."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or _is_file(path):
        return path
    names = scenario_names()
    shipped = scenarios_folder() / f"{name_or_path}.yaml"
    if str(name_or_path) in names or (path.parent == Path(QUESTIONS) and _is_file(shipped)):
        return shipped
    import difflib

    close = difflib.get_close_matches(str(name_or_path), names, n=3)
    raise InputError(
        "scenario",
        "must be a .yaml file or a shipped scenario",
        str(name_or_path),
        f"did you mean {', '.join(close)}?" if close else f"`moesim scenarios` lists {len(names)}",
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a null byte
        return False


def _apply(data: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not all(path.strip().split(".")):
        raise InputError("--set", "must have the form a.b=value", override)
    put_field(data, path.strip(), read_yaml(text, "--set"), "--set", override)


def put_field(
    data: dict[str, Any], path: str, value: object, option: str, shown: str | None = None
) -> None:
    """Set a.b.c of a scenario's data; a choice by its bare name becomes a mapping.

    InputError under `option` where something else is in the way; `shown`: what was given.
    """
    at = data
    *folders, last = path.split(".")
    for key in folders:
        if at.get(key) is None or isinstance(at[key], str):
            at[key] = {}
        at = at[key]
        if not isinstance(at, dict):
            raise InputError(option, f"cannot go into {key}, which is not a mapping", shown)
    at[last] = copy.deepcopy(value)


def resolve_paths(data: dict[str, Any], folder: Path) -> None:
    """Make paths written relative to the scenario's file absolute, where such a file exists."""
    places = (
        ("model",),
        ("routing", "trace"),
        ("workload", "trace"),
        ("workload", "trace", "file"),
        ("deployment", "placement", "file"),
        ("deployment", "disaggregation", "prefill", "placement", "file"),
        ("deployment", "disaggregation", "decode", "placement", "file"),
        ("deployment", "profile"),
        ("deployment", "kernels"),
    )
    for place in places:
        at: Any = data
        for key in place[:-1]:
            at = at.get(key) if isinstance(at, dict) else None
        if not isinstance(at, dict) or not isinstance(at.get(place[-1]), str):
            continue
        value = at[place[-1]]
        candidate = folder / value
        readable = value and "\0" not in value and len(value) < 4096
        if readable and (candidate.is_file() or (candidate.is_dir() and place == ("model",))):
            at[place[-1]] = str(candidate.resolve())
