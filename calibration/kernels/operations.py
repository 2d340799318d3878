"""What is timed: the calls of one point, on operands that together exceed the L2 cache.

Every builder gives a list of calls of equal work, each on operands of its own, and the kernel's
name. They run on any torch device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from calibration.kernels.device import Device
from calibration.kernels.points import Point
from calibration.kernels.timing import Call

Calls = tuple[list[Call], str]
# Sets of operands are as large as this many L2 caches, so that none survives a round.
L2_ROUNDS = 3
MOST_SETS = 2048
FILL_VALUES = 2**26  # at once


class TooLargeError(ValueError):
    """A point whose operands do not fit the device."""


@dataclass
class Bench:
    """A device and what is kept between points: the expert weights of one shape."""

    device: Device
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def torch(self) -> Any:
        return self.device.torch

    def synchronize(self) -> None:
        """Wait until the device has done everything."""
        if self.device.is_cuda:
            self.torch.cuda.synchronize()

    def release(self) -> None:
        """Give memory back to the device."""
        self.kept.clear()
        if self.device.is_cuda:
            self.torch.cuda.empty_cache()

    def dtype(self, word: str) -> Any:
        """torch's type for a word of the tables."""
        torch = self.torch
        types = {"bfloat16": torch.bfloat16, "fp8": torch.float8_e4m3fn, "half": torch.float16}
        return types[word]

    def filled(self, *shape: int, word: str = "bfloat16", scale: float = 1.0) -> Any:
        """Normally distributed operands: the power that a GPU draws depends on their bits."""
        torch, place = self.torch, self.device.place
        made = torch.empty(math.prod(shape), dtype=self.dtype(word), device=place)
        for part in made.split(FILL_VALUES):
            part.copy_(torch.randn(part.shape, dtype=torch.bfloat16, device=place) * scale)
        return made.view(shape)

    def sets(self, set_bytes: float) -> int:
        """How many sets of operands exceed the cache. Raises TooLargeError."""
        most = self.device.operand_bytes
        if set_bytes > most:
            raise TooLargeError(
                f"its operands take {set_bytes / 2**20:.0f} of {most / 2**20:.0f} MiB"
            )
        wanted = max(2, math.ceil(L2_ROUNDS * self.device.l2_bytes / set_bytes))
        return max(1, min(wanted, MOST_SETS, int(most / set_bytes)))


def gemm_calls(point: Point, bench: Bench) -> Calls:
    """[m, k] x [k, n]. fp8: the input is quantised with a known scale, in one pass, as engines fuse
    finding it with the norm before; one scale per tensor."""
    torch = bench.torch
    m, n, k = point.x, point.number("n"), point.number("k")
    word = str(point.of["dtype"])
    bytes_each = 1 if word == "fp8" else 2
    sets = bench.sets(bytes_each * n * k + 2 * m * k + 2 * m * n)
    weights = bench.filled(sets, n, k, word=word, scale=k**-0.5)
    x = bench.filled(sets, m, k)
    if word == "fp8":
        one = torch.ones((), dtype=torch.float32, device=bench.device.place)

        def scaled(i: int) -> Call:
            return lambda: torch._scaled_mm(
                x[i].to(weights.dtype), weights[i].t(), scale_a=one, scale_b=one,
                out_dtype=torch.bfloat16,
            )  # fmt: skip

        return [scaled(i) for i in range(sets)], "torch_scaled_mm"
    out = torch.empty((sets, m, n), dtype=x.dtype, device=bench.device.place)

    def plain(i: int) -> Call:
        return lambda: torch.mm(x[i], weights[i].t(), out=out[i])

    return [plain(i) for i in range(sets)], "torch_mm"


def context_calls(point: Point, bench: Bench) -> Calls:
    """Causal attention of one prompt."""
    return _attention_calls(point, bench, point.x, point.x, causal=True)


def generation_calls(point: Point, bench: Bench) -> Calls:
    """One query of each request against its cache, of which a window reads the end only."""
    return _attention_calls(point, bench, 1, point.x, causal=False)


def _attention_calls(point: Point, bench: Bench, queries: int, keys: int, causal: bool) -> Calls:
    """Caches lie token by token, heads inside, as engines write them."""
    torch = bench.torch
    heads, kv_heads = point.number("heads"), point.number("kv_heads")
    batch, width = point.number("batch"), point.number("head_dim")
    window = point.number("window") or keys
    q_shape, kv_shape = (batch, queries, heads, width), (batch, keys, kv_heads, width)
    set_bytes = 4 * math.prod(q_shape) + 4 * math.prod(kv_shape)
    sets = bench.sets(set_bytes)
    q = bench.filled(sets, *q_shape).transpose(2, 3)
    k, v = (bench.filled(sets, *kv_shape).transpose(2, 3)[:, :, :, -window:] for _ in range(2))
    how = {"is_causal": causal, "enable_gqa": heads != kv_heads}
    attend = torch.nn.functional.scaled_dot_product_attention

    def call(i: int) -> Call:
        return lambda: attend(q[i], k[i], v[i], **how)

    return [call(i) for i in range(sets)], _attention_kernel(torch, (q[0], k[0], v[0]), how)


def _attention_kernel(torch: Any, operands: tuple[Any, ...], how: Mapping[str, bool]) -> str:
    """The name of the backend that torch chooses; without it where torch does not tell."""
    try:
        code = torch._fused_sdp_choice(*operands, **how)
        backend = torch.nn.attention.SDPBackend(code).name.lower()
    except (AttributeError, RuntimeError, TypeError, ValueError):
        backend = "unnamed"
    return f"torch_sdpa_{backend}"


def copy_calls(point: Point, bench: Bench) -> Calls:
    """Bytes within the device (d2d), from and to pinned host memory, and to the next GPU."""
    torch, phase, size = bench.torch, str(point.of["phase"]), point.x
    here = bench.device.place
    host: dict[str, Any] = {"device": "cpu", "pin_memory": bench.device.is_cuda}
    there: dict[str, Any] = {"device": "cuda:1" if phase == "peer" else here}
    source, target = {
        "d2d": ({"device": here}, {"device": here}),
        "h2d": (host, {"device": here}),
        "d2h": ({"device": here}, host),
        "peer": ({"device": here}, there),
    }[phase]
    sets = bench.sets(2 * size)
    froms, tos = (torch.zeros((sets, size), dtype=torch.uint8, **on) for on in (source, target))

    def call(i: int) -> Call:
        return lambda: tos[i].copy_(froms[i], non_blocking=True)

    return [call(i) for i in range(sets)], "torch_copy"


def builders() -> Mapping[str, Callable[[Point, Bench], Calls]]:
    """The builder of each table that one device measures alone."""
    from calibration.kernels.expert_operations import expert_calls

    return {
        "gemm": gemm_calls,
        "context_attention": context_calls,
        "generation_attention": generation_calls,
        "moe": expert_calls,
        "copy": copy_calls,
    }
