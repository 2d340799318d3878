"""Everything that is measured on a trace, gathered.

Legend: L MoE layers, E experts, S sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from moesim.errors import InputError
from moesim.routing.blocks import MOST_IDS, counts_by_blocks, sampled
from moesim.routing.coactivation import CoActivation, measure_coactivation
from moesim.routing.collapse import Collapse, find_collapse
from moesim.routing.imbalance import SIZES, Batches, measure_batches
from moesim.routing.load import Load, measure_load
from moesim.routing.locality import Locality, RequestSkew, measure_locality, measure_requests
from moesim.routing.predict import Prediction, measure_prediction
from moesim.routing.shift import Shift, Workload, shifts, whole, workloads
from moesim.routing.trace import RoutingTrace

T = TypeVar("T")

SEED = 0  # of everything that is drawn, so that two looks at a trace agree
PARTS = 7


@dataclass(frozen=True, eq=False)
class TraceStudy:
    """What one trace holds and how its router behaves.

    `load` and `collapse` count every token; the rest is measured on `sample_tokens` of them (all,
    unless the trace is large). `ranks` and `batch` are what the reader asked about.
    """

    name: str
    trace: RoutingTrace
    ranks: int
    batch: int
    sample_tokens: int
    sample_sequences: int
    load: Load
    locality: Locality
    requests: RequestSkew
    prediction: Prediction
    coactivation: CoActivation
    batches: Batches
    workload: Workload
    domains: tuple[Workload, ...]
    domain_shifts: tuple[Shift, ...]
    collapse: Collapse

    @property
    def is_sampled(self) -> bool:
        return self.sample_tokens < self.trace.tokens

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know before believing the numbers."""
        told = list(self.collapse.warnings)
        if self.is_sampled:
            told.append(
                f"Large trace: loads and collapse count all {self.trace.tokens:,} tokens; the "
                f"other figures are of a random sample, {self.sample_tokens:,} tokens of "
                f"{self.sample_sequences:,} sequences."
            )
        size = self.batches.sizes.index(self.batch)
        if np.isnan(self.batches.distinct_decode_BL[size]).all():
            told.append(
                f"Fewer than {self.batch} requests of the trace decode: how many experts "
                f"{self.batch} of them touch is not known."
            )
        if self.batches.at(self.batch, self.ranks) is None:
            told.append(f"{self.ranks} ranks do not divide {self.trace.experts} experts evenly.")
        return tuple(told)


def study(
    trace: RoutingTrace,
    name: str,
    ranks: int = 8,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
    most_ids: int = MOST_IDS,
) -> TraceStudy:
    """Measure everything. `progress` is told (parts done, parts in all)."""
    done = 0

    def step(value: T) -> T:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, PARTS)
        return value

    rng = np.random.default_rng(SEED)
    part = sampled(trace, rng, most_ids)
    load = step(measure_load(counts_by_blocks(trace), trace.top_k))
    sizes = tuple(sorted({*SIZES, batch}))
    locality = step(measure_locality(part, rng))
    requests = step(measure_requests(part, rng))
    prediction = step(measure_prediction(part))
    coactivation = step(measure_coactivation(part))
    batches = step(measure_batches(part, rng, sizes, ranks))
    kinds = workloads(part, rng)
    made = TraceStudy(
        name=name,
        trace=trace,
        ranks=ranks,
        batch=batch,
        sample_tokens=part.tokens,
        sample_sequences=part.sequences,
        load=load,
        locality=locality,
        requests=requests,
        prediction=prediction,
        coactivation=coactivation,
        batches=batches,
        workload=whole(part, name, rng),
        domains=kinds,
        domain_shifts=shifts(kinds),
        collapse=find_collapse(load, tuple(trace.layers_L.tolist())),
    )
    return step(made)


def of_domains(trace: RoutingTrace, domains: Sequence[str]) -> RoutingTrace:
    """The sequences of these domains; all for none. InputError where nothing is left."""
    if not domains:
        return trace
    try:
        chosen_S = trace.select(domains)
    except InputError as error:  # of a scenario, where it says routing.domains
        raise InputError("--domain", error.rule, error.value) from None
    if not len(chosen_S):
        raise InputError("--domain", "must have at least one sequence in the trace", domains[0])
    return trace.subset(chosen_S)
