"""Lines of a printed run for what only some scenarios have: pools, faults, scaling, offload, ..."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

NOTHING = "-"


def section_lines(summary: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """(title, text) of each that the summary tells of."""
    yield from _pools(summary)
    yield from _faults(summary)
    yield from _scaling(summary)
    yield from _offload(summary)
    yield from _rebalancing(summary)
    yield from _traffic(summary)


def _faults(summary: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    from moesim.report.words import duration, percent

    if not (faults := summary.get("faults")):
        return
    up = faults["availability"]
    availability = NOTHING if up is None else percent(up)
    yield (
        "Faults",
        f"{faults['answered']} of {faults['count']} met somebody; replicas stood still for "
        f"{duration(faults['downtime_s'])} (availability {availability}); {faults['retried']} "
        f"requests asked again, {faults['lost']} lost, warm-up included",
    )


def _scaling(summary: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    from moesim.report.words import money, significant

    if not (scaling := summary.get("autoscaling")):
        return
    mean = scaling["mean_replicas"]
    yield (
        "Scaling",
        f"{scaling['starts']} replicas started, {scaling['stops']} stopped, "
        f"{NOTHING if mean is None else significant(mean, 3)} paid for on average: "
        f"{money(scaling['usd_per_million_output_tokens'])} per million output tokens "
        "(Cost charges all of them)",
    )


def _offload(summary: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    from moesim.report.words import gigabytes, percent

    offload = summary.get("expert_offload") or {}
    if offload.get("hit_rate") is None:
        return
    shares = {key: offload[key] for key in ("hit_rate", "cpu_share", "miss_share")}
    hits, cpu, waits = (NOTHING if x is None else percent(x) for x in shares.values())
    yield (
        "Offload",
        f"{hits} of active experts found in GPU memory, {cpu} of the others computed by the CPU; "
        f"{waits} of the time of steps is waiting for them; {gigabytes(offload['host_bytes'])} "
        "copied from host memory",
    )


def _rebalancing(summary: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    from moesim.report.words import duration, gigabytes, percent, pick

    if not (of := summary.get("rebalancing")):
        return
    if not of["count"]:
        yield ("Rebalancing", f"looked {of['looks']} times, moved nothing")
        return
    stood = f"stood still for {duration(of['stall_s_mean'] or 0.0)} each"
    if not of["stall_s"]:
        stood = f"behind the steps, {duration(of['duration_s_mean'] or 0.0)} each"
    late = f" ({of['late']} when no more requests began)" if of["late"] else ""
    yield (
        "Rebalancing",
        f"{of['count']} times{late}, {stood}; {of['moved_slots']:,} experts moved, "
        f"{gigabytes(of['bytes_within'])} within and {gigabytes(of['bytes_across'])} across "
        f"scale-up domains; balancedness of the window's total load "
        f"{percent(of['balancedness_before'])} before, {percent(of['balancedness_predicted'])} "
        "planned (single steps are less even)",
    )
    shown = [
        duration(one, 3) if (one := pick(of, "itl_s", *path)) is not None else NOTHING
        for path in (("during", "p99"), ("between", "p99"), ("during", "max"))
    ]
    yield (
        "Gaps beside it",
        f"between tokens p99 {shown[0]} during, {shown[1]} between; longest during {shown[2]}",
    )
    yield ("Its effect", _gained(of))


def _gained(of: Mapping[str, Any]) -> str:
    """What rebalances gained in a step, as far as one run can tell."""
    from moesim.report.words import duration, percent

    text = "" if of["lost_s_mean"] is None else f"lost {duration(of['lost_s_mean'])} each; "
    if (gain_s := of["gain_s_per_step"]) is None:
        return text + "its gain cannot be told: too few steps before and behind any of them"
    text += (
        f"steps waited for the slowest expert rank {percent(of['waited_before'])} of the mean "
        f"rank's time before, {percent(of['waited_behind'])} behind: "
        f"{'gained' if gain_s > 0 else 'lost as well'} {duration(abs(gain_s))} a step"
    )
    if (low_s := of["gain_low_s_per_step"]) is None:
        text += " (of one rebalance: whether it pays cannot be told)"
    elif of["break_even_steps"] == 0:
        text += ", at any interval"
    elif of["break_even_steps"] is not None:
        text += (
            f", pays from about every {of['break_even_steps']:,.0f} steps on "
            f"({duration(of['break_even_s'])})"
        )
    elif of["gain_high_s_per_step"] > 0:
        high_s = of["gain_high_s_per_step"]
        text += f" (95 %: {_signed(low_s)} to {_signed(high_s)}: whether it pays cannot be told)"
    return text + "; an estimate from this run alone: compare with rebalancing=null"


def _signed(seconds: float) -> str:
    from moesim.report.words import duration

    return ("-" if seconds < 0 else "") + duration(abs(seconds))


def _pools(summary: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Prefill and decode, where they have pools of their own."""
    from moesim.report.words import duration, gigabytes, percent, pick

    if not (pools := summary.get("pools")):
        return
    for name in ("prefill", "decode"):
        pool = pools[name]
        queue = pick(pool, "queue_s", "p99")
        waits = f", {duration(queue)} in its queue at p99" if queue is not None else ""
        yield (
            f"{name.capitalize()} pool",
            f"{pool['gpus']} GPUs in {pool['replicas']} replica{'s' * (pool['replicas'] > 1)}, "
            f"{percent(pool['gpu_busy'] or 0.0)} of the time in a step{waits}",
        )
    moved = pools["kv_transfer"]
    times = [
        f"{words} p50 {duration(pick(moved, key, 'p50') or 0.0)}, "
        f"p99 {duration(pick(moved, key, 'p99') or 0.0)}"
        for words, key in (("transfer", "transfer_s"), ("after prefill", "exposed_s"))
    ]
    yield ("KV transfer", f"{gigabytes(moved['bytes'])} in all; {'; '.join(times)}")


def _traffic(summary: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Sessions, service classes and tenants, where the run has any."""
    from moesim.report.words import duration, percent, pick, significant

    if sessions := summary.get("sessions"):
        yield (
            "Sessions",
            f"{sessions['completed']:,} of {sessions['count']:,} completed, "
            f"{percent(pick(sessions, 'cached_fraction') or 0.0)} of their prompts found in the "
            f"cache, end to end p50 {duration(pick(sessions, 'e2e_s', 'p50'))}",
        )
    for name, each in (summary.get("classes") or {}).items():
        met = pick(each, "slo_attainment")
        within = "" if met is None else f", {percent(met)} within limits"
        yield (
            f"Class {name}",
            f"{each['completed']:,} of {each['submitted']:,} completed, TTFT p99 "
            f"{duration(pick(each, 'ttft_s', 'p99'))}, end to end p99 "
            f"{duration(pick(each, 'e2e_s', 'p99'))}{within}",
        )
    if tenants := summary.get("tenants"):
        jain = pick(tenants, "jain_index")
        shown = NOTHING if jain is None else significant(jain, 3)
        yield ("Tenants", f"{len(tenants['each'])}, Jain index of their service {shown}")
