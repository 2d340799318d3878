"""Everything the serving side will be asked, drawn before it starts.

Legend: N requests, M listed prefix blocks, T trace rows. Demand depends on the workload and the
seed alone, so two deployments meet identical demand and their difference is paired.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, repeat
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.streams import stream
from moesim.workload.arrivals import (
    MAX_REQUESTS,
    ClosedLoop,
    Replay,
    arrivals_within,
    first_arrivals,
)
from moesim.workload.drift import domain_names, drifting_domains
from moesim.workload.groups import Groups, draw_groups
from moesim.workload.lengths import Length
from moesim.workload.prefixes import Prefixes, no_prefixes, renumber, resample, take, whole_blocks
from moesim.workload.readers import read_trace
from moesim.workload.threads import Threads
from moesim.workload.trace import NS_PER_S, RequestTrace
from moesim.workload.workload import Workload

MAX_TOTAL_TOKENS = 1e12
# Uniform numbers a request takes from the stream of lengths: prompt or trace row, output, prefix.
DRAWS_PER_REQUEST = 3


class DemandSeeds(Protocol):
    """The random streams that demand is drawn from."""

    @property
    def arrivals(self) -> np.random.Generator: ...
    @property
    def lengths(self) -> np.random.Generator: ...
    @property
    def domains(self) -> np.random.Generator: ...
    @property
    def threads(self) -> np.random.Generator: ...
    @property
    def groups(self) -> np.random.Generator: ...


@dataclass(frozen=True, eq=False)
class DemandStreams:
    """Independent generators, one for each thing that is drawn."""

    arrivals: np.random.Generator
    lengths: np.random.Generator
    domains: np.random.Generator
    threads: np.random.Generator
    groups: np.random.Generator

    @classmethod
    def from_seed(cls, seed: int | np.random.SeedSequence) -> Self:
        """The named streams of a seed."""
        names = ("arrivals", "lengths", "domains", "threads", "groups")
        return cls(*(stream(seed, name) for name in names))


@dataclass(frozen=True, eq=False)
class Demand:
    """Requests in order of arrival, or thread by thread; read-only arrays.

    arrival_s [N]: ascending seconds; all 0 in a closed loop; NaN where a request waits for others
    (`threads`). prompt_tokens, output_tokens [N]: at
    least 1. max_output_tokens [N]: what the client declares, never below output_tokens. domain [N]:
    index into `domains`; all 0 where `domains` is empty, which means any. concurrency: requests in
    flight in a closed loop, else None. prefix_blocks[prefix_start[n]:prefix_start[n + 1]]: the
    leading whole blocks of `prefix_block_tokens` tokens of prompt n that may equal another's, ids
    0, 1, 2, ... in order of first use; prefix_block_tokens 0 where nothing is shared. In threads
    the list goes on over the blocks of the answer. groups: class and tenant; None where there are
    none.
    """

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    max_output_tokens: NDArray[np.int32]
    domain: NDArray[np.uint16]
    domains: tuple[str, ...]
    concurrency: int | None
    prefix_start: NDArray[np.int64]
    prefix_blocks: NDArray[np.int32]
    prefix_block_tokens: int
    notes: tuple[str, ...] = ()
    threads: Threads | None = None
    groups: Groups | None = None

    def __len__(self) -> int:
        return len(self.arrival_s)

    def prefix_of(self, request: int) -> NDArray[np.int32]:
        """The prefix block ids of one request."""
        return self.prefix_blocks[self.prefix_start[request] : self.prefix_start[request + 1]]


@dataclass(frozen=True, eq=False)
class _Shapes:
    """Lengths and prefixes of the requests, however they came about."""

    prompt_tokens_N: NDArray[np.int32]
    output_tokens_N: NDArray[np.int32]
    prefixes: Prefixes
    notes: tuple[str, ...] = ()
    threads: Threads | None = None


def draw_demand(workload: Workload, streams: DemandSeeds) -> Demand:
    """Draw the whole demand of a workload; InputError where it is absurd or its trace unreadable.

    Each quantity has its own stream and each request takes a fixed number of draws from it: the
    first 100 requests of a workload of 200 are those of the workload of 100, and changing a length
    distribution moves no arrival.
    """
    workload = workload.with_preset()
    if workload.sessions is not None or workload.chains is not None:
        arrival_s, shapes, groups = _threaded(workload, streams)
    elif workload.trace is not None:
        source = workload.trace
        trace = read_trace(source.file, source.format, source.skip, source.limit)
        if isinstance(workload.arrivals, Replay):
            arrival_s, shapes = _replayed(workload, workload.arrivals, trace)
        else:
            arrival_s = _arrival_times(workload, streams.arrivals, _mean_tokens(trace))
            shapes = _resampled(trace, len(arrival_s), streams.lengths)
        groups = _groups(workload, streams, len(arrival_s))
    else:
        assert workload.prompt is not None
        assert workload.output is not None
        mean_tokens = workload.prompt.mean_tokens() + workload.output.mean_tokens()
        arrival_s = _arrival_times(workload, streams.arrivals, mean_tokens)
        groups = _groups(workload, streams, len(arrival_s))
        shapes = _drawn(workload, len(arrival_s), streams.lengths, groups)
    return _declared(workload, arrival_s, shapes, groups, streams.domains)


def _groups(workload: Workload, streams: DemandSeeds, requests: int) -> Groups | None:
    quantile_N2 = streams.groups.random((requests, 2))
    return draw_groups(workload.classes, workload.tenants, quantile_N2)


def _choices(workload: Workload) -> list[tuple[Length, Length]]:
    """(prompt, output) lengths of each class; of the workload itself where there are none."""
    assert workload.prompt is not None
    assert workload.output is not None
    own = (workload.prompt, workload.output)
    return [(each.prompt or own[0], each.output or own[1]) for each in workload.classes] or [own]


def _threaded(
    workload: Workload, streams: DemandSeeds
) -> tuple[NDArray[np.float64], _Shapes, Groups | None]:
    """Sessions or chains: their first requests arrive, the others wait (arrival NaN)."""
    from moesim.workload.contexts import draw_threads  # here, as few workloads have threads

    spec = workload.sessions or workload.chains
    assert spec is not None
    times_S = np.zeros(0)
    if workload.requests is None:
        times_S = _arrival_times(workload, streams.arrivals, 1.0)
    most = len(times_S) or workload.requests or 0
    by_thread = _groups(workload, streams, most)
    classes: list[int] = [] if by_thread is None else by_thread.class_N.tolist()
    limit = workload.max_output_tokens
    made = draw_threads(
        spec,
        chain(classes, repeat(0)),
        len(times_S) if workload.requests is None else None,
        workload.requests,
        _choices(workload),
        limit if isinstance(limit, int) else None,
        workload.shared_prefix,
        streams.threads,
        streams.lengths,
    )
    threads = made.threads
    if workload.requests is not None:
        count = int(threads.thread_N[-1]) + 1
        times_S = first_arrivals(workload.arrivals, count, streams.arrivals)
    arrival_s = np.where(threads.turn_N == 0, times_S[threads.thread_N], np.nan)
    shapes = _Shapes(made.prompt_tokens_N, made.output_tokens_N, made.prefixes, made.notes, threads)
    if by_thread is None:
        return arrival_s, shapes, None
    return arrival_s, shapes, by_thread.of(threads.thread_N)


def _arrival_times(
    workload: Workload, rng: np.random.Generator, mean_tokens: float
) -> NDArray[np.float64]:
    if workload.requests is not None:
        _refuse_absurd("workload.requests", workload.requests, workload.requests, mean_tokens)
        return first_arrivals(workload.arrivals, workload.requests, rng)
    assert workload.duration_s is not None
    rate_per_s = getattr(workload.arrivals, "rate_per_s", 0.0)
    expected = workload.duration_s * rate_per_s
    _refuse_absurd("workload.duration_s", workload.duration_s, expected, mean_tokens)
    return arrivals_within(workload.arrivals, workload.duration_s, rng)


def _refuse_absurd(field: str, value: float, requests: float, mean_tokens: float) -> None:
    if requests > MAX_REQUESTS:
        raise InputError(field, f"must bring at most {MAX_REQUESTS} requests", value)
    if requests * mean_tokens > MAX_TOTAL_TOKENS:
        rule = f"must bring at most 10^12 tokens at {mean_tokens:.0f} a request on average"
        raise InputError(field, rule, value)


def _drawn(
    workload: Workload, requests: int, rng: np.random.Generator, groups: Groups | None
) -> _Shapes:
    """Lengths from the workload's distributions, or those of each request's class."""
    quantile_N3 = rng.random((requests, DRAWS_PER_REQUEST))
    choices = _choices(workload)
    prompt_tokens_N = choices[0][0].tokens_at(quantile_N3[:, 0])
    output_tokens_N = choices[0][1].tokens_at(quantile_N3[:, 1])
    for i, (prompt, output) in enumerate(choices[1:], 1):
        assert groups is not None
        of_class_N = groups.class_N == i
        prompt_tokens_N[of_class_N] = prompt.tokens_at(quantile_N3[of_class_N, 0])
        output_tokens_N[of_class_N] = output.tokens_at(quantile_N3[of_class_N, 1])
    prefixes = no_prefixes(requests)
    if workload.shared_prefix is not None:
        prefixes = workload.shared_prefix.starts(quantile_N3[:, 2], prompt_tokens_N)
    return _Shapes(prompt_tokens_N, output_tokens_N, prefixes)


def _resampled(trace: RequestTrace, requests: int, rng: np.random.Generator) -> _Shapes:
    """Rows of a trace drawn with replacement, prompt, output and prefix of a row together."""
    quantile_N3 = rng.random((requests, DRAWS_PER_REQUEST))
    row_N = np.minimum((quantile_N3[:, 0] * len(trace)).astype(np.int64), len(trace) - 1)
    note = f"lengths drawn with replacement from the {len(trace)} rows of the {trace.format} trace"
    return _Shapes(
        trace.prompt_tokens_T[row_N],
        trace.output_tokens_T[row_N],
        resample(trace.prefixes, row_N),
        (*trace.notes, note),
    )


def _replayed(
    workload: Workload, arrivals: Replay, trace: RequestTrace
) -> tuple[NDArray[np.float64], _Shapes]:
    """The trace's rows in order at its own, scaled times; cut by `requests` or `duration_s`."""
    if trace.arrival_ns_T is None:
        hint = "choose poisson or another arrival process"
        rule = f"needs arrival times, which this {trace.format} trace does not have"
        raise InputError("workload.arrivals.replay", rule, None, hint)
    if workload.requests is not None and workload.requests > len(trace):
        hint = "other arrivals draw rows repeatedly"
        rule = f"must be at most the {len(trace)} rows of the trace"
        raise InputError("workload.requests", rule, workload.requests, hint)
    arrival_s = trace.arrival_ns_T / NS_PER_S * arrivals.time_scale
    kept = len(trace) if workload.requests is None else workload.requests
    notes = trace.notes
    if workload.duration_s is not None:
        kept = int(np.searchsorted(arrival_s, workload.duration_s, side="left"))
        if workload.duration_s > arrival_s[-1]:
            notes = (*notes, f"the trace ends after {arrival_s[-1]:.6g} s, before duration_s")
    arrival_s = arrival_s[:kept]
    prompt_tokens_N, output_tokens_N = trace.prompt_tokens_T[:kept], trace.output_tokens_T[:kept]
    mean_tokens = float(prompt_tokens_N.mean() + output_tokens_N.mean())
    _refuse_absurd("workload.trace.file", kept, kept, mean_tokens)
    prefixes = take(trace.prefixes, np.arange(kept))
    return arrival_s, _Shapes(prompt_tokens_N, output_tokens_N, prefixes, notes)


def _mean_tokens(trace: RequestTrace) -> float:
    return float(trace.prompt_tokens_T.mean() + trace.output_tokens_T.mean())


def _declared(
    workload: Workload,
    arrival_s: NDArray[np.float64],
    shapes: _Shapes,
    groups: Groups | None,
    domain_rng: np.random.Generator,
) -> Demand:
    """Add what the client declares and the domain of each request."""
    output_tokens_N, notes = shapes.output_tokens_N, list(shapes.notes)
    limit = workload.max_output_tokens
    if limit == "exact":
        max_output_tokens_N = output_tokens_N
    else:
        if limit is not None and (cut := int(np.count_nonzero(output_tokens_N > limit))):
            notes.append(f"{cut} outputs cut to max_output_tokens ({limit})")
            output_tokens_N = np.minimum(output_tokens_N, np.int32(limit))
        declared = int(output_tokens_N.max()) if limit is None else limit
        max_output_tokens_N = np.full(len(arrival_s), declared, np.int32)
    threads = shapes.threads
    prefixes = shapes.prefixes
    if threads is None:
        prefixes = whole_blocks(prefixes, shapes.prompt_tokens_N)
    names, domain_N = _domains(workload, arrival_s, threads, domain_rng)
    demand = Demand(
        arrival_s=arrival_s,
        prompt_tokens=shapes.prompt_tokens_N,
        output_tokens=output_tokens_N,
        max_output_tokens=max_output_tokens_N,
        domain=domain_N.astype(np.uint16),
        domains=names,
        concurrency=(
            workload.arrivals.concurrency if isinstance(workload.arrivals, ClosedLoop) else None
        ),
        prefix_start=prefixes.start_N1,
        prefix_blocks=renumber(prefixes.ids_M),
        prefix_block_tokens=prefixes.block_tokens,
        notes=tuple(notes),
        threads=threads,
        groups=groups,
    )
    for part in (demand, threads, groups):
        for array in vars(part).values() if part is not None else ():
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
    return demand


def _domains(
    workload: Workload,
    arrival_s: NDArray[np.float64],
    threads: Threads | None,
    rng: np.random.Generator,
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Names of domains and that of each request; a thread keeps to what it is about."""
    quantile_N = rng.random(len(arrival_s))
    if threads is not None:
        quantile_N = quantile_N[threads.thread_N]
    if workload.drift:
        first_s = arrival_s
        if threads is not None:
            first_s = arrival_s[threads.turn_N == 0][threads.thread_N]
        linear = workload.drift_blend == "linear"
        return domain_names(workload.drift), drifting_domains(
            workload.drift, linear, first_s, quantile_N
        )
    cumulative = np.cumsum(list(workload.domains.values()) or [1.0])
    domain_N = np.searchsorted(cumulative, quantile_N * cumulative[-1], side="right")
    last = int(np.flatnonzero(np.diff(cumulative, prepend=0.0))[-1])
    return tuple(workload.domains), np.minimum(domain_N, last)
