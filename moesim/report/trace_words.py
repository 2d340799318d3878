"""What a trace's statistics mean for serving, in sentences: the messages of its charts.

Every function takes the studies of one page; with several, it says how far they range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from moesim.report.words import count, percent, significant, spread
from moesim.routing.shift import measure_shift
from moesim.routing.study import TraceStudy
from moesim.routing.summary import by_layer

Studies = Sequence[TraceStudy]


def number_rows(batch: int, ranks: int) -> tuple[tuple[str, str], ...]:
    """Rows of the table of numbers: key of `summary.by_layer`, and what it is called."""
    return (
        ("expert_max_over_mean", "Busiest expert over mean"),
        ("expert_gini", "Gini coefficient of the load (0 = even)"),
        ("expert_entropy", "Entropy of the load (1 = even)"),
        ("effective_experts", "Effective experts"),
        ("busiest_expert_share", "Busiest expert's share of selections"),
        ("overlap_lag_1", "Experts shared with the token before"),
        ("overlap_lag_8", "Experts shared with the 8th token before"),
        ("overlap_shuffled", "The same, tokens shuffled inside their sequence"),
        ("overlap_if_independent", "The same, if tokens were independent"),
        ("request_max_over_mean", "Busiest expert over mean inside a request"),
        ("request_max_over_mean_if_mixed", "The same, tokens mixed from all requests"),
        ("next_layer_recall", "Next layer's experts guessed right"),
        ("next_layer_recall_of_busiest", "The same, always guessing the busiest"),
        ("coactivation", "Pairs of experts beyond chance"),
        ("active_experts", f"Distinct experts, {batch} decoding requests"),
        ("active_experts_prefill", f"Distinct experts, {batch} neighbouring tokens"),
        ("rank_max_over_mean", f"Busiest of {ranks} ranks over mean, {batch} decoding tokens"),
        ("rank_max_over_mean_prefill", f"The same, {batch} neighbouring tokens"),
    )


def times(ratio: float) -> str:
    return f"{significant(ratio, 3)} times"


def trace_labels(studies: Studies) -> list[str]:
    """A distinct name for each trace."""
    names: list[str] = []
    for study in studies:
        taken = study.name in names
        names.append(f"{study.name} ({len(names) + 1})" if taken else study.name)
    return names


def mean_of(study: TraceStudy, name: str) -> float | None:
    """Mean over the layers that a statistic applies to; None where it applies to none."""
    values_L = by_layer(study).get(name, np.array([np.nan]))
    known = values_L[~np.isnan(values_L)]
    return float(known.mean()) if known.size else None


def ranging(what: str, studies: Studies, name: str, show: Callable[[float], str]) -> str:
    """'<what> ranges from a (trace) to b (trace)', of means over layers."""
    pairs = zip(trace_labels(studies), studies, strict=True)
    return spread(what, [(label, mean_of(study, name)) for label, study in pairs], show)


def _layer(study: TraceStudy, values_L: NDArray[np.float64], least: bool = False) -> str:
    row = int(np.nanargmin(values_L) if least else np.nanargmax(values_L))
    return f"layer {study.trace.layers_L[row]}"


def lead(study: TraceStudy) -> list[str]:
    """Two paragraphs for a reader who reads nothing else."""
    trace = study.trace
    first = (
        f"{count(trace.tokens, 'token')} of {count(trace.sequences, 'sequence')} through "
        f"{count(trace.layers, 'MoE layer')}; each token takes {trace.top_k} of {trace.experts} "
        f"experts. {load_title([study])}. {locality_title([study])}."
    )
    second = f"{distinct_title([study])}. {ranks_title([study])}."
    if study.domain_shifts:
        second += f" {domains_title([study])}."
    return [first, second]


def load_title(studies: Studies) -> str:
    if len(studies) > 1:
        what = "The busiest expert's load over the mean, in a mean layer,"
        return ranging(what, studies, "expert_max_over_mean", times)
    ratio_L = studies[0].load.max_over_mean_L
    return (
        f"The busiest expert takes {times(float(ratio_L.mean()))} its fair share in a mean layer, "
        f"{times(float(ratio_L.max()))} in {_layer(studies[0], ratio_L)}"
    )


def layers_title(studies: Studies) -> str:
    if len(studies) > 1:
        return ranging(
            "The number of effective experts of a mean layer", studies, "effective_experts", _three
        )
    study = studies[0]
    effective_L = study.load.effective_experts_L
    return (
        f"Of {study.trace.experts} experts, a mean layer uses as many as "
        f"{_three(float(effective_L.mean()))} evenly loaded ones; "
        f"{_layer(study, effective_L, least=True)} only {_three(float(effective_L.min()))}"
    )


def _three(value: float) -> str:
    return significant(value, 3)


def locality_title(studies: Studies) -> str:
    if len(studies) > 1:
        what = "The share of experts in common with the token before"
        return ranging(what, studies, "overlap_lag_1", percent)
    overlap, chance = (
        mean_of(studies[0], name) for name in ("overlap_lag_1", "overlap_if_independent")
    )
    if overlap is None or chance is None:
        return "No sequence has two tokens, so there is no locality to measure"
    return (
        f"A token shares {percent(overlap)} of its experts with the one before it; "
        f"independent tokens would share {percent(chance)}"
    )


def locality_caption(studies: Studies) -> str:
    band = "" if len(studies) > 1 else " (band: least to most layer)"  # many would hide the lines
    text = (
        "The share of a token's experts that the token so many places before it also used, a mean "
        f"over layers{band}. What remains at long distances is the subject "
        "of the sequence; the rise at short ones is the phrase."
    )
    if len(studies) > 1:
        return text
    overlap, shuffled, chance = (
        mean_of(studies[0], name)
        for name in ("overlap_lag_1", "overlap_shuffled", "overlap_if_independent")
    )
    if overlap is None or shuffled is None or chance is None or overlap <= chance:
        return text
    part = max(0.0, min(1.0, (shuffled - chance) / (overlap - chance)))
    return (
        f"{text} Here {percent(part)} of the excess over chance belongs to the sequence as a "
        "whole. The stronger the locality, the more a small expert cache can hold, and the more "
        "uneven a prefill chunk is."
    )


def requests_title(studies: Studies) -> str:
    if len(studies) > 1:
        what = "The busiest expert's load over the mean inside one request"
        return ranging(what, studies, "request_max_over_mean", times)
    real, mixed = (
        mean_of(studies[0], name)
        for name in ("request_max_over_mean", "request_max_over_mean_if_mixed")
    )
    if real is None or mixed is None:
        return "No sequence is long enough to measure the skew inside a request"
    if real > 1.1 * mixed:
        return (
            f"Inside one request the busiest expert takes {times(real)} its fair share; as many "
            f"tokens mixed from all requests would give {times(mixed)}"
        )
    return (
        f"Requests are no more skewed than the trace as a whole: the busiest expert takes "
        f"{times(real)} its fair share, {times(mixed)} in as many mixed tokens"
    )


def prediction_title(studies: Studies) -> str:
    if len(studies) > 1:
        what = "The share of the next layer's experts that can be guessed"
        return ranging(what, studies, "next_layer_recall", percent)
    recall, busiest = (
        mean_of(studies[0], name) for name in ("next_layer_recall", "next_layer_recall_of_busiest")
    )
    if recall is None or busiest is None:
        return "There is nothing to predict: it takes two layers and two tokens"
    return (
        f"A token's experts at one layer tell {percent(recall)} of its experts at the next; "
        f"always guessing the busiest finds {percent(busiest)}"
    )


def pairs_title(studies: Studies) -> str:
    if len(studies) > 1:
        what = "The share of pairs of experts that meet other than by chance"
        return ranging(what, studies, "coactivation", percent)
    distance, noise = (mean_of(studies[0], name) for name in ("coactivation", "coactivation_noise"))
    if distance is None or noise is None:
        return "Each token takes one expert a layer, so no two experts are chosen together"
    return (
        f"Experts are chosen in company: {percent(distance)} of pairs are not what the experts' "
        f"loads alone explain ({percent(noise)} by chance)"
    )


def distinct_title(studies: Studies) -> str:
    batch = studies[0].batch
    if len(studies) > 1:
        what = f"The number of experts that {batch} neighbouring tokens touch"
        return ranging(what, studies, "active_experts_prefill", _three)
    study = studies[0]
    decode, prefill = (
        mean_of(study, name) for name in ("active_experts", "active_experts_prefill")
    )
    uniform = float(study.batches.distinct_uniform_B[study.batches.sizes.index(batch)])
    if decode is not None:
        return (
            f"{batch} requests that decode together touch {_three(decode)} of "
            f"{study.trace.experts} experts, {_three(uniform)} if routing were uniform"
        )
    if prefill is not None:
        return (
            f"{batch} neighbouring tokens touch {_three(prefill)} of {study.trace.experts} "
            f"experts, {_three(uniform)} if routing were uniform"
        )
    return f"The trace is shorter than the batch of {batch} tokens"


def ranks_title(studies: Studies) -> str:
    batch, ranks = studies[0].batch, studies[0].ranks
    if len(studies) > 1:
        what = f"The busiest of {ranks} ranks over the mean, {batch} decoding tokens,"
        return ranging(what, studies, "rank_max_over_mean", times)
    study = studies[0]
    real, place = mean_of(study, "rank_max_over_mean"), study.batches.at(batch, ranks)
    if real is None or place is None:
        return f"{ranks} ranks do not divide {study.trace.experts} experts evenly"
    even = float(study.batches.imbalance_even_BR[place])
    return (
        f"With {batch} decoding tokens the busiest of {ranks} ranks gets {times(real)} the mean; "
        f"an even router would give {times(even)} by chance alone"
    )


def domains_title(studies: Studies) -> str:
    shifts = studies[0].domain_shifts
    if not shifts:
        return "The trace has one domain, so there is no shift between domains to show"
    worst = max(shifts, key=lambda shift: float(shift.distance_L.mean()))
    distance, noise = float(worst.distance_L.mean()), float(worst.noise_L.mean())
    if distance < 2 * noise:
        return "No two domains differ by more than twice the noise of their own halves"
    return (
        f"{worst.first} and {worst.second} send {percent(distance)} of their load to different "
        f"experts; halves of one domain differ by {percent(noise)}"
    )


def shift_title(studies: Studies) -> str:
    """Of several traces: the distance of each later one from the first."""
    parts = []
    names = trace_labels(studies)
    for name, study in zip(names[1:], studies[1:], strict=True):
        shift = measure_shift(studies[0].workload, study.workload)
        distance, noise = float(shift.distance_L.mean()), float(shift.noise_L.mean())
        seen = "within the noise of" if distance < 2 * noise else "against"
        parts.append(f"{name} by {percent(distance)}, {seen} {percent(noise)} between halves")
    return f"Load falls on other experts than in {names[0]}: {'; '.join(parts)}"
