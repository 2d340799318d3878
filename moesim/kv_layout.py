"""Which GPU holds which part of a request's keys and values, and who sends what to whom.

A request lies on the GPUs of its attention rank: on those of pipeline stage i the stage's layers,
on tensor-parallel rank t its share of the KV heads (a latent is whole on every one). Where two
pools differ in tensor parallelism, heads are gathered from several GPUs or split among several;
where they differ in pipeline stages, layers are. Of copies of the same head or latent, GPU t asks
the one of its own number, modulo theirs.
"""

from __future__ import annotations

from typing import NamedTuple

from moesim.architecture import MoEModel
from moesim.precision import Precision
from moesim.sharding import Sharding, stage_layers


class KVFlow(NamedTuple):
    """What one GPU sends to another: bytes of every token, of every token within the window, and
    of the request. GPUs are numbered within their attention rank: stage x attention_tp + t."""

    source: int
    target: int
    token_bytes: float
    window_bytes: float
    state_bytes: float

    def size_bytes(self, tokens: int, window_tokens: int, whole: bool) -> float:
        """Of so many tokens of the layers with full attention, and with a window; `whole`: of the
        layers that keep a state as well."""
        sent = tokens * self.token_bytes + window_tokens * self.window_bytes
        return sent + self.state_bytes * whole


def kv_flows(
    model: MoEModel, source: Sharding, target: Sharding, precision: Precision
) -> tuple[KVFlow, ...]:
    """All flows of one request from an attention rank of `source` to one of `target`."""
    flows = []
    for i, given in enumerate(stage_layers(model.layers, source.pipeline)):
        for j, wanted in enumerate(stage_layers(model.layers, target.pipeline)):
            layers = range(max(given.start, wanted.start), min(given.stop, wanted.stop))
            for t in range(target.attention_tp if layers else 0):
                for s in range(source.attention_tp):
                    sizes = _sizes(model, (source.attention_tp, s), (target.attention_tp, t))
                    found = _of_layers(model, precision, sizes, layers)
                    if any(found):
                        at = i * source.attention_tp + s, j * target.attention_tp + t
                        flows.append(KVFlow(*at, *found))
    return tuple(flows)


class _Share(NamedTuple):
    """What rank t of one pool takes from rank s of the other, of one layer of each kind."""

    values: int  # of a token's keys and values
    index_keys: bool
    state: float  # share of a state


def _sizes(model: MoEModel, source: tuple[int, int], target: tuple[int, int]) -> _Share:
    """`source` and `target` are (attention_tp, rank)."""
    (tp_s, s), (tp_t, t) = source, target
    same = t % tp_s == s
    first, stop = max(s / tp_s, t / tp_t), min((s + 1) / tp_s, (t + 1) / tp_t)
    state = max(0.0, stop - first)
    attention = model.attention
    if attention.kind == "mla":
        return _Share(attention.cached_values_per_token * same, same, state)
    heads = attention.kv_heads
    copies = max(1, tp_s // heads)
    taken = sum(_holder(heads, tp_s, head) + t % copies == s for head in _heads(heads, tp_t, t))
    return _Share(2 * taken * attention.head_dim, same, state)


def _heads(heads: int, tp: int, t: int) -> range:
    """KV heads of rank t; beyond their number, ranks share one."""
    return range(t * heads // tp, t * heads // tp + max(1, heads // tp))


def _holder(heads: int, tp: int, head: int) -> int:
    """The first rank that has a KV head."""
    return head * tp // heads


def _of_layers(
    model: MoEModel, precision: Precision, share: _Share, layers: range
) -> tuple[float, float, float]:
    """Bytes of a share over some layers: (of a token, of a token within the window, of a state)."""
    softmax = set(model.softmax_layers) & set(layers)
    windowed = sum(model.window_of_layer[layer] > 0 for layer in layers)
    per_layer = share.values * precision.kv_bytes_per_value
    full = (len(softmax) - windowed) * per_layer
    if model.index is not None and share.index_keys:
        full += len(set(model.index.layers) & set(layers)) * model.index.key_bytes
    state = 0.0
    if model.linear is not None:
        state = len(set(model.linear.layers) & set(layers)) * model.linear.state_bytes * share.state
    return full, windowed * per_layer, state
