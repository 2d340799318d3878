"""Settings of expert offload: what stays in GPU memory, and what happens to the rest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from moesim.spec import Spec

Bytes = Annotated[float, Field(ge=0.0, le=1e15)]
BytesPerSecond = Annotated[float, Field(gt=0.0, le=1e14)]


class OffloadHost(Spec):
    """Host memory and CPU of a node, which its GPUs share evenly; the link is each GPU's own."""

    memory_bytes: Bytes | None = None  # for experts; None: all that need it fit
    bytes_per_s: BytesPerSecond | None = None  # host memory to one GPU; None: by its PCIe link
    cpu_flops_per_s: Annotated[float, Field(gt=0.0, le=1e18)] | None = None
    cpu_memory_bytes_per_s: BytesPerSecond | None = None


class OffloadStore(Spec):
    """Drives of a node that hold what does not fit host memory."""

    bytes_per_s: BytesPerSecond


class ExpertOffload(Spec):
    """Experts in host memory or on a store, behind a cache in GPU memory for each MoE layer."""

    gpu_experts: int | None = Field(None, ge=0, le=65_536)  # of each layer on a rank
    gpu_bytes: Bytes | None = None  # the same as bytes of a GPU, spread over its layers
    policy: Literal["lru", "lfu", "static", "belady"] = "lru"
    miss: Literal["transfer", "cpu", "faster"] = "transfer"
    prefetch: Literal["none", "next-layer"] = "none"
    prefetch_experts: int | None = Field(None, ge=1, le=65_536)
    host: OffloadHost = OffloadHost.default()
    store: OffloadStore | None = None

    @model_validator(mode="after")
    def _complete(self) -> ExpertOffload:
        if (self.gpu_experts is None) == (self.gpu_bytes is None):
            raise ValueError("must give one of gpu_experts and gpu_bytes")
        cpu = (self.host.cpu_flops_per_s, self.host.cpu_memory_bytes_per_s)
        if self.miss != "transfer" and None in cpu:
            raise ValueError(
                f"miss {self.miss} needs host.cpu_flops_per_s and host.cpu_memory_bytes_per_s"
            )
        return self
