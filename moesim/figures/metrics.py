"""Latency, throughput and balance of a finished run, as plain numbers.

Legend: N requests, T tokens, G gaps between tokens, W steps. Times in seconds. In the tables, NaN
marks "does not apply" (a TPOT needs two output tokens, a failed request has no finish).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import moesim
from moesim.economics import cost_summary
from moesim.figures.columns import Table, equal, flags, floats, known, total
from moesim.figures.sketch import PERCENTILES, Sketch

Floats = NDArray[np.float64]
OUTCOMES = ("completed", "failed", "rejected", "cancelled", "lost")
OFFLOAD_COLUMNS = (
    "duration_s",
    "expert_miss_s",
    "expert_hits",
    "expert_misses",
    "cpu_experts",
    "prefetched_experts",
    "prefetch_hits",
    "host_bytes",
    "store_bytes",
)
EXCHANGE_PARTS = ("dispatch_s", "combine_s", "hidden_s", "all_reduce_s", "pipeline_s")


def ttft(arrival_s: ArrayLike, first_token_s: ArrayLike) -> Floats:
    """[N] time from a request's arrival to its first output token, queueing included."""
    return np.asarray(first_token_s, np.float64) - np.asarray(arrival_s, np.float64)


def e2e(arrival_s: ArrayLike, finish_s: ArrayLike) -> Floats:
    """[N] time from a request's arrival to its last output token."""
    return np.asarray(finish_s, np.float64) - np.asarray(arrival_s, np.float64)


def tpot(first_token_s: ArrayLike, finish_s: ArrayLike, output_tokens: ArrayLike) -> Floats:
    """[N] mean time per output token after the first; NaN where there is only one token."""
    tokens = np.asarray(output_tokens, np.float64)
    decode_s = np.asarray(finish_s, np.float64) - np.asarray(first_token_s, np.float64)
    gaps = np.where(tokens > 1, tokens - 1, np.nan)
    return np.asarray(decode_s / gaps, np.float64)


def itl(token_s: ArrayLike, request_start: ArrayLike) -> Floats:
    """[G] every gap between consecutive tokens of the same request, stalls included.

    `token_s` [T] holds the token times of one request after another; request n owns the slice
    `request_start[n]:request_start[n + 1]` (`request_start` is [N+1]), so that G is T less the
    number of requests that have tokens.
    """
    times = np.asarray(token_s, np.float64)
    starts = np.asarray(request_start, np.int64)
    within_request = np.ones(max(times.size - 1, 0), dtype=bool)
    inner = starts[(starts > 0) & (starts < times.size)]
    within_request[inner - 1] = False
    return np.diff(times)[within_request]


def distribution(values: ArrayLike | Sketch) -> dict[str, float | None]:
    """mean, std (of the population), p50, p90, p95 and p99 (linear interpolation between ranks).

    NaN entries do not apply and are left out; with nothing left every value is None. Raises
    ValueError on infinity, which no finished run can hold.
    """
    if isinstance(values, Sketch):
        return values.distribution()
    numbers = np.asarray(values, np.float64).ravel()
    numbers = numbers[~np.isnan(numbers)]
    if not np.isfinite(numbers).all():
        raise ValueError("a distribution cannot hold infinity")
    names = ("mean", "std", *(f"p{q}" for q in PERCENTILES))
    if numbers.size == 0:
        return dict.fromkeys(names)
    parts = (numbers.mean(), numbers.std(), *np.percentile(numbers, PERCENTILES))
    return {name: float(part) for name, part in zip(names, parts, strict=True)}


def mser_truncation(values: ArrayLike, batch: int = 5) -> int:
    """How many leading `values` the MSER rule cuts as warm-up; a multiple of `batch`, at most half.

    The cut minimises the squared standard error of what remains, computed on the means z of
    consecutive batches (MSER-5: batch = 5; an incomplete last batch is left out):
    sum((z[d:] - mean(z[d:]))**2) / (m - d)**2 over d = 0..m//2; the first minimum wins.
    Source: K. P. White, "An effective truncation heuristic for bias reduction in simulation
    output", Simulation 69(6), 1997; batches of five: White, Cobb, Spratt, WSC 2000.
    Raises ValueError on NaN or a batch below 1.
    """
    if batch < 1:
        raise ValueError("batch must be at least 1")
    series = np.asarray(values, np.float64).ravel()
    if not np.isfinite(series).all():
        raise ValueError("MSER needs finite values; drop those that do not apply")
    batches = series.size // batch
    if batches < 2:
        return 0
    means = series[: batches * batch].reshape(batches, batch).mean(axis=1)
    best_score, best_cut = np.inf, 0
    mean, squares = 0.0, 0.0
    # Welford's recursion from the end: exact zeros for a constant series, so that ties are ties.
    for cut in range(batches - 1, -1, -1):
        kept = batches - cut
        delta = float(means[cut]) - mean
        mean += delta / kept
        squares += delta * (float(means[cut]) - mean)
        score = squares / kept**2
        if cut <= batches // 2 and score <= best_score:
            best_score, best_cut = score, cut
    return best_cut * batch


def warmup_mask(arrival_s: ArrayLike, ttft_s: ArrayLike) -> NDArray[np.bool_]:
    """[N] True for the requests that MSER-5 on TTFT, in order of arrival, cuts as warm-up.

    Requests without a TTFT (NaN) take no part in the rule; they are warm-up if they arrived before
    the first request that is kept. Equal arrivals keep the order in which they are given.
    """
    arrivals = np.asarray(arrival_s, np.float64)
    first_waits = np.asarray(ttft_s, np.float64)
    order = np.argsort(arrivals, kind="stable")
    usable = order[~np.isnan(first_waits[order])]
    cut = mser_truncation(first_waits[usable])
    warm = np.zeros(arrivals.size, dtype=bool)
    if cut:
        position = np.empty(arrivals.size, dtype=np.int64)
        position[order] = np.arange(arrivals.size)
        warm[position < position[usable[cut]]] = True
    return warm


def measured_window(requests: Table) -> tuple[float, float]:
    """(first arrival, last finish) of the counted requests: completed and not warm-up.

    (0, 0) where nothing is counted.
    """
    counted = requests[counted_rows(requests)]
    if not len(counted):
        return 0.0, 0.0
    return float(floats(counted, "arrival_s").min()), float(floats(counted, "finish_s").max())


def counted_rows(requests: Table) -> NDArray[np.bool_]:
    """[N] the requests that latency and throughput are measured on: completed, not warm-up."""
    return equal(requests, "status", "completed") & ~flags(requests, "warmup")


def outcomes(requests: Table) -> dict[str, int]:
    """How many requests ended in which way."""
    ended = Counter(np.asarray(requests["status"]).tolist())
    return {outcome: ended[outcome] for outcome in OUTCOMES}


def counted_steps(steps: Table, window_s: tuple[float, float]) -> NDArray[np.bool_]:
    """[W] the steps that balance is measured on: with work, started inside the measured window."""
    start_s = floats(steps, "start_s")
    return ~flags(steps, "dummy") & (start_s >= window_s[0]) & (start_s < window_s[1])


def utilisation(
    steps: Table, duration_s: float, replicas: int = 1, stages: int = 1
) -> dict[str, float | None]:
    """How busy the deployment was over the whole run, as fractions.

    `gpu_busy`: time the pipeline stages of all replicas compute or exchange, the engine's host
    time left out, over `replicas` x `stages` x `duration_s`.
    `link_busy`: time those steps spend in exchanges between GPUs (dispatch, combine, all-reduce,
    pipeline), over the same. Both None where there is no time or no step.
    """
    real = steps[~flags(steps, "dummy")]
    available_s = duration_s * replicas * stages
    if available_s <= 0:
        return {"gpu_busy": None, "link_busy": None}
    exchange_s = float(np.concatenate([floats(real, name) for name in EXCHANGE_PARTS]).sum())
    busy_s = float((floats(real, "duration_s") - floats(real, "overhead_s")).sum())
    return {
        "gpu_busy": busy_s / available_s,
        "link_busy": exchange_s / available_s,
    }


def offload_summary(steps: Table) -> dict[str, float | None]:
    """What missing experts did to the whole run; every value None where none was looked up.

    `hit_rate`: active experts found in GPU memory over all of them; `prefetch_accuracy`: of those
    copied ahead, the share that the next layer used and missed; `cpu_share`: of the missing, those
    that the CPU computed; `miss_share`: of the steps' time, what experts took longer.
    """
    total = {name: float(np.asarray(steps[name]).sum()) for name in OFFLOAD_COLUMNS}
    looked_up = total["expert_hits"] + total["expert_misses"]
    if not looked_up:
        names = ("hit_rate", "prefetch_accuracy", "cpu_share", "miss_share")
        return dict.fromkeys((*names, "host_bytes", "store_bytes"))
    return {
        "hit_rate": total["expert_hits"] / looked_up,
        "prefetch_accuracy": _rate(total["prefetch_hits"], total["prefetched_experts"]),
        "cpu_share": _rate(total["cpu_experts"], total["expert_misses"]),
        "miss_share": _rate(total["expert_miss_s"], total["duration_s"]),
        "host_bytes": total["host_bytes"],
        "store_bytes": total["store_bytes"],
    }


def summarise(
    requests: Table,
    steps: Table,
    itl_s: ArrayLike | Sketch,
    *,
    gpus: int,
    usd_per_gpu_hour: float | None,
    memory: Mapping[str, object],
    seed: int,
    replicas: int = 1,
    stages: int = 1,
    balance: tuple[float | None, float | None] | None = None,
) -> dict[str, Any]:
    """The object that ``moesim run --json`` prints; JSON-serialisable, None where nothing applies.

    Distributions cover requests that completed and are not warm-up; `requests` counts all of them
    (`warmup` says how many the distributions leave out). `itl_s` is taken as given.
    `duration_s` runs from the first arrival to the last finish of the whole run. Throughput divides
    the counted requests and their tokens by `throughput.window_s`, which runs from the first
    counted arrival to the last counted finish; cost charges `gpus` for the same window.
    `expert_imbalance.max_over_mean` is the load of the busiest rank over the mean rank, averaged
    over MoE layers within a step; its mean and p99 are over the real steps of the window (steps
    without it, of a dense model, hold NaN or 0), or what `balance` says where rows of `steps` are
    many steps each.
    """
    counted = requests[counted_rows(requests)]
    start_s, end_s = measured_window(requests)
    window_s = end_s - start_s
    input_tokens, output_tokens = total(counted, "prompt_tokens"), total(counted, "output_tokens")
    arrived, finished = known(requests, "arrival_s"), known(requests, "finish_s")
    duration_s = float(finished.max() - arrived.min()) if finished.size else 0.0
    if balance is None:
        shown = floats(steps[counted_steps(steps, (start_s, end_s))], "imbalance")
        imbalance = distribution(shown[shown > 0])
        balance = imbalance["mean"], imbalance["p99"]
    summary = {
        "requests": {
            "submitted": len(requests),
            **outcomes(requests),
            "warmup": int(flags(requests, "warmup").sum()),
        },
        "duration_s": duration_s,
        "gpus": gpus,
        "ttft_s": distribution(floats(counted, "ttft_s")),
        "tpot_s": distribution(floats(counted, "tpot_s")),
        "itl_s": distribution(itl_s),
        "e2e_s": distribution(floats(counted, "e2e_s")),
        "throughput": {
            "window_s": window_s,
            "requests_per_s": _rate(len(counted), window_s),
            "input_tokens_per_s": _rate(input_tokens, window_s),
            "output_tokens_per_s": _rate(output_tokens, window_s),
            "output_tokens_per_s_per_gpu": _rate(output_tokens, window_s * gpus),
        },
        "expert_imbalance": {
            "max_over_mean": {"mean": balance[0], "p99": balance[1]},
        },
        "expert_offload": offload_summary(steps),
        "utilisation": utilisation(steps, duration_s, replicas, stages),
        "cost": _cost(gpus, usd_per_gpu_hour, window_s, output_tokens, input_tokens),
        "memory": dict(memory),
        "seed": seed,
        "version": moesim.__version__,
    }
    found = plain(summary)
    assert isinstance(found, dict)
    return found


def _cost(
    gpus: int,
    usd_per_gpu_hour: float | None,
    window_s: float,
    output_tokens: int,
    input_tokens: int,
) -> dict[str, float | None]:
    if usd_per_gpu_hour is not None:
        return cost_summary(gpus, usd_per_gpu_hour, window_s, output_tokens, input_tokens)
    return dict.fromkeys(cost_summary(gpus, 0.0, window_s, output_tokens, input_tokens))


def _rate(amount: float, duration: float) -> float | None:
    return amount / duration if duration > 0 else None


def plain(value: object) -> object:
    """numpy scalars become Python's, NaN and infinity None, so that strict JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value
