"""Transfers between M GPUs of attention and N GPUs of experts: the law of their time.

    t = factor x (fixed time + latency of a hop + bytes of the busiest port / what its link reaches)

`m-to-n`: RDMA writes that a CPU thread posts, as MegaScale-Infer's M2N library (arXiv 2504.02263,
section 5): a thread saturates the NIC, no SM is taken. `m-to-n-nccl`: NCCL's grouped sends and
receives, which took 1 / (1 - 0.682) = 3.14 times as long for its 256 KB between 8 senders and 8
receivers (its figure 11, median). The paper prints ratios only: the fixed time is the profile's of
any collective.
"""

from __future__ import annotations

from moesim.costs.profile import NetworkProfile
from moesim.hardware import Link

# Time of a transfer to that of the paper's own library.
FACTORS = {"m-to-n": 1.0, "m-to-n-nccl": 1.0 / (1.0 - 0.682)}


def m_to_n_numbers(
    name: str, links: tuple[Link, Link], copy_bytes: float, domains: int, network: NetworkProfile
) -> tuple[float, ...]:
    """A row of moesim.costs.libraries.EXCHANGE on (scale-up, scale-out) links; `domains` of all
    GPUs of both kinds."""
    factor = FACTORS[name]
    base_s = network.collective_base_s + links[int(domains > 1)].latency_s
    up_s, out_s = (copy_bytes / link.effective_bytes_per_s for link in links)
    return (factor * base_s, 0.0, 0.0, 0.0, factor * up_s, factor * out_s, copy_bytes, 0.0)


def m_to_n_note(name: str) -> str:
    """What the time of these transfers rests on."""
    said = "the rates that links reach, and the fixed time of collectives"
    if FACTORS[name] != 1.0:
        said += f", times {FACTORS[name]:.2f} (MegaScale-Infer, figure 11: NCCL at 256 KB)"
    return f"exchange {name}: {said}; no error is known"
