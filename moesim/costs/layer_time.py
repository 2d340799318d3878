"""The law of a layer's expert time that a deployment's step costs imply.

Equal to what the simulation prices (moesim.sim.experts.expert_layers) for sound GPUs whose experts
are in memory: measured kernels with a corner for each expert, assumed rates with a sharp corner for
the rank. Exchanges, be they all-gathers or dispatches, are no part of it.
"""

from __future__ import annotations

import numpy as np

from moesim.costs.step import StepCosts
from moesim.errors import InputError
from moesim.placement.layer_law import LayerLaw


def layer_law(costs: StepCosts, prompts: bool, group_tokens: int) -> LayerLaw:
    """Seconds of a rank's experts of one layer in steps of `group_tokens` tokens on all ranks, with
    `prompts` or without.

    Raises InputError for a model without routed experts, and where the costs do not reach as far.
    """
    rates = costs.rates
    if not costs.stage_of_layer.size:
        raise InputError("model", "must have routed experts")
    kernel_s, pair_s, weight_s, flop_s, token_s = (
        float(rates.get(f"expert_{name}_s", 0.0))
        for name in ("kernel", "pair", "weight", "flop", "token")
    )
    shift = int(rates.get("tile_shift", 0))
    if not costs.expert_tile_s.size:
        return LayerLaw(weight_s, flop_s, np.inf, kernel_s, pair_s, shift, np.zeros(0))
    most = costs.expert_ratio.shape[1] - 1
    if not 0 <= group_tokens <= most:
        raise InputError("batch", f"must be at most {most} tokens on all ranks", group_tokens)
    ratio = float(costs.expert_ratio[0 if prompts else 1, group_tokens])
    return LayerLaw(
        active_s=0.0,
        padded_s=0.0,
        power=np.inf,
        fixed_s=ratio * (kernel_s + group_tokens * token_s),
        pair_s=ratio * pair_s,
        tile_shift=shift,
        tile_s=ratio * costs.expert_tile_s,
    )
