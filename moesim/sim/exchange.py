"""Tokens on their way to their experts and back: who sends how many to whom, and how long it takes.

The busiest sender or receiver of a link binds; moesim.costs.traffic counts the same in plain NumPy,
moesim.costs.libraries has the law behind the time. Legend: D attention ranks, L MoE layers, R ranks
of the expert-parallel group, X = R + domains. Sources: DeepEP `internode_ll.cu`, `internode.cu`.
"""

from __future__ import annotations

from typing import Any

from moesim.compiled import inner
from moesim.sim.cost_tables import ALL_GATHER, LOW_LATENCY, M_TO_N, NORMAL, OUT, UP
from moesim.sim.sums import tokens_active


@inner
def add_low_latency(c: Any, w: Any, d: int) -> None:
    """One message per token and expert: add what rank d sends, in tokens, from its slot counts."""
    tp = c.scalars[0].attention_tp
    layers, ranks = w.source_LP.shape[0], w.recv_up_LR.shape[1]
    first = w.recv_up_LR.shape[0] - layers
    per_rank = c.rank_of_slot.size // ranks
    home = c.domain_of_rank[d * tp]
    for layer in range(layers):
        row = first + layer
        near = 0.0
        far = 0.0
        for r in range(ranks):
            sent, _ = tokens_active(w.source_LP[layer], r * per_rank, (r + 1) * per_rank)
            count = 1.0 * sent
            if c.domain_of_rank[r] != home:
                w.recv_out_LR[row, r] += count
                w.pair_L[row] = max(w.pair_L[row], count / tp)
                far += count
                continue
            near += count
            if r // tp == d:  # what a GPU sends to itself does not travel
                w.send_up_LR[row, r] -= count / tp
                count -= count / tp
            w.recv_up_LR[row, r] += count
        for t in range(tp):
            w.send_up_LR[row, d * tp + t] += near / tp
            w.send_out_LR[row, d * tp + t] += far / tp


@inner
def add_normal(c: Any, w: Any, d: int) -> None:
    """One copy per node over the network, then one per rank over the scale-up links, in tokens."""
    tp = c.scalars[0].attention_tp
    layers, ranks = w.source_LP.shape[0], w.recv_up_LR.shape[1]
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
                    w.pair_L[layer] = max(w.pair_L[layer], copies)
                for r in range(domain * width, (domain + 1) * width):
                    if r != landing:
                        moved = w.source_LX[layer, r] / tp
                        w.send_up_LR[layer, landing] += moved
                        w.recv_up_LR[layer, r] += moved


@inner
def add_m_to_n(c: Any, w: Any, d: int) -> None:
    """Attention apart from experts: one copy for each token and expert GPU, which goes straight
    from one of the rank's GPUs. Senders are attention's GPUs, receivers the experts'."""
    tp = c.scalars[0].attention_tp
    for layer in range(w.source_LP.shape[0]):
        for r in range(c.domain_of_rank.size):
            _add_pair(c, w, layer, d * tp, tp, r, w.source_LX[layer, r] / tp)


@inner
def add_evenly(c: Any, w: Any, ranks: int) -> None:
    """The same in the row behind the last, of a dense layer: every token goes to one expert GPU,
    each rank's evenly to all of them."""
    tp = c.scalars[0].attention_tp
    row = w.source_LP.shape[0]
    w.recv_up_LR[row] = 0.0
    w.send_up_LR[row] = 0.0
    w.recv_out_LR[row] = 0.0
    w.send_out_LR[row] = 0.0
    gpus = c.domain_of_rank.size
    for d in range(ranks):
        for r in range(gpus):
            _add_pair(c, w, row, d * tp, tp, r, w.part_tokens[d] / (tp * gpus))


@inner
def _add_pair(c: Any, w: Any, row: int, first: int, gpus: int, r: int, copies: float) -> None:
    """Copies that each of the attention GPUs from `first` on sends to expert GPU r."""
    for sender in range(first, first + gpus):
        if c.domain_of_attention[sender] == c.domain_of_rank[r]:
            w.send_up_LR[row, sender] += copies
            w.recv_up_LR[row, r] += copies
        else:
            w.send_out_LR[row, sender] += copies
            w.recv_out_LR[row, r] += copies


@inner
def clear_traffic(w: Any) -> None:
    """No token has been sent yet."""
    w.recv_up_LR[:] = 0.0
    w.send_up_LR[:] = 0.0
    w.recv_out_LR[:] = 0.0
    w.send_out_LR[:] = 0.0
    w.pair_L[:] = 0.0


@inner
def receive_evenly(c: Any, w: Any, row: int, messages: bool) -> None:
    """What if all expert ranks received equally much, each sender's from it alike? What attention
    ranks send stays their own. `messages`: the row counts messages, not one copy for each node."""
    ranks = c.domain_of_rank.size
    up = 0.0
    out = 0.0
    for r in range(ranks):
        up += w.recv_up_LR[row, r]
        out += w.recv_out_LR[row, r]
    for r in range(ranks):
        w.recv_up_LR[row, r] = up / ranks
        w.recv_out_LR[row, r] = out / ranks
    domains = w.source_LX.shape[1] - ranks
    others = ranks - ranks // domains if messages else domains - 1
    most = 0.0
    for gpu in range(w.send_out_LR.shape[1]):
        most = max(most, w.send_out_LR[row, gpu])
    w.pair_L[row] = most / max(1, others)


@inner
def phase_s(w: Any, step: Any, law: Any, row: int, back: bool) -> float:
    """Seconds of one phase by a row of EXCHANGE. `back`: combine takes the same ways back, so that
    what was received is sent."""
    up = 0.0
    out = 0.0
    posted = 0.0
    slowed_up = 0.0
    slowed_out = 0.0
    k = w.replica[0]
    for r in range(w.recv_up_LR.shape[1]):
        most_up = max(w.recv_up_LR[row, r], w.send_up_LR[row, r])
        received = w.recv_out_LR[row, r] + law.near_out * w.recv_up_LR[row, r]
        sent = w.send_out_LR[row, r] + law.near_out * w.send_up_LR[row, r]
        most_out = max(received, sent)
        up = max(up, most_up)
        out = max(out, most_out)
        slowed_up = max(slowed_up, most_up * w.condition.up_slow_KR[k, r])
        slowed_out = max(slowed_out, most_out * w.condition.out_slow_KR[k, r])
        posted = max(posted, received if back else sent)
    byte_s = max(
        slowed_up * law.up_copy_s * w.slowdown[UP], slowed_out * law.out_copy_s * w.slowdown[OUT]
    )
    step.scale_up_bytes += (1.0 - law.near_out) * up * law.copy_bytes
    step.scale_out_bytes += out * law.copy_bytes
    posted_s = w.pair_L[row] * law.pair_s + posted * law.message_s
    return max(law.floor_s, law.base_s + posted_s + byte_s)


@inner
def contention_s(c: Any, w: Any, up_bytes: float, out_bytes: float) -> float:
    """What traffic of others adds to bytes that cross both kinds of links one after the other."""
    cost = c.scalars[0]
    return up_bytes * cost.up_byte_s * (w.slowdown[UP] - 1.0) + out_bytes * cost.out_byte_s * (
        w.slowdown[OUT] - 1.0
    )


@inner
def slowest_link(w: Any, far: bool) -> float:
    """How much slower than sound the slowest link of the replica is; `far`: across domains."""
    k = w.replica[0]
    slow: float = w.condition.worst_out_K[k] if far else w.condition.worst_up_K[k]
    return slow


@inner
def exchange_layer(
    c: Any, w: Any, step: Any, layer: int, exchange: int, kind: int, group_tokens: int
) -> Any:
    """Add one layer's dispatch and combine to `step`; seconds of each."""
    cost = c.scalars[0]
    if exchange == ALL_GATHER:
        # Every rank gets every token whoever its experts are, and sums up on the way back.
        once_s = cost.gather_base_s + group_tokens * cost.gather_token_s
        if c.gather_s.size > 0:
            once_s = c.gather_s[group_tokens]
        # A collective of all goes at the pace of its slowest link.
        once_s *= slowest_link(w, cost.gather_out_bytes > 0.0)
        once_s += group_tokens * contention_s(c, w, cost.gather_up_bytes, cost.gather_out_bytes)
        step.dispatch_s += once_s
        step.combine_s += once_s
        step.scale_up_bytes += 2 * group_tokens * cost.gather_up_bytes
        step.scale_out_bytes += 2 * group_tokens * cost.gather_out_bytes
        return once_s, once_s
    if exchange < NORMAL or not w.sources:
        return 0.0, 0.0
    messages = w.recv_up_LR.shape[0] - w.source_LP.shape[0] + layer
    there = messages if exchange == LOW_LATENCY else layer
    back = layer if exchange in (NORMAL, M_TO_N) else messages
    if cost.even_routing > 0:
        receive_evenly(c, w, there, exchange == LOW_LATENCY)
        if back != there:
            receive_evenly(c, w, back, True)
    dispatch_s = phase_s(w, step, c.exchange[kind, 0], there, False)
    combine_s = phase_s(w, step, c.exchange[kind, 1], back, True)
    if c.exchange_ratio.shape[2] > 0:
        dispatch_s *= c.exchange_ratio[kind, 0, group_tokens]
        combine_s *= c.exchange_ratio[kind, 1, group_tokens]
    step.dispatch_s += dispatch_s
    step.combine_s += combine_s
    return dispatch_s, combine_s
