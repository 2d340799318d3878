"""Which points to measure, so that a run of a deployment lies inside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from calibration.kernels.count_vectors import Batches
from calibration.kernels.points import Point
from moesim.architecture import MoEModel
from moesim.costs.measured.expert_work import balanced_tokens
from moesim.costs.measured.light import TABLE_FORMATS
from moesim.costs.measured.operators import rank_heads
from moesim.operators import linear_operators
from moesim.precision import Precision, WeightFormat
from moesim.sharding import Sharding

GROUPS = ("gemm", "attention", "experts", "copies", "collectives")
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "alltoall")
# Rows of the LM head are requests, not tokens.
MOST_HEAD_ROWS = 1024
KIB, MIB = 2**10, 2**20


@dataclass(frozen=True)
class Grid:
    """Sizes along each axis; what a deployment never reaches is left out. `most` cuts all axes.

    `batch_tokens`: sizes of the batches whose counts come from a trace, `vectors` of each.
    """

    tokens: tuple[int, ...]
    prompts: tuple[int, ...]
    batches: tuple[int, ...]
    kv_tokens: tuple[int, ...]
    batch_tokens: tuple[int, ...]
    vectors: int
    copy_bytes: tuple[int, ...]
    message_bytes: tuple[int, ...]
    most: int = 2**20


# GEMMs step by tiles of 64 and 128 rows (moesim.costs.measured.curves.tile_log).
FULL = Grid(
    tokens=(1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024, 1280,
            1536, 2048, 3072, 4096, 6144, 8192, 12_288, 16_384, 32_768, 65_536),
    prompts=(1, 4, 16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144,
             8192, 12_288, 16_384, 24_576, 32_768, 49_152, 65_536, 131_072),
    batches=(1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024),
    kv_tokens=(1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072),
    batch_tokens=(8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
    vectors=3,
    copy_bytes=tuple(2**i for i in range(12, 29, 2)),
    message_bytes=tuple(2**i for i in range(9, 29)),
)  # fmt: skip
QUICK = Grid(
    tokens=(1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 65_536),
    prompts=(1, 32, 128, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 131_072),
    batches=(1, 4, 16, 32, 64, 128, 256, 512, 1024),
    kv_tokens=(1, 64, 512, 2048, 8192, 32_768, 131_072),
    batch_tokens=(8, 64, 512, 4096),
    vectors=1,
    copy_bytes=(64 * KIB, MIB, 16 * MIB, 256 * MIB),
    message_bytes=tuple(2**i for i in range(9, 29, 3)),
)
# Without a GPU: the same path, for tests.
TINY = Grid(
    tokens=(1, 16, 64),
    prompts=(1, 16, 64),
    batches=(1, 4),
    kv_tokens=(1, 16, 64),
    batch_tokens=(8, 32),
    vectors=1,
    copy_bytes=(64 * KIB,),
    message_bytes=(KIB, 64 * KIB),
    most=64,
)


@dataclass(frozen=True)
class Target:
    """What a deployment computes on one GPU at most.

    `rank_tokens`: rows of an attention rank's step; `requests` of it; `longest`: tokens of a
    request; `kv_tokens`: what its cache holds. `devices` GPUs of this machine can exchange
    messages; `fp8`: whether this one multiplies fp8.
    """

    model: MoEModel
    sharding: Sharding
    precision: Precision
    rank_tokens: int
    requests: int
    longest: int
    kv_tokens: int
    devices: int = 1
    fp8: bool = False


def upto(values: Sequence[int], most: int) -> tuple[int, ...]:
    """The values below `most`, and `most` itself."""
    return (*(value for value in values if value < most), most)


def plan(
    target: Target, grid: Grid, batches: Batches | None, groups: Sequence[str] = GROUPS
) -> tuple[list[Point], list[str]]:
    """(points without repetition, what of the deployment they leave out and why)."""
    makers = {
        "gemm": lambda: _gemms(target, grid),
        "attention": lambda: _attention(target, grid),
        "experts": lambda: _experts(target, grid, batches),
        "copies": lambda: _copies(target, grid),
        "collectives": lambda: _collectives(target, grid),
    }
    points = [point for group in GROUPS if group in groups for point in makers[group]()]
    return list(dict.fromkeys(points)), _left_out(target, groups)


def table_word(weights: WeightFormat, fp8: bool) -> str | None:
    """The tables' word for what torch multiplies such weights in; None where it cannot.

    fp8 has one scale per tensor: models published in fp8 with one per block keep the shipped
    tables where there are any.
    """
    if weights.name == "bf16":
        return TABLE_FORMATS["bf16"][0]
    return "fp8" if weights.name == "fp8" and fp8 else None


def _keys(**of: str | int) -> tuple[tuple[str, str | int], ...]:
    return tuple(of.items())


def _gemms(target: Target, grid: Grid) -> Iterator[Point]:
    for linear in linear_operators(target.model, target.sharding, target.precision):
        dtype = table_word(linear.format, target.fp8)
        if dtype is None:
            continue
        head = linear.part == "head"
        most = min(target.rank_tokens, grid.most, MOST_HEAD_ROWS if head else grid.most)
        keys = _keys(dtype=dtype, n=linear.out_features, k=linear.in_features)
        yield from (Point("gemm", keys, m) for m in upto(grid.tokens, most))


def _attention(target: Target, grid: Grid) -> Iterator[Point]:
    model = target.model
    if model.attention.kind != "gqa":
        return
    heads, kv_heads = rank_heads(model, target.sharding)
    windows = sorted({model.window_of_layer[layer] for layer in model.softmax_layers})
    longest = min(target.longest, grid.most)
    for window in windows:
        shape: dict[str, str | int] = {
            "dtype": "bfloat16", "kv_dtype": "bfloat16", "heads": heads, "kv_heads": kv_heads,
            "head_dim": model.attention.head_dim, "window": window,
        }  # fmt: skip
        if window == 0:
            keys = _keys(**shape, batch=1)
            yield from (Point("context_attention", keys, n) for n in upto(grid.prompts, longest))
        for batch in upto(grid.batches, min(target.requests, grid.batches[-1])):
            # Twice what the cache holds: smaller batches in between are asked for as much.
            most = max(grid.kv_tokens[0], min(longest, 2 * target.kv_tokens // batch))
            keys = _keys(**shape, batch=batch)
            yield from (Point("generation_attention", keys, n) for n in upto(grid.kv_tokens, most))


def _experts(target: Target, grid: Grid, batches: Batches | None) -> Iterator[Point]:
    model, sharding = target.model, target.sharding
    dtype = table_word(target.precision.experts, target.fp8)
    if not model.is_moe or dtype is None:
        return
    ep = sharding.expert_parallel
    keys = _keys(
        dtype=dtype, hidden=model.hidden, inter=model.expert_width, topk=model.top_k,
        experts=model.experts, tp=sharding.moe_tp, ep=ep,
    )  # fmt: skip
    most = min(target.rank_tokens * sharding.attention_dp, grid.most)
    for tokens in upto(grid.tokens, most):
        counts = balanced_tokens(tokens, model.experts, model.top_k, ep)
        yield Point("moe", keys, tokens, tuple(counts.tolist()), "balanced")
    if batches is None:
        return
    for tokens in (size for size in grid.batch_tokens if size <= most):
        for counts_E, routing in batches.draw(tokens, ep, grid.vectors):
            yield Point("moe", keys, tokens, tuple(counts_E.tolist()), routing)


def _copies(target: Target, grid: Grid) -> Iterator[Point]:
    peers = ("peer",) if target.devices > 1 else ()
    for phase in ("d2d", "h2d", "d2h", *peers):
        yield from (Point("copy", _keys(phase=phase), size) for size in grid.copy_bytes)


def _collectives(target: Target, grid: Grid) -> Iterator[Point]:
    gpus = 2
    while gpus <= target.devices:
        for phase in COLLECTIVES:
            keys = _keys(phase=phase, dtype="half", gpus=gpus)
            yield from (Point("nccl", keys, size) for size in grid.message_bytes)
        gpus *= 2


def _left_out(target: Target, groups: Sequence[str]) -> list[str]:
    model, precision = target.model, target.precision
    notes = []
    for group, what, weights in (
        ("gemm", "matrix multiplications", precision.linear),
        ("experts", "experts", precision.experts),
    ):
        if group in groups and table_word(weights, target.fp8) is None:
            where = "on this device" if weights.name == "fp8" else "in torch"
            notes.append(f"{what} of {weights.name} weights: not multiplied {where}")
    if "attention" in groups:
        if model.attention.kind != "gqa":
            notes.append("latent attention: torch has no kernel for its decode steps")
        if any(model.window_of_layer[layer] for layer in model.softmax_layers):
            notes.append("prefill of sliding-window layers: torch has no kernel that skips keys")
        if precision.kv_cache == "fp8":
            notes.append("attention over an fp8 cache: torch has none, bf16 is measured")
        if model.linear:
            notes.append("linear attention: torch has no kernel for it")
    if "collectives" in groups and target.devices == 1:
        notes.append("collectives: one GPU here exchanges nothing")
    return notes
