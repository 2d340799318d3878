"""Launch commands as scenarios: what was understood, what was left out, and why."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moesim.errors import InputError
from moesim.files import read_text
from moesim.launch.flags import FIELD, Occurrence, flag_table, read_flags, read_options
from moesim.launch.given import Given
from moesim.launch.machines import cluster_of
from moesim.launch.parts import Parts
from moesim.launch.pools import joined
from moesim.launch.read_sglang import read_sglang
from moesim.launch.read_trtllm import read_trtllm
from moesim.launch.read_vllm import ALL2ALL, read_vllm
from moesim.launch.words import Command, split_command
from moesim.plain_yaml import read_yaml

MOST_COMMANDS = 2
MOST_OPTION_BYTES = 1e6
_READERS: Mapping[str, Callable[..., Parts]] = {
    "vllm": read_vllm,
    "sglang": read_sglang,
    "trtllm": read_trtllm,
}
# How each server is started, as the words of a command.
_LAUNCHERS = (
    (re.compile(r"(\S*/)?vllm serve( |$)"), "vllm"),
    (re.compile(r"(\S*/)?python3?[\d.]* -m vllm\.entrypoints\.openai\.api_server( |$)"), "vllm"),
    (re.compile(r"(\S*/)?python3?[\d.]* -m sglang\.launch_server( |$)"), "sglang"),
    (re.compile(r"(\S*/)?python3?[\d.]* -m sglang_router\.launch_server( |$)"), "sglang"),
    (re.compile(r"(\S*/)?sglang serve( |$)"), "sglang"),
    (re.compile(r"(\S*/)?trtllm-serve (serve )?(?!disaggregated|mm_)"), "trtllm"),
    (re.compile(r"(\S*/)?vllm-openai[\w-]*(:[\w.-]+)?( |$)"), "vllm"),  # an image that serves
)
_STARTERS = ("docker", "podman", "nerdctl", "srun", "mpirun", "trtllm-llmapi-launch", "uv")
_WRAPPERS = (*_STARTERS, "env", "exec", "nohup", "sudo", "numactl", "time", "stdbuf", "nsys")
_SECRETS = ("TOKEN", "KEY", "SECRET", "PASSWORD")
_VARIABLES = {"CUDA_VISIBLE_DEVICES": ("which GPUs", False)}


@dataclass(frozen=True)
class Ignored:
    """A flag without effect on the scenario; `changes_serving`: the real server would differ."""

    flag: str
    why: str
    changes_serving: bool


@dataclass(frozen=True)
class Reading:
    """A launch command as the data of a scenario, without a workload.

    `understood` has for each flag, as it was written, the fields that it set and their values; none
    where it asks for what moesim does anyway.
    """

    engine: str
    scenario: dict[str, Any]
    understood: tuple[tuple[str, dict[str, Any]], ...]
    ignored: tuple[Ignored, ...]
    notes: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As plain data, for --json."""
        return {
            "engine": self.engine,
            "understood": [
                {"flag": flag, "fields": dict(fields)} for flag, fields in self.understood
            ],
            "ignored": [vars(each) for each in self.ignored],
            "notes": list(self.notes),
        }


@dataclass
class _Launch:
    """One command, taken apart."""

    engine: str
    parts: Parts
    occurrences: list[Occurrence]
    ignored: list[Ignored] = field(default_factory=list)


def read_commands(
    commands: Sequence[str],
    gpu: str,
    options: Sequence[str | Path] = (),
    model: str | None = None,
) -> Reading:
    """The scenario data of one command, or of the two pools of a disaggregated deployment.

    `gpu` is one of `moesim gpus`. `options`: the YAML file of each command, in place of the one
    that it names. `model`: a shipped model or config.json for a checkpoint of another name.
    Raises InputError for what cannot be read or must not be left out.
    """
    if not 1 <= len(commands) <= MOST_COMMANDS:
        rule = "must be given once, or once for each of two pools"
        raise InputError(FIELD, rule, len(commands))
    if len(options) > len(commands):
        raise InputError("--options", "must be given at most once for each command", len(options))
    files = [*options, *[None] * (len(commands) - len(options))]
    launches = [_read(text, gpu, file, model) for text, file in zip(commands, files, strict=True)]
    if len({launch.engine for launch in launches}) > 1:
        raise InputError(FIELD, "must be given for one engine", launches[-1].engine)
    parts = joined([launch.parts for launch in launches])
    scenario = {
        "name": _name(parts, gpu),
        "model": parts.model,
        "precision": parts.precision,
        "cluster": cluster_of(gpu, parts.gpus, parts.per_node),
        "deployment": parts.deployment,
    }
    understood = [line for launch in launches for line in _understood(launch, scenario)]
    ignored = [each for launch in launches for each in launch.ignored]
    if not parts.precision:
        del scenario["precision"]
    return Reading(
        launches[0].engine, scenario, tuple(understood), tuple(ignored), tuple(parts.notes)
    )


def _read(text: str, gpu: str, options: str | Path | None, model: str | None) -> _Launch:
    command = split_command(text)
    engine, before, words = _launcher(command)
    table = flag_table(engine)
    occurrences, others = read_flags(words, table)
    occurrences = _with_options(engine, occurrences, options)
    _refuse(occurrences)
    given = Given(occurrences)
    parts = _READERS[engine](given, others, command.environment, model, gpu)
    launch = _Launch(engine, parts, [o for o in given.last.values() if o.flag.fields])
    if others and "--model" not in given.last and "--model-path" not in given.last:
        named = table.by_name.get("model") or table.flags[0]
        launch.occurrences.insert(0, Occurrence(named, "MODEL", others[0]))
    if ALL2ALL in command.environment and "--all2all-backend" in table.by_name:
        backend = table.by_name["--all2all-backend"]
        launch.occurrences.append(Occurrence(backend, ALL2ALL, command.environment[ALL2ALL]))
    launch.ignored = [
        *([Ignored(f"{before[0]} ...", "what starts the server", False)] if before else []),
        *_environment(command),
        *(Ignored(o.shown, "given again later", False) for o in given.repeated),
        *(Ignored(o.shown, o.flag.why, o.flag.effect == "not-modelled") for o in given.left_out),
    ]
    return launch


def _launcher(command: Command) -> tuple[str, list[str], list[str]]:
    """(engine, words before the launcher, words after it)."""
    words = list(command.words)
    for at in range(len(words)):
        if at and words[0].rpartition("/")[2] not in _WRAPPERS:
            break
        rest = " ".join(words[at : at + 3]) + " "
        for pattern, engine in _LAUNCHERS:
            match = pattern.match(rest)
            if match:
                taken = len(match[0].split())
                return engine, words[:at], words[at + taken :]
    rule = "must start with vllm serve, python -m sglang.launch_server or trtllm-serve"
    raise InputError(FIELD, rule, " ".join(words[:3]))


def _with_options(
    engine: str, occurrences: list[Occurrence], options: str | Path | None
) -> list[Occurrence]:
    """The flags with those of a YAML file: before the command's own, for TensorRT-LLM after."""
    named = [o for o in occurrences if o.flag.name == "--config"]
    if options is None and not named:
        return occurrences
    path = str(options if options is not None else named[-1].value)
    label = "--options" if options is not None else named[-1].written
    if options is None and not _exists(path):
        hint = "give its file with --options FILE"
        raise InputError(label, "must be an existing file", path, hint)
    data = read_yaml(read_text(path, MOST_OPTION_BYTES, label), label)
    if data is not None and not isinstance(data, dict):
        raise InputError(label, "must be a YAML mapping of options", path)
    found = read_options(data or {}, flag_table(engine))
    return [*occurrences, *found] if engine == "trtllm" else [*found, *occurrences]


def _exists(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def _refuse(occurrences: Sequence[Occurrence]) -> None:
    for each in occurrences:
        if each.flag.effect != "refused" or each.value is False:
            continue
        if str(each.value).lower() not in each.flag.harmless:
            shown = None if each.value is True else each.value
            why = f"is refused, as it would change what is simulated: {each.flag.why}"
            raise InputError(each.written, why, shown, "leave it out to simulate without it")


def _environment(command: Command) -> list[Ignored]:
    return [
        Ignored(
            f"{name}={'...' if name.endswith(_SECRETS) else value}"[:80],
            *_VARIABLES.get(name, ("not looked at", True)),
        )
        for name, value in command.environment.items()
        if name != ALL2ALL
    ]


def _understood(launch: _Launch, scenario: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Each understood flag with the fields that it names and their values, where they are set."""
    lines = []
    pool = launch.parts.role
    for occurrence in launch.occurrences:
        values = {}
        for name in occurrence.flag.fields:
            path = name
            if pool and name.startswith("deployment.") and "disaggregation" not in name:
                path = name.replace("deployment.", f"deployment.disaggregation.{pool}.", 1)
            value = _at(scenario, path)
            if value is not None and not isinstance(value, dict):
                values[path] = value
            elif value is not None:
                values[path] = pool or "set"
        lines.append((occurrence.shown, values))
    return lines


def _at(data: Any, path: str) -> Any:
    for key in path.split("."):
        data = data.get(key) if isinstance(data, Mapping) else None
    return data


def _name(parts: Parts, gpu: str) -> str:
    named = re.sub(r"[^\w.+-]+", "-", Path(parts.model).stem if "/" in parts.model else parts.model)
    return f"{named[:100]} on {parts.gpus} {gpu}, from its launch command"
