"""Published timings of expert exchanges (comm.csv) as rows that a law can be fitted to.

Columns used: op, library, mode, gpu, ep, tokens_per_rank, hidden, topk, dtype, latency_us,
bandwidth_gbps_logical, bandwidth_kind, n_sms. What is left out is said with its reason.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moesim.costs.libraries import EXCHANGE, ExchangeLaw, exchange_s
from moesim.costs.traffic import Kind, distinct_share, load_of, perfect_targets, uniform_load
from moesim.errors import InputError
from moesim.files import read_text
from moesim.hardware import Link, load_fabric, load_gpu
from moesim.units import GB, US

EXPERTS = 256  # of DeepSeek-V3, whose shape all rows have
# Domains of 8 GPUs; on NVL72 all ranks are in one.
NODE = 8
# Bytes of one token's payload, over its hidden size: values and their scales.
VALUE_BYTES = {"bf16": 2.0, "fp8": 1.0 + 4 / 128, "mxfp8": 1.0 + 1 / 32, "nvfp4": 0.5 + 1 / 16}
LOW_LATENCY_HEADER = 16.0  # DeepEP internode_ll.cu
GPUS = {"H800": "h800", "H100": "h100-sxm", "SM90": "h100-sxm", "SM100": "b200", "GB200": "gb200"}
LIBRARIES = (
    # library, start of the mode, law
    ("DeepEP V1", "normal", "deepep-normal"),
    ("DeepEP V1", "low-latency", "deepep-low-latency"),
    ("DeepEP (quoted)", "low-latency", "deepep-low-latency-rdma"),
    ("DeepEP V2", "", "deepep-v2"),
    ("pplx", "NVLINK", "pplx"),
    ("pplx", "IBGDA", "pplx"),
    ("pplx", "IBRC", "pplx-ibrc"),
    ("torch", "", "torch-all-to-all"),
    ("TensorRT-LLM NVLinkOneSided", "", "nvlink-one-sided"),
)


@dataclass(frozen=True)
class Row:
    """One timing: `seconds` of a phase, and what was sent (copies as in traffic.Load)."""

    law: str
    phase: str
    gpu: str
    ep: int
    tokens: int
    copy_bytes: float
    load: tuple[float, float, float, float]
    links: tuple[Link, Link]
    domains: int
    sms: float
    seconds: float
    about: str
    source: str

    def predicted_s(self, law: ExchangeLaw) -> float:
        """What a law says of this row."""
        numbers = law.numbers(self.links, self.copy_bytes, self.domains, EXPERTS)
        return float(exchange_s(np.array(numbers, EXCHANGE), *self.load))


@dataclass(frozen=True)
class LeftOut:
    """Rows of the file that are not used, and why."""

    rows: int
    what: str
    why: str


def read_rows(path: Path) -> tuple[list[Row], list[LeftOut]]:
    """Rows of comm.csv that are exchanges, and what was left out. Raises InputError."""
    text = read_text(path, max_bytes=4e6, field="comm.csv")
    found = list(csv.DictReader(text.splitlines()))
    if not found or "bandwidth_gbps_logical" not in found[0]:
        raise InputError("comm.csv", "must have the columns of the published timings", str(path))
    rows: list[Row] = []
    others, twice = 0, 0
    for each in found:
        if each["op"] not in ("dispatch", "combine", "alltoall"):
            others += 1
        elif each["mode"] == "one-sided post-quant" and each["dtype"] == "bf16":
            twice += 1
        else:
            rows.append(_row(each))
    return rows, [
        LeftOut(others, "GEMMs, attention, rebalancing", "no exchanges"),
        LeftOut(twice, "NVLinkOneSided before its quantisation rows", "the same timing twice"),
    ]


def _row(each: dict[str, str]) -> Row:
    law = next(
        name
        for library, mode, name in LIBRARIES
        if each["library"] == library and each["mode"].startswith(mode)
    )
    phase = "dispatch" if each["op"] == "alltoall" else each["op"]
    gpu_name = GPUS[each["gpu"].split()[0]]
    gpu_name = "gb200-nvl72" if gpu_name == "gb200" else gpu_name
    ep, tokens = int(float(each["ep"])), int(float(each["tokens_per_rank"]))
    hidden, topk = float(each["hidden"]), int(float(each["topk"]))
    rack = each["ranks_per_node"] == "NVL72"
    domains = 1 if rack else max(1, ep // NODE)
    dtype = each["dtype"].split()[0]
    if phase == "combine" and "combine" in each["dtype"]:
        dtype = "bf16"
    copy_bytes = hidden * VALUE_BYTES[dtype]
    if law.startswith("deepep-low-latency") and phase == "dispatch":
        copy_bytes += LOW_LATENCY_HEADER
    gpu = load_gpu(gpu_name)
    up = load_fabric(gpu.scale_up_name, "gpu", "scale-up")
    up = Link(up.name, up.latency_s, gpu.scale_up_bytes_per_s, up.reached_fraction)
    if each["latency_us"]:
        seconds = float(each["latency_us"]) * US
    else:
        seconds = _from_bandwidth(each, tokens, ep, domains, topk, copy_bytes)
    return Row(
        law=law,
        phase=phase,
        gpu=gpu_name,
        ep=ep,
        tokens=tokens,
        copy_bytes=copy_bytes,
        load=_load(law, tokens, ep, domains, topk),
        links=(up, load_fabric("infiniband-ndr400")),
        domains=domains,
        sms=float(each["n_sms"] or 0),
        seconds=seconds,
        about=f"{each['library']} {each['mode']}".replace(" (pure RDMA)", ""),
        source=each["source"],
    )


def _from_bandwidth(
    each: dict[str, str], tokens: int, ep: int, domains: int, topk: int, copy_bytes: float
) -> float:
    """Seconds from DeepEP's logical bandwidth, which counts local copies too.

    Its tests count each token once for each node it goes to (RDMA) or each rank that receives it
    (NVLink): tests/test_internode.py, test_intranode.py, elastic/test_ep.py.
    """
    groups = domains if "RDMA" in each["bandwidth_kind"] else ep
    copies = tokens * groups * distinct_share(groups, EXPERTS, topk)
    return copies * copy_bytes / (float(each["bandwidth_gbps_logical"]) * GB)


def _load(
    law: str, tokens: int, ep: int, domains: int, topk: int
) -> tuple[float, float, float, float]:
    """Copies on the hottest places; the benchmarks route uniformly unless said otherwise."""
    if law == "nvlink-one-sided":  # the benchmark's perfect router
        load = load_of("copies", perfect_targets(tokens, ep, topk), np.zeros(ep, dtype=np.int64))
        return load.up, load.out, load.pair, load.sent
    if law == "torch-all-to-all":  # pplx's benchmark sends room for every token to every expert
        width = ep // domains
        near, far = EXPERTS * (width - 1) / ep, EXPERTS * (ep - width) / ep
        return tokens * near, tokens * far, 0.0, 0.0
    kind: Kind = "copies" if law in ("deepep-normal", "deepep-v2") else "messages"
    if law == "deepep-low-latency-rdma":
        domains = ep  # nothing takes NVLink
    up, out, pair, sent = uniform_load(kind, float(tokens), ep, domains, EXPERTS, topk)
    return float(up), float(out), float(pair), float(sent)
