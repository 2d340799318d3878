"""Bounded fits of rooflines to measured tables; no rate above the hardware's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.costs.measured.light import (
    CACHE_BYTES,
    DSA_SHAPES,
    Roof,
    Work,
    context_attention_work,
    dsa_work,
    gemm_work,
    generation_attention_work,
    mla_bmm_work,
    mla_context_work,
    mla_generation_work,
    mla_module_work,
    quantize_work,
)
from moesim.hardware import GPU

if TYPE_CHECKING:
    import pandas as pd

MOST_POINTS = 4000
# (fixed seconds, fraction of bandwidth, fraction of FLOP/s, power): nothing above the datasheet.
LOW = (2e-7, 0.05, 0.02, 1.0)
HIGH = (1e-3, 1.0, 1.0, 8.0)


def table_work(name: str, dtype: str, kv_dtype: str, frame: pd.DataFrame) -> Work | None:
    """FLOP and bytes of every row; None for tables that have no roofline."""
    cache = CACHE_BYTES.get(kv_dtype, 2.0)
    c = {key: frame[key].to_numpy() for key in frame.columns}
    if name == "gemm":
        return gemm_work(dtype, c["tokens"], c["n"], c["k"])
    if name == "context_attention":
        shape = c["heads"], c["kv_heads"], c["head_dim"], c["window"]
        return context_attention_work(*shape, cache, c["batch"], c["tokens"], 0, dtype)
    if name == "generation_attention":
        shape = c["heads"], c["kv_heads"], c["head_dim"], c["window"]
        return generation_attention_work(*shape, cache, c["batch"], c["kv_len"])
    if name == "mla_bmm":
        return mla_bmm_work(dtype, c["heads"], c["tokens"])
    if name.startswith("quantize"):
        return quantize_work(c["tokens"], c["k"])
    if "dsa" in name:
        dims = DSA_SHAPES[str(c["architecture"][0])]
        new, prefix = (c["tokens"], c["prefix"]) if "prefix" in c else (1, c["kv_len"] - 1)
        return dsa_work(dims, dtype, c["heads"], cache, c["batch"], new, prefix)
    if "mla" in name:
        if "context" in name:
            inner = mla_context_work(c["heads"], c["batch"], c["tokens"])
            new = c["batch"] * c["tokens"]
        else:
            inner = mla_generation_work(c["heads"], cache, c["batch"], c["kv_len"])
            new = c["batch"]
        if "gemm_dtype" not in c:
            return inner
        return mla_module_work(inner, str(c["gemm_dtype"][0]), c["heads"], new)
    return None


def fit_table(name: str, frame: pd.DataFrame, gpu: GPU) -> dict[str, Any]:
    """Roofs by dtype label (`dtype`, or `gemm_dtype` of MLA modules): fixed_s, fractions, power."""
    if name in ("moe", "deepep_context_moe", "deepep_generation_moe"):
        from calibration.silicon.expert_fit import fit_experts

        return fit_experts(frame, gpu)
    by = next((key for key in ("gemm_dtype", "dtype") if key in frame), None)
    if by is None:
        return {}
    fits = {}
    for dtype, group in frame.groupby(by, sort=True):
        kv_dtype = str(group["kv_dtype"].iloc[0]) if "kv_dtype" in group else ""
        step = max(1, len(group) // MOST_POINTS)
        sample = group.iloc[::step]
        work = table_work(name, str(dtype), kv_dtype, sample)
        if work is not None:
            roof, error = fit_roof(work, sample["seconds"].to_numpy(), gpu)
            fits[str(dtype)] = [*(float(f"{value:.5g}") for value in roof), round(error, 4)]
    return fits


def fit_roof(
    work: Work, seconds: NDArray[np.float64], gpu: GPU
) -> tuple[tuple[float, float, float, float], float]:
    """((fixed_s, bytes_fraction, flops_fraction, power), median relative error)."""
    from scipy.optimize import least_squares

    log_s = np.log(seconds)

    def residual(log_p: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.log(Roof(*np.exp(log_p)).seconds(work, gpu)) - log_s

    fixed_s = np.clip(float(seconds.min()) * 0.8, LOW[0] * 2, HIGH[0] / 2)
    start = np.log([fixed_s, 0.7, 0.6, 2.0])
    found = least_squares(
        residual, start, bounds=(np.log(LOW), np.log(HIGH)), loss="soft_l1", f_scale=0.2
    )
    fixed, b, f, p = (float(value) for value in np.exp(found.x))
    return (fixed, b, f, p), float(np.median(np.abs(np.expm1(residual(found.x)))))
