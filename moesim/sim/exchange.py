"""Tokens on their way to their experts and back: who sends how many to whom, and how long it takes.

The busiest sender or receiver of a link binds. Legend: D attention ranks, L MoE layers, R ranks of
the expert-parallel group, X = R + domains. Sources: DeepEP `internode_ll.cu`, `internode.cu`.
"""

from __future__ import annotations

from typing import Any

from moesim.compiled import inner
from moesim.sim.cost_tables import ALL_GATHER, LOW_LATENCY, NORMAL


@inner
def add_low_latency(c: Any, w: Any, d: int) -> None:
    """One message per token and expert: add what rank d sends, in tokens, from its slot counts."""
    tp = c.scalars[0].attention_tp
    layers, ranks = w.recv_up_LR.shape
    per_rank = c.rank_of_slot.size // ranks
    home = c.domain_of_rank[d * tp]
    for layer in range(layers):
        near = 0.0
        far = 0.0
        for r in range(ranks):
            count = 0.0
            for p in range(r * per_rank, (r + 1) * per_rank):
                count += w.source_LP[layer, p]
            if c.domain_of_rank[r] != home:
                w.recv_out_LR[layer, r] += count
                far += count
                continue
            if r // tp == d:
                count -= count / tp  # what a GPU sends to itself does not travel
            w.recv_up_LR[layer, r] += count
            near += count
        for t in range(tp):
            w.send_up_LR[layer, d * tp + t] += near / tp
            w.send_out_LR[layer, d * tp + t] += far / tp


@inner
def add_normal(c: Any, w: Any, d: int) -> None:
    """One copy per node over the network, then one per rank over the scale-up links, in tokens."""
    tp = c.scalars[0].attention_tp
    layers, ranks = w.recv_up_LR.shape
    domains = w.source_LX.shape[1] - ranks
    width = ranks // domains
    home = c.domain_of_rank[d * tp]
    for layer in range(layers):
        for t in range(tp):
            gpu = d * tp + t
            for domain in range(domains):
                # The copy lands on the GPU with the sender's place in its node, which fans it out.
                landing = domain * width + gpu % width
                if domain != home:
                    copies = w.source_LX[layer, ranks + domain] / tp
                    w.send_out_LR[layer, gpu] += copies
                    w.recv_out_LR[layer, landing] += copies
                for r in range(domain * width, (domain + 1) * width):
                    if r != landing:
                        moved = w.source_LX[layer, r] / tp
                        w.send_up_LR[layer, landing] += moved
                        w.recv_up_LR[layer, r] += moved


@inner
def clear_traffic(w: Any) -> None:
    """No token has been sent yet."""
    w.recv_up_LR[:] = 0.0
    w.send_up_LR[:] = 0.0
    w.recv_out_LR[:] = 0.0
    w.send_out_LR[:] = 0.0


@inner
def exchange_layer(
    c: Any, w: Any, step: Any, layer: int, exchange: int, group_tokens: int
) -> float:
    """Add one layer's dispatch and combine to `step`; seconds of both."""
    cost = c.scalars[0]
    if exchange == ALL_GATHER:
        # Every rank gets every token whoever its experts are, and sums up on the way back.
        once_s = cost.gather_base_s + group_tokens * cost.gather_token_s
        # A collective of all goes at the pace of its slowest link.
        if cost.gather_out_bytes > 0.0:
            once_s *= w.condition.worst_out_K[w.replica[0]]
        else:
            once_s *= w.condition.worst_up_K[w.replica[0]]
        step.dispatch_s += once_s
        step.combine_s += once_s
        step.scale_up_bytes += 2 * group_tokens * cost.gather_up_bytes
        step.scale_out_bytes += 2 * group_tokens * cost.gather_out_bytes
        return 2.0 * once_s
    if exchange not in (NORMAL, LOW_LATENCY):
        return 0.0
    up = 0.0
    out = 0.0
    slowed_up = 0.0
    slowed_out = 0.0
    for r in range(w.recv_up_LR.shape[1]):
        most_up = max(w.recv_up_LR[layer, r], w.send_up_LR[layer, r])
        most_out = max(w.recv_out_LR[layer, r], w.send_out_LR[layer, r])
        up = max(up, most_up)
        out = max(out, most_out)
        slowed_up = max(slowed_up, most_up * w.condition.up_slow_KR[w.replica[0], r])
        slowed_out = max(slowed_out, most_out * w.condition.out_slow_KR[w.replica[0], r])
    base = cost.normal_base_s
    sent_bytes = cost.dispatch_bytes
    if exchange == LOW_LATENCY:
        base = cost.low_latency_base_s
        sent_bytes = cost.low_latency_dispatch_bytes
    # Combine takes the same ways back: what was received is sent.
    byte_s = max(slowed_up * cost.up_byte_s, slowed_out * cost.out_byte_s)
    dispatch_s = base + byte_s * sent_bytes
    combine_s = base + byte_s * cost.combine_bytes
    step.dispatch_s += dispatch_s
    step.combine_s += combine_s
    step.scale_up_bytes += up * (sent_bytes + cost.combine_bytes)
    step.scale_out_bytes += out * (sent_bytes + cost.combine_bytes)
    return dispatch_s + combine_s
