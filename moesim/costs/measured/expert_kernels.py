"""Which measured expert kernels stand for those that an engine runs.

Engines share a few libraries of grouped GEMMs, and every version times them anew: some versions
badly. What an engine runs is therefore named by *family*; its times come from the newest sound
table of that family: the engine's own for the very shape, else another engine's for that shape,
else the engine's own for the nearest shapes. What the user measured is asked first of all for the
very shape, and last of all for the nearest ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from moesim.costs.measured.expert_work import ExpertShape, balanced_counts, light_s
from moesim.costs.measured.kernels import Found, MeasuredKernels, version_key
from moesim.hardware import GPU

SHAPE = ("hidden", "inter", "topk", "experts")

# Words in the tables' kernel names, the first that fits: TRT-LLM-gen kernels (which all engines
# call on Blackwell), Marlin, Triton, CUTLASS, DeepGEMM. A kernel of no family is not used.
FAMILIES = (
    ("trtllm-gen", ("flashinfer_trtllm", "min_latency")),
    ("marlin", ("marlin",)),
    ("triton", ("triton", "fused_moe")),
    ("cutlass", ("cutlass", "nongated")),
    ("deepgemm", ("deepgemm", "deepep")),
    ("torch", ("moe_torch_flow",)),
)
# What every engine runs on Blackwell, but for integer weights (Marlin everywhere): vLLM and SGLang
# call it through FlashInfer; the recipes of TensorRT-LLM set moe_config.backend TRTLLM.
BLACKWELL = "trtllm-gen"
# Where most experts are active and their weights do not fit caches; noise allows a little below 1.
DECODE_TOKENS, LEAST_OF_LIGHT = (32, 64, 128), 0.95


# Not used: vLLM 0.19's mxfp4 kernel, seven times slower than the newer tables of its own engine;
# and vLLM 0.24's FlashInfer-CUTLASS kernel for fp8 with one scale per tensor, which on Hopper takes
# 3.9 ms where the same table's bf16 kernel, with twice the bytes, takes 1.1 (H200, hidden 4096,
# width 1536, top-8 of 128, 16 tokens). vLLM itself prefers Triton there.
UNUSED = {"vllm_mxfp4_moe", "vllm_modeloptfp8moe_flashinfer_cutlass_flashinferexperts"}


def family(kernel: str) -> str:
    """The family of a kernel of the tables; empty for a kernel that is not used."""
    if kernel in UNUSED:
        return ""
    return next((name for name, words in FAMILIES if any(w in kernel for w in words)), "")


def choose(kernels: MeasuredKernels, table: str, shape: ExpertShape, dtype: str) -> Found | None:
    """Curves of the family that the engine runs for a dtype, of one table of one version."""
    named = dict(zip(SHAPE, shape[:4], strict=True))
    own = kernels.find_own(table, dtype=dtype, **named)
    return own or _of_engine(kernels, table, shape, dtype) or kernels.find_own(table, dtype=dtype)


def _of_engine(
    kernels: MeasuredKernels, table: str, shape: ExpertShape, dtype: str
) -> Found | None:
    """The same without what the user measured."""
    named = dict(zip(SHAPE, shape[:4], strict=True))
    kernels = replace(kernels, own=None, profiles=kernels.shipped)
    blackwell = kernels.gpu.flops("fp4") > kernels.gpu.flops("fp8")
    asks = kernels.each, kernels.each_stand_in
    exact, foreign = (list(ask(table, dtype=dtype, **named)) for ask in asks)
    nearby, elsewhere = (list(ask(table, dtype=dtype)) for ask in asks)
    timed = (*exact, *nearby, *elsewhere)
    wanted = _first_family(timed)
    if blackwell and not dtype.startswith("int"):
        wanted = BLACKWELL if any(_of_family(each, BLACKWELL) for each in timed) else wanted
    if not wanted:
        return None
    newest = sorted(exact, key=lambda found: version_key(found.profile.version), reverse=True)
    for found in (*newest, *foreign):
        kept = _of_family(found, wanted)
        if kept is not None and _possible(kept, shape, dtype, kernels.gpu):
            return kept
    for others in (nearby, elsewhere):
        known = [kept for found in others if (kept := _of_family(found, wanted)) is not None]
        if known:
            return max(known, key=lambda found: found.ids.size)
    return None


def _possible(found: Found, shape: ExpertShape, dtype: str, gpu: GPU) -> bool:
    """Whether an exact shape's curves are slower than light at decode sizes, where every weight of
    an active expert must be read: collapsed routing reads fewer (vLLM 0.24 Triton, DeepSeek-V3)."""
    ratios = []
    tokens = np.array(DECODE_TOKENS)
    for curve in found.ids:
        ep, tp = (int(found.curves.column(name)[curve]) for name in ("ep", "tp"))
        counts = balanced_counts(shape, tokens, np.int64(ep), 1)
        light = light_s(shape, dtype, tp, counts, gpu)
        seconds = np.exp(found.curves.log_seconds(int(curve), tokens.astype(np.float64)))
        ratios.append(seconds / light)
    return bool(np.median(ratios) >= LEAST_OF_LIGHT)


def _first_family(found: Sequence[Found]) -> str:
    return next((name for each in found if (name := _main_family(each))), "")


def _kernels_of(found: Found) -> Iterator[tuple[str, np.ndarray]]:
    column = found.curves.column("kernel")[found.ids]
    for code in np.unique(column):
        yield found.curves.labels["kernel"][code], found.ids[column == code]


def _main_family(found: Found) -> str:
    """The family that most curves belong to."""
    sizes: dict[str, int] = {}
    for kernel, ids in _kernels_of(found):
        if name := family(kernel):
            sizes[name] = sizes.get(name, 0) + ids.size
    return max(sizes, key=lambda name: sizes[name], default="")


def _of_family(found: Found, wanted: str) -> Found | None:
    kept = [ids for kernel, ids in _kernels_of(found) if family(kernel) == wanted]
    return replace(found, ids=np.sort(np.concatenate(kept))) if kept else None
