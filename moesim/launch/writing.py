"""Scenarios as launch commands that can be pasted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import yaml

from moesim.errors import InputError, one_line
from moesim.launch.drafted import HEAD, Draft
from moesim.launch.write_sglang import write_sglang
from moesim.launch.write_trtllm import write_trtllm
from moesim.launch.write_vllm import write_vllm
from moesim.scenario import Scenario

ENGINES: Mapping[str, Callable[..., Draft]] = {
    "vllm": write_vllm,
    "sglang": write_sglang,
    "trtllm": write_trtllm,
}


@dataclass(frozen=True)
class LaunchText:
    """The commands of a deployment: one, or those of the prefill and the decode pool.

    `options`: the YAML file of each command, "" where it needs none. `notes`: what the engine
    cannot be told, or has to be done besides. `str()` is all of it, ready for a shell.
    """

    engine: str
    commands: tuple[str, ...]
    options: tuple[str, ...]
    notes: tuple[tuple[str, ...], ...]
    pools: tuple[str, ...]

    def __str__(self) -> str:
        parts = []
        for pool, command, options, notes in zip(
            self.pools, self.commands, self.options, self.notes, strict=True
        ):
            lines = [f"# The {pool} pool"] if pool else []
            lines += [f"# {one_line(note)}" for note in notes]
            if options:
                name = options_name(pool)
                lines += [f"cat > {name} <<'EOF'", options.rstrip("\n"), "EOF"]
            parts.append("\n".join([*lines, command]))
        return "\n\n".join(parts) + "\n"


def options_name(pool: str) -> str:
    """The file that the options of a pool's command are in."""
    return f"{pool + '-' if pool else ''}options.yaml"


def launch_command(scenario: Scenario, engine: str | None = None) -> LaunchText:
    """How to launch a scenario's deployment, with its own engine unless another is named.

    What the engine does by default is left out. Raises InputError for an unknown engine.
    """
    wanted = engine or scenario.deployment.engine
    if wanted not in ENGINES:
        raise InputError("engine", f"must be one of {', '.join(ENGINES)}", wanted)
    commands, options, notes, pools = [], [], [], []
    for pool, alone in scenario.pools():
        draft = ENGINES[wanted](alone, pool)
        text = yaml.safe_dump(draft.options, sort_keys=False) if draft.options else ""
        if text:
            draft.put("--extra_llm_api_options", options_name(pool))
        command = draft.text()
        if HEAD in command:
            draft.note(f"{HEAD[1:]} is the address of the first node")
        commands.append(command)
        options.append(text)
        notes.append(tuple(draft.notes))
        pools.append(pool)
    return LaunchText(wanted, tuple(commands), tuple(options), tuple(notes), tuple(pools))
