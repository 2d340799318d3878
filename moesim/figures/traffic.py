"""What a run says of its sessions, service classes and tenants.

Legend: N requests. Tables and summaries from the request table of a result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.figures.columns import Table, equal, flags, floats, known
from moesim.figures.metrics import counted_rows, distribution, measured_window, outcomes
from moesim.policies.queueing import VirtualTokenCounter
from moesim.scenario import Scenario

if TYPE_CHECKING:
    import pandas as pd


def met(requests: Table, limit_of: Mapping[str, float | None]) -> NDArray[np.bool_]:
    """[N] whether each request completed within all limits (columns by name; None: no limit)."""
    within = equal(requests, "status", "completed")
    for column, limit in limit_of.items():
        if limit is not None:
            # A request of one token has no TPOT and cannot miss it.
            within = within & ~(floats(requests, column) > limit)
    return within


def limits(scenario: Scenario) -> dict[str, dict[str, float | None]]:
    """Limits of each class, the scenario's own where it sets none; of "" where there are none."""
    general = scenario.slo.model_dump()
    found: dict[str, dict[str, float | None]] = {}
    for each in scenario.workload.classes:
        own = each.slo.model_dump()
        found[each.name] = {key: own[key] or value for key, value in general.items()}
    return found or {"": general}


def slo_attainment(
    requests: Table, of_class: Mapping[str, Mapping[str, float | None]]
) -> float | None:
    """Share of the requests, warm-up left out, that met every limit of their class; None without
    limits."""
    if not any(value for each in of_class.values() for value in each.values()):
        return None
    within = met_own_limits(requests[~flags(requests, "warmup")], of_class)
    return float(within.mean()) if within.size else None


def met_own_limits(
    requests: Table, of_class: Mapping[str, Mapping[str, float | None]]
) -> NDArray[np.bool_]:
    """[N] whether each request completed within all limits of its class."""
    within = np.zeros(len(requests), np.bool_)
    for name, each in of_class.items():
        rows = equal(requests, "class", name)
        within[rows] = met(requests[rows], each)
    return within


def service_weights(scenario: Scenario) -> tuple[float, float]:
    """What a prompt and an output token count: as the fair queue says, else as its defaults."""
    queue = scenario.deployment.queue
    weighted = queue if isinstance(queue, VirtualTokenCounter) else VirtualTokenCounter()
    return weighted.input_weight, weighted.output_weight


def jain_index(service: ArrayLike) -> float | None:
    """(sum x)^2 / (n sum x^2): 1 where all have the same, 1/n where one has everything.

    Source: Jain, Chiu, Hawe, DEC TR-301, 1984. None without anything to share.
    """
    x = np.asarray(service, np.float64)
    squares = float((x * x).sum())
    return float(x.sum()) ** 2 / (x.size * squares) if squares > 0 else None


def sessions_table(requests: pd.DataFrame) -> pd.DataFrame:
    """A row per session or chain: its requests, its times from first arrival to last finish.

    Completed if all its requests are. waiting_s is the time in which none of its requests was
    under way: thinking, and tools at work.
    """
    import pandas as pd

    of = requests[requests["session"] >= 0].assign(
        done=lambda table: table["status"] == "completed",
    )
    groups = of.groupby("session", sort=True)
    table = pd.DataFrame(
        {
            "session": list(groups.groups),
            "requests": groups.size().to_numpy(),
            "completed": groups["done"].sum().to_numpy(),
            "status": np.where(groups["done"].all(), "completed", "broken"),
            "arrival_s": groups["arrival_s"].min().to_numpy(),
            "finish_s": groups["finish_s"].max().to_numpy(),
            "prompt_tokens": groups["prompt_tokens"].sum().to_numpy(),
            "output_tokens": groups["output_tokens"].sum().to_numpy(),
            "cached_tokens": groups["cached_tokens"].sum().to_numpy(),
            "warmup": groups["warmup"].any().to_numpy(),
        }
    )
    table["e2e_s"] = (table["finish_s"] - table["arrival_s"]).where(table["status"] == "completed")
    table["waiting_s"] = [_gaps_s(rows) for _, rows in groups[["arrival_s", "finish_s"]]]
    return table


def _gaps_s(rows: pd.DataFrame) -> float:
    """Time between the first arrival and the last finish that no interval covers."""
    known = rows.dropna().sort_values("arrival_s").to_numpy(np.float64)
    if not len(known):
        return 0.0
    reached = np.maximum.accumulate(known[:, 1])
    return float(np.maximum(0.0, known[1:, 0] - reached[:-1]).sum())


def sessions_summary(sessions: pd.DataFrame) -> dict[str, Any]:
    """Distributions over completed sessions that hold no warm-up request."""
    counted = sessions[(sessions["status"] == "completed") & ~sessions["warmup"]]
    prompt = int(sessions["prompt_tokens"].sum())
    return {
        "count": len(sessions),
        "completed": int((sessions["status"] == "completed").sum()),
        "requests_mean": float(sessions["requests"].mean()),
        "cached_fraction": int(sessions["cached_tokens"].sum()) / prompt if prompt else None,
        "e2e_s": distribution(counted["e2e_s"]),
        "waiting_s": distribution(counted["waiting_s"]),
    }


def classes_summary(
    requests: Table,
    names: Sequence[str],
    of_class: Mapping[str, Mapping[str, float | None]],
) -> dict[str, Any]:
    """For each class: what became of it, its latency, and its goodput by its own limits.

    goodput_requests_per_s: requests within all limits of the class over the window of the counted
    requests of all classes.
    """
    start_s, end_s = measured_window(requests)
    found: dict[str, Any] = {}
    for name in names:
        table = requests[equal(requests, "class", name)]
        within = met(table[~flags(table, "warmup")], of_class[name])
        limited = any(limit is not None for limit in of_class[name].values())
        found[name] = {
            **_group(table),
            "slo_attainment": float(within.mean()) if limited and within.size else None,
            "goodput_requests_per_s": float(within.sum()) / (end_s - start_s)
            if end_s > start_s
            else None,
        }
    return found


def tenants_summary(
    requests: Table, names: Sequence[str], weights: tuple[float, float]
) -> dict[str, Any]:
    """For each tenant what became of it and its service; and how evenly service was shared."""
    service = service_until(requests, float(known(requests, "arrival_s").max()), weights)
    of = {name: equal(requests, "tenant", name) for name in names}
    shares = {name: float(service[of[name]].sum()) for name in names}
    return {
        "jain_index": jain_index(list(shares.values())),
        "each": {
            name: {**_group(requests[of[name]]), "service_tokens": shares[name]} for name in names
        },
    }


def service_until(
    requests: Table, end_s: float, weights: tuple[float, float]
) -> NDArray[np.float64]:
    """[N] weighted tokens that each request was given by `end_s`: its prompt with its first token,
    then its output evenly until it finished."""
    first_s = floats(requests, "first_token_s")
    finish_s = floats(requests, "finish_s")
    output = floats(requests, "output_tokens")
    started = first_s <= end_s
    decode_s = np.where(finish_s > first_s, finish_s - first_s, 1.0)
    part = np.clip((end_s - first_s) / decode_s, 0.0, 1.0)
    tokens = 1.0 + np.where(output > 1, (output - 1.0) * part, 0.0)
    prompt = floats(requests, "prompt_tokens")
    return np.where(started, weights[0] * prompt + weights[1] * tokens, 0.0)


def _group(table: Table) -> dict[str, Any]:
    counted = table[counted_rows(table)]
    return {
        "submitted": len(table),
        **outcomes(table),
        "ttft_s": distribution(floats(counted, "ttft_s")),
        "tpot_s": distribution(floats(counted, "tpot_s")),
        "e2e_s": distribution(floats(counted, "e2e_s")),
    }
