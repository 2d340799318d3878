"""What a run's labels really mean: repaired parallelism, reasons to doubt it, earlier copies.

Every rule reads what is known about a run, never its measured values; only copies and twins are
found by comparing measurements of different rows with each other. Each rule says what speaks for
it. `DOCUMENTED` stands on the benchmark's own files, `CROSS_ROW` on copies in the same data,
`RESIDUAL` was noticed because no model explains the rows: it is stated on metadata alone, but take
it as an opinion, and look at the figures with such rows as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Literal

from calibration.runs.rows import Parallelism, SiliconRun
from calibration.runs.scripted import scripted_parallelism

Evidence = Literal["documented", "cross-row", "residual"]
OVERCOUNTING = ("inferencex-2026-04-06", "inferencex-2026-04-27")
GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Rule:
    """A reason to doubt a run. `excluded`: the run is left out of headline figures."""

    name: str
    applies: Callable[[SiliconRun], bool]
    evidence: Evidence
    excluded: bool
    why: str


@dataclass(frozen=True)
class LabelledRun:
    """A run with its parallelism repaired; `repair` names the rule, "" for none."""

    run: SiliconRun
    repair: str
    flags: tuple[str, ...]
    copy_of: str  # id of the first run with the same pair of values, "" if this is the first

    @property
    def excluded(self) -> bool:
        return any(rule.name in self.flags and rule.excluded for rule in RULES)


def repair(run: SiliconRun) -> tuple[Parallelism, str]:
    """The parallelism that was run, and the rule that says so.

    tp_overcounted: two dumps write tensor parallelism as tp x ep (64/8/8, 16/4/4, 4/2/2 for
    tp/moe_tp/moe_ep), where tp = ep GPUs ran. Evidence: 50 groups of identical (TTFT, TPOT,
    concurrency, isl, osl) carry both labels; 4/2/2 by analogy.
    dp_overcounted: the same of attention data parallelism (dp 64 with 8/8, 16 with 4/4); 19 groups
    of copies. vLLM's data-parallel attention on N GPUs is tp 1, dp N, ep N; N x N is written as
    tp N, dp N, ep N^2, which is more GPUs than a recipe of these models ever had.
    scripted: the launch script spread experts or attention by itself (scripted.csv).
    """
    of = run.parallel
    scripted = scripted_parallelism(run)
    if scripted is not None:
        return scripted, "scripted"
    if run.source not in OVERCOUNTING or of.moe_ep == 1:
        return of, ""
    ep = of.moe_ep
    if of.attention_dp == 1 and of.moe_tp == ep and of.tp == ep * ep:
        return replace(of, tp=ep, moe_tp=1), "tp_overcounted"
    if of.tp == 1 and of.moe_tp == ep and of.attention_dp == ep * ep:
        return replace(of, attention_dp=ep, moe_tp=1), "dp_overcounted"
    if of.tp == of.attention_dp > 1 and ep == of.tp * of.attention_dp:
        return replace(of, tp=1, moe_ep=of.tp), "dp_overcounted"
    return of, ""


def _is_r1(run: SiliconRun) -> bool:
    return run.model == "deepseek-ai/DeepSeek-R1"


def _hidden_mtp_image(run: SiliconRun) -> bool:
    return run.engine == "trtllm" and _is_r1(run) and run.version == "1.2.0rc6.post3"


def _shared_mtp_image(run: SiliconRun) -> bool:
    return run.engine == "trtllm" and _is_r1(run) and run.measured == date(2026, 1, 14)


def _qwen3_5_mtp_day(run: SiliconRun) -> bool:
    return (
        run.model.startswith("Qwen/Qwen3.5")
        and run.engine == "sglang"
        and run.gpu == "b200_sxm"
        and run.measured == date(2026, 3, 20)
    )


def _qwen3_5_mtp_b300(run: SiliconRun) -> bool:
    of = run.parallel
    return (
        run.model.startswith("Qwen/Qwen3.5")
        and (run.engine, run.gpu, run.precision) == ("sglang", "b300_sxm", "fp8")
        and run.measured == date(2026, 4, 3)
        and (of.tp, of.moe_ep) == (4, 1)
    )


def _in_r1_sglang_sweep(run: SiliconRun) -> bool:
    return (
        _is_r1(run)
        and (run.engine, run.gpu, run.precision) == ("sglang", "b200_sxm", "fp8")
        and run.measured == date(2026, 3, 25)
    )


def _beyond_r1_sglang_recipe(run: SiliconRun) -> bool:
    return _in_r1_sglang_sweep(run) and (run.concurrency or 0) >= 256


def _before_warmup(run: SiliconRun) -> bool:
    return (
        run.engine == "sglang"
        and run.precision == "fp4"
        and run.model in ("deepseek-ai/DeepSeek-R1", "deepseek-ai/DeepSeek-V3")
        and run.measured == date(2025, 11, 10)
    )


def _b300_stall(run: SiliconRun) -> bool:
    return (
        run.model == "deepseek-ai/DeepSeek-V3"
        and (run.gpu, run.engine, run.isl) == ("b300_sxm", "sglang", 8192)
        and run.measured == date(2026, 4, 17)
    )


def _several_nodes(run: SiliconRun) -> bool:
    return repair(run)[0].gpus > GPUS_PER_NODE


def _gpt_oss_beyond_recipe(run: SiliconRun) -> bool:
    return run.model == "openai/gpt-oss-120b" and (run.engine, run.gpu, run.concurrency) == (
        "vllm",
        "h100_sxm",
        512,
    )


def _gpt_oss_trt_cap(run: SiliconRun) -> bool:
    return (
        run.model == "openai/gpt-oss-120b"
        and (run.engine, run.gpu, run.concurrency) == ("trtllm", "h200_sxm", 64)
        and run.parallel.gpus == 1
        and run.isl + run.osl > 2048
    )


def _nvfp4_gap(run: SiliconRun) -> bool:
    return run.source == "nvidia" and run.model.endswith("-NVFP4")


def _kv_starved(run: SiliconRun) -> bool:
    return (
        run.model == "Qwen/Qwen3-32B"
        and not run.precision
        and (run.engine, run.gpu, run.parallel.gpus) == ("sglang", "h100_sxm", 1)
    )


RULES = (
    Rule(
        "mtp_trt_r1_image",
        _hidden_mtp_image,
        "documented",
        True,
        "image rc6.post3 of R1 stands only in the speculative-decoding recipes (*-trt-mtp); runs "
        "without it used rc6.post2",
    ),
    Rule(
        "mixed_mtp_possible",
        _shared_mtp_image,
        "documented",
        True,
        "on that day the recipes with and without speculative decoding used the same image, and "
        "the dump does not say which a row is",
    ),
    Rule(
        "mtp_qwen3.5_b200",
        _qwen3_5_mtp_day,
        "documented",
        True,
        "measured on the day the speculative recipe was committed; tp 4, ep 1 only exists there",
    ),
    Rule(
        "mtp_qwen3.5_b300",
        _qwen3_5_mtp_b300,
        "residual",
        True,
        "tp 4, ep 1 up to concurrency 256 is the speculative recipe's sweep on B200; here it "
        "stands beside tp 4, ep 4 of the same day and image, and decodes 1.6 times as fast at "
        "concurrency 4 as the next version without speculation (cross-row)",
    ),
    Rule(
        "mtp_r1_sglang_b200",
        _beyond_r1_sglang_recipe,
        "documented",
        True,
        "concurrency 256 and more exists only in the speculative recipe; also the faster of two "
        "measurements of one configuration (cross-row), which is probable, not proved",
    ),
    Rule(
        "cold_start",
        _before_warmup,
        "documented",
        True,
        "measured before the benchmark client warmed the server up (commit d053ae24e, 2026-01-21), "
        "the first FP4 runs on B200: mean TTFT does not depend on load",
    ),
    Rule(
        "b300_v3_8k_stall",
        _b300_stall,
        "residual",
        True,
        "TTFT of 1.3 to 56 s that does not follow concurrency, in all 8k prompts of one day",
    ),
    Rule(
        "multinode",
        _several_nodes,
        "documented",
        True,
        "more GPUs than a node: the recipes of these runs separate prefill from decode",
    ),
    Rule(
        "gptoss_h100_c512",
        _gpt_oss_beyond_recipe,
        "documented",
        True,
        "the recipe sweeps concurrency 4 to 64; at 512 one row beats what reading weights takes",
    ),
    Rule(
        "gptoss_trt_h200_c64",
        _gpt_oss_trt_cap,
        "residual",
        True,
        "TTFT of seconds where keys and values fit easily: an unknown cap on running requests",
    ),
    Rule(
        "nvfp4_gap_rows",
        _nvfp4_gap,
        "residual",
        True,
        "TPOT several times what the model needs at any concurrency; settings unknown",
    ),
    Rule(
        "kv_starved",
        _kv_starved,
        "documented",
        False,
        "bf16 weights leave few GB for keys and values: real, and kept",
    ),
)


def label_runs(runs: Sequence[SiliconRun]) -> tuple[LabelledRun, ...]:
    """Every run with its parallelism repaired, flags and first copy, in the order given."""
    twins = faster_twins(run for run in runs if _in_r1_sglang_sweep(run))
    first: dict[tuple[float, float], str] = {}
    labelled = []
    for run in runs:
        parallel, name = repair(run)
        flags = [rule.name for rule in RULES if rule.applies(run)]
        if run.id in twins and "mtp_r1_sglang_b200" not in flags:
            flags.append("mtp_r1_sglang_b200")
        earlier = first.setdefault((run.ttft_s, run.tpot_s), run.id)
        copy_of = "" if earlier == run.id else earlier
        labelled.append(LabelledRun(replace(run, parallel=parallel), name, tuple(flags), copy_of))
    return tuple(labelled)


def faster_twins(runs: Iterable[SiliconRun]) -> frozenset[str]:
    """Ids of runs that share every label with a run at least 5 % slower a token.

    Repeats differ by 8 % at the 90th percentile, so this only says something where one of two
    recipes is known to be hidden behind the same labels.
    """
    groups: dict[tuple[object, ...], list[SiliconRun]] = {}
    for run in runs:
        key = (run.parallel, run.isl, run.osl, run.concurrency, run.version)
        groups.setdefault(key, []).append(run)
    return frozenset(
        run.id
        for twins in groups.values()
        for run in twins
        if run.tpot_s * 1.05 < max(other.tpot_s for other in twins)
    )


def conflicting_copies(
    runs: Iterable[SiliconRun],
) -> dict[tuple[object, ...], frozenset[Parallelism]]:
    """Groups of the same measurement that carry different parallelism, with all they carry."""
    groups: dict[tuple[object, ...], set[Parallelism]] = {}
    for run in runs:
        key = (run.ttft_s, run.tpot_s, run.concurrency, run.isl, run.osl)
        groups.setdefault(key, set()).add(run.parallel)
    return {key: frozenset(labels) for key, labels in groups.items() if len(labels) > 1}
