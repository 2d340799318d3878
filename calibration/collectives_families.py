"""Which parameters each library's laws have, which they share, and what was known before.

Priors come from elsewhere than the rows that are fitted: the shipped kernel tables of DeepEP on
H100 and H200 (aiconfigurator-core 0.12.0, SGLang 0.5.12, one node), and the links' own reached
fractions (`presets/fabrics.csv`: share 1). Where nothing was known the spread is wide.
"""

from __future__ import annotations

from calibration.collectives_fit import Family, Parameter
from moesim.costs.libraries import PHASES, ExchangeLaw
from moesim.costs.traffic import Kind

LOOSE = 1.5


def _laws(library: str, traffic: Kind, **fixed: float) -> tuple[ExchangeLaw, ...]:
    return tuple(ExchangeLaw(library, phase, traffic, **fixed) for phase in PHASES)  # type: ignore[arg-type]


def _share(spread: float = 0.2, prior: float = 1.0) -> Parameter:
    return Parameter(prior, spread, 0.1, 1.4)


def _nic() -> Parameter:
    """No more than the line rate, 1 / 0.9 of what InfiniBand NDR is taken to reach."""
    return Parameter(1.0, 0.1, 0.1, 1.0 / 0.9)


def _time(prior_us: float, spread: float = LOOSE) -> Parameter:
    return Parameter(prior_us, spread, 0.01, 1e4)


# One token per rank on a node of H100 takes 26 us to dispatch and 48 us to combine (SGLang's
# kernel tables). What a network adds to that no row of milliseconds tells: low latency's is taken.
# V1's 24 SMs copy at most 12.5 GB/s each: tables of H100, H200 and B200, whose links differ by a
# factor of two, all end at 290 to 330 GB/s (4,096 tokens). H800's link binds before.
V1_SM_GB_PER_S = 12.5

NORMAL = Family(
    parameters={
        "dispatch_us": _time(26.0, 0.2),
        "combine_us": _time(48.0, 0.2),
        "network_us": _time(30.0, 0.5),
        "v1_up": _share(),
        "v2_up": _share(),
        "out": _nic(),
        "sm_gb_per_s": Parameter(20.0, LOOSE, 1.0, 100.0),
    },
    laws=(
        *_laws("deepep-normal", "copies", sms=24.0, sm_gb_per_s=V1_SM_GB_PER_S),
        *_laws("deepep-v2", "copies", sms=24.0),
    ),
    fields={
        (library, phase): {
            "base_us": f"{phase}_us",
            "network_us": "network_us",
            "up_share": "v1_up" if library == "deepep-normal" else "v2_up",
            "out_share": "out",
            **({"sm_gb_per_s": "sm_gb_per_s"} if library == "deepep-v2" else {}),
        }
        for library in ("deepep-normal", "deepep-v2")
        for phase in PHASES
    },
)

# One token per rank on a node of H100: 13 us and 14 us; 128 tokens: 240 to 270 GB/s, 0.70 of what
# its NVLink reaches.
LOW_LATENCY = Family(
    parameters={
        "dispatch_us": _time(13.0, 0.3),
        "combine_us": _time(14.0, 0.3),
        "network_us": _time(30.0),
        "rdma_us": _time(30.0),
        "dispatch_up": _share(prior=0.7),
        "combine_up": _share(prior=0.7),
        "out": _nic(),
        "rdma_out": _nic(),
    },
    laws=(
        *_laws("deepep-low-latency", "messages"),
        *_laws("deepep-low-latency-rdma", "messages", network_only=True),
    ),
    fields={
        (library, phase): {
            "base_us": f"{phase}_us",
            "network_us": "rdma_us" if library.endswith("rdma") else "network_us",
            "up_share": f"{phase}_up",
            "out_share": "rdma_out" if library.endswith("rdma") else "out",
        }
        for library in ("deepep-low-latency", "deepep-low-latency-rdma")
        for phase in PHASES
    },
)

PPLX = Family(
    parameters={
        "dispatch_us": _time(40.0),
        "combine_us": _time(40.0),
        "up": _share(0.5),
        "gda_dispatch_us": _time(30.0),
        "gda_combine_us": _time(30.0),
        "gda_expert_us": _time(0.2),
        "gda_pair_us": _time(3.0),
        "rc_dispatch_us": _time(30.0),
        "rc_combine_us": _time(30.0),
        "rc_expert_us": _time(1.0),
        "rc_message_us": _time(1.0),
        "out": _nic(),
    },
    laws=(*_laws("pplx", "messages"), *_laws("pplx-ibrc", "messages")),
    fields={
        (library, phase): {
            "base_us": f"{phase}_us",
            "up_share": "up",
            "out_share": "out",
            "network_us": f"{short}_{phase}_us",
            # Dispatch tells every expert's GPU how many tokens come; combine counts nothing.
            **({"expert_us": f"{short}_expert_us"} if phase == "dispatch" else {}),
            **({"pair_us": "gda_pair_us"} if short == "gda" else {"message_us": "rc_message_us"}),
        }
        for library, short in (("pplx", "gda"), ("pplx-ibrc", "rc"))
        for phase in PHASES
    },
)

ONE_SIDED = Family(
    parameters={
        "dispatch_floor_us": _time(18.0),
        "combine_floor_us": _time(30.0),
        "dispatch_us": _time(10.0),
        "combine_us": _time(10.0),
        "dispatch_up": _share(),
        "combine_up": _share(),
    },
    laws=_laws("nvlink-one-sided", "copies"),
    fields={
        ("nvlink-one-sided", phase): {
            "floor_us": f"{phase}_floor_us",
            "base_us": f"{phase}_us",
            "up_share": f"{phase}_up",
        }
        for phase in PHASES
    },
)

TORCH = Family(
    parameters={
        "base_us": _time(20.0),
        "network_us": _time(30.0),
        "up": _share(),
        "out": _nic(),
    },
    laws=(ExchangeLaw("torch-all-to-all", "dispatch", "messages"),),
    fields={
        ("torch-all-to-all", "dispatch"): {
            "base_us": "base_us",
            "network_us": "network_us",
            "up_share": "up",
            "out_share": "out",
        }
    },
)

FAMILIES = (NORMAL, LOW_LATENCY, PPLX, ONE_SIDED, TORCH)
