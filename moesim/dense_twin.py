"""Dense models as large as a Mixture of Experts: its attention and layers, one MLP in each.

A twin answers what the experts themselves cost: everything but the MLPs is the MoE's own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from moesim.architecture import MoEModel
from moesim.errors import InputError

TwinKind = Literal["active", "total"]
TWIN_KINDS: tuple[TwinKind, ...] = get_args(TwinKind)
# MLP widths come in multiples of the blocks that quantised weights are scaled in (128 x 128).
TILE = 128


def dense_twin(model: MoEModel, kind: TwinKind) -> MoEModel:
    """A dense model with as many parameters as the MoE has in all, or active for a token.

    All layers have MLPs of one width, the multiple of TILE nearest to equality: parameters are
    equal to within half a tile, 3 x hidden x layers x TILE / 2. Routers, shared experts, the MoE's
    own dense MLPs and biases of experts are all within the width. Draft layers are left out.
    Raises InputError for a dense model.
    """
    if kind not in TWIN_KINDS:
        raise InputError("dense twin", f"must be {' or '.join(TWIN_KINDS)}", kind)
    if not model.is_moe:
        raise InputError("model", "must have experts to have a dense twin", model.name)
    count = model.parameters()
    bare = replace(
        model,
        name=f"dense twin of {model.name} ({kind})",
        moe_layers=(),
        experts=0,
        top_k=0,
        expert_width=0,
        expert_bias=False,
        router_bias=False,
        shared_width=0,
        shared_gate=False,
        dense_width=0,
        expert_groups=0,
        topk_groups=0,
        mtp_layers=0,
        status="assumed",
        note=f"no such model exists: {model.name} without experts, its MLPs made as large as its "
        f"{kind} parameters",
        source=f"derived from {model.source}",
        published_total=None,
        published_active=None,
    )
    wanted = count.total if kind == "total" else count.active
    per_width = 3 * model.hidden * model.layers
    tiles = round((wanted - bare.parameters().total) / (per_width * TILE))
    return replace(bare, dense_width=TILE * max(1, tiles))
