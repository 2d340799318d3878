"""A study of a trace as plain numbers: what `moesim trace info --json` prints.

Legend: L MoE layers, S sequences, B batch sizes, R numbers of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.routing.shift import Shift
from moesim.routing.study import TraceStudy

Floats = NDArray[np.float64]

PERCENTILES = (10, 50, 90)


def by_layer(study: TraceStudy) -> dict[str, Floats]:
    """Every statistic that has one value a layer, [L] each; NaN where it does not apply."""
    load, locality, batches = study.load, study.locality, study.batches
    found: dict[str, Floats] = {
        "expert_max_over_mean": load.max_over_mean_L,
        "expert_gini": load.gini_L,
        "expert_entropy": load.entropy_L,
        "effective_experts": load.effective_experts_L,
        "busiest_expert_share": load.busiest_share_L,
    }
    for lag, overlap_L in zip(locality.lags, locality.overlap_GL, strict=True):
        found[f"overlap_lag_{lag}"] = overlap_L
    found |= {
        "overlap_shuffled": locality.shuffled_L,
        "overlap_if_independent": locality.independent_L,
        "any_shared_lag_1": locality.any_shared_GL[0],
        "request_max_over_mean": _mean(study.requests.ratio_SL),
        "request_max_over_mean_if_mixed": _mean(study.requests.mixed_SL),
        "next_layer_recall": study.prediction.recall_L,
        "next_layer_recall_of_busiest": study.prediction.baseline_L,
        "coactivation": study.coactivation.distance_L,
        "coactivation_noise": study.coactivation.noise_L,
    }
    size = batches.sizes.index(study.batch)
    decode_L = batches.distinct_decode_BL[size]
    found["active_experts"] = decode_L
    found["active_experts_prefill"] = batches.distinct_prefill_BL[size]
    if (place := batches.at(study.batch, study.ranks)) is not None:
        found["rank_max_over_mean"] = batches.imbalance_random_BRL[place]
        found["rank_max_over_mean_prefill"] = batches.imbalance_prefill_BRL[place]
    return found


def _mean(values_SL: Floats) -> Floats:
    return values_SL.mean(axis=0) if len(values_SL) else np.full(values_SL.shape[1], np.nan)


def over_layers(values_L: Floats) -> dict[str, Any]:
    """Mean, least and most of the layers that a statistic applies to, and all of them."""
    known = values_L[~np.isnan(values_L)]
    if not known.size:
        return {"mean": None, "least": None, "most": None, "by_layer": []}
    return {
        "mean": float(known.mean()),
        "least": float(known.min()),
        "most": float(known.max()),
        "by_layer": numbers(values_L),
    }


def numbers(values: ArrayLike) -> list[Any]:
    """Nested lists of an array's numbers, None for NaN."""

    def known(value: Any) -> Any:
        if isinstance(value, list):
            return [known(part) for part in value]
        return None if value != value else value

    return [known(value) for value in np.asarray(values, np.float64).tolist()]


def summary(study: TraceStudy) -> dict[str, Any]:
    """Everything that was measured, as JSON; `study.trace` is described, not repeated."""
    trace = study.trace
    sequences_D = np.bincount(trace.domain_S, minlength=len(trace.domains))
    return {
        "name": study.name,
        "model": trace.model,
        "tokens": trace.tokens,
        "prompt_tokens": int(trace.prompt_tokens_S.sum()),
        "sequences": trace.sequences,
        "layers": trace.layers,
        "layer_indices": trace.layers_L.tolist(),
        "experts": trace.experts,
        "top_k": trace.top_k,
        "weights": trace.weights_TLK is not None,
        "domains": dict(zip(trace.domains, sequences_D.tolist(), strict=True)),
        "provenance": dict(trace.provenance),
        "sample": {"tokens": study.sample_tokens, "sequences": study.sample_sequences},
        "batch_tokens": study.batch,
        "ranks": study.ranks,
        "statistics": {name: over_layers(values) for name, values in by_layer(study).items()},
        "requests": _requests(study),
        "batches": _batches(study),
        "pairs": [asdict(pair) for pair in study.coactivation.pairs],
        "domain_shift": [shift_summary(shift) for shift in study.domain_shifts],
        "collapse": {
            "decidable": study.collapse.decidable,
            **{
                kind: [asdict(finding) for finding in getattr(study.collapse, kind)]
                for kind in ("dead", "dominating", "collapsed")
            },
        },
        "notes": list(study.notes),
    }


def shift_summary(shift: Shift) -> dict[str, Any]:
    """Total variation between two workloads, and their split-half noise."""
    return {
        "first": shift.first,
        "second": shift.second,
        "total_variation": over_layers(shift.distance_L),
        "noise": over_layers(shift.noise_L),
        "layer_indices": shift.layers_L.tolist(),
    }


def _requests(study: TraceStudy) -> dict[str, Any]:
    found: dict[str, Any] = {"sequences": len(study.requests.ratio_SL)}
    for name, ratio_SL in (("real", study.requests.ratio_SL), ("mixed", study.requests.mixed_SL)):
        ratio_S = ratio_SL.mean(axis=1)
        found[name] = {
            f"p{q}": float(np.percentile(ratio_S, q)) if len(ratio_S) else None for q in PERCENTILES
        }
    return found


def _batches(study: TraceStudy) -> dict[str, Any]:
    batches = study.batches

    def by_ranks(values_RB: Sequence[Any]) -> dict[str, Any]:
        pairs = zip(batches.ranks, values_RB, strict=True)
        return {str(ranks): numbers(values_B) for ranks, values_B in pairs}

    return {
        "tokens": list(batches.sizes),
        "distinct_experts": {
            "decode": numbers(batches.distinct_decode_BL.mean(axis=1)),
            "prefill": numbers(batches.distinct_prefill_BL.mean(axis=1)),
            "uniform": numbers(batches.distinct_uniform_B),
        },
        "rank_max_over_mean": {
            "random": by_ranks(list(batches.imbalance_random_BRL.mean(axis=2).T)),
            "prefill": by_ranks(list(batches.imbalance_prefill_BRL.mean(axis=2).T)),
            "even": by_ranks(list(batches.imbalance_even_BR.T)),
        },
        "rank_max_over_mean_spread": by_ranks(list(batches.spread_BR.T)),
    }
