"""A study as a table and as JSON: base units, percentages where a name says so."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.findings.placement import Candidate, Gain, PlacementFindings, StepScore

if TYPE_CHECKING:
    import pandas as pd


def candidate_table(study: PlacementFindings) -> pd.DataFrame:
    """A row per placement, the present one first."""
    import pandas as pd

    return pd.DataFrame([_row(study, each) for each in (study.present, *study.others)])


def _row(study: PlacementFindings, each: Candidate) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": each.name,
        "present": each is study.present,
        "recommended": each is study.recommended,
        "policy": each.policy,
        "redundant_experts": each.redundant_experts,
        "choice": each.choice,
    }
    gains = {
        "in_sample": each.in_sample,
        "next_window": each.next_window,
        "cross_domain": each.cross_domain,
        "against_eplb": each.against_eplb,
        "against_best_eplb": each.against_best_eplb,
    }
    for name, gain in gains.items():
        row[f"{name}_percent"] = None if gain is None else gain.percent
    row |= {"low_percent": each.next_window.low, "high_percent": each.next_window.high}
    return row | {
        "headroom_percent": each.headroom_percent,
        "kv_capacity_tokens": each.kv_capacity_tokens,
        "empty_slots": each.empty_slots,
    }


def study_json(study: PlacementFindings) -> list[dict[str, Any]]:
    """An object for each candidate: what a run of it says, if there was one, and `placement`."""
    shared = {
        "present": study.present.name,
        "recommended": None if study.recommended is None else study.recommended.name,
        "headline": study.headline,
        "reasons": list(study.reasons),
        "advice": [asdict(each) for each in study.advice],
        "cap_percent": study.cap_percent,
        "basis": list(study.basis),
        "batch_tokens": study.kinds[0].tokens,
    }
    return [
        {**(each.summary or {}), "name": each.name, "placement": {**_placement(each), **shared}}
        for each in study.candidates
    ]


def _placement(each: Candidate) -> dict[str, Any]:
    decode = each.scores[0]
    simulated = each.simulated
    return {
        "policy": each.policy,
        "redundant_experts": each.redundant_experts,
        "choice": each.choice,
        "load_mean": each.load_mean,
        "load_worst": float(each.load_LR.max()),
        "worst_layer": each.worst_layer,
        "in_sample": _gain(each.in_sample),
        "next_window": _gain(each.next_window),
        "cross_domain": _gain(each.cross_domain),
        "against_eplb": _gain(each.against_eplb),
        "against_best_eplb": _gain(each.against_best_eplb),
        "headroom_percent": each.headroom_percent,
        "kv_capacity_tokens": each.kv_capacity_tokens,
        "kv_cost_tokens": each.kv_cost_tokens,
        "empty_slots": each.empty_slots,
        "batch_mean": decode.tokens_max_over_mean,
        "active_busiest": decode.active_max,
        "active_mean": decode.active_mean,
        "steps": [_step(score) for score in each.scores],
        "simulated": None
        if simulated is None
        else {
            "seeds": simulated.seeds,
            "choice": simulated.choice,
            "decode_step": _gain(simulated.decode_step),
            "prompt_step": _gain(simulated.prompt_step),
            "itl_p99": _gain(simulated.itl_p99),
        },
    }


def _step(score: StepScore) -> dict[str, Any]:
    percentiles = (50, 90, 99)
    ratio = np.percentile(score.imbalance_DL, percentiles)
    names = (f"tokens_max_over_mean_p{q}" for q in percentiles)
    return {
        "kind": score.kind,
        "layer_s": score.layer_s,
        "balanced_s": score.balanced_s,
        "tokens_max_over_mean": score.tokens_max_over_mean,
        **dict(zip(names, map(float, ratio), strict=True)),
        "active_busiest": score.active_max,
        "active_mean": score.active_mean,
        "bytes_within_nodes_per_token": score.near_bytes,
        "bytes_across_nodes_per_token": score.far_bytes,
        "gain": _gain(score.gain),
        "against_eplb": _gain(score.against_eplb),
    }


def _gain(gain: Gain | None) -> dict[str, float | None] | None:
    return None if gain is None else asdict(gain)
