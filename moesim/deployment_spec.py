"""DeploymentSpec: how a model is served, as a scenario says it, validated."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from moesim.policies.admission import Admission
from moesim.policies.autoscaling import Autoscaling
from moesim.policies.batching import Batching
from moesim.policies.expert_offload import ExpertOffload
from moesim.policies.load_balancing import LeastLoaded, LoadBalancing
from moesim.policies.queueing import FirstCome, QueueChoice
from moesim.policies.rebalancing import Rebalancing
from moesim.spec import Spec, broken_rule, by_policy

MOST_DRAFTS = 16
MOST_MICRO_BATCHES = 16
Count = Annotated[int, Field(ge=1, le=100_000)]


class ParallelismSpec(Spec):
    """How one replica is split; its GPUs are attention_tp x attention_dp x pipeline."""

    attention_tp: Count = 1
    attention_dp: Count = 1
    expert_parallel: Count = 1
    pipeline: Count = 1


class Copies(Spec):
    """How many experts have several copies, and which of them serves a token.

    `replica_choice`: hash of the token (vLLM), nearest copy (SGLang's static), or from the counts
    of each step and layer: least-loaded in one pass, lp the least maximum of tokens on a rank
    (LPLB), active few distinct experts on every rank (METRO). `choice_s`: what choosing adds to
    each MoE layer, nothing with hash; None: 100 us with lp (LPLB's README; 100 to 200 by its
    authors, issue 3), else nothing.
    """

    redundant_experts: int = Field(0, ge=0, le=65_536)
    replica_choice: Literal["hash", "nearest", "least-loaded", "lp", "active"] = "hash"
    choice_s: float | None = Field(None, ge=0.0, le=1.0)

    def seconds_to_choose(self) -> float:
        """Of each MoE layer."""
        if self.replica_choice == "hash":
            return 0.0
        if self.choice_s is not None:
            return self.choice_s
        return 1e-4 if self.replica_choice == "lp" else 0.0


class Contiguous(Copies):
    """Slot p holds expert p modulo the number of experts (vLLM's linear placement)."""

    policy: Literal["contiguous"] = "contiguous"


class RoundRobinPlacement(Copies):
    """Experts dealt to the ranks in turn."""

    policy: Literal["round-robin"] = "round-robin"


class RandomPlacement(Copies):
    """Experts at random, each layer anew."""

    policy: Literal["random"] = "random"


class EPLB(Copies):
    """DeepSeek's expert-parallel load balancer, fitted on a part of the routing trace."""

    policy: Literal["eplb"] = "eplb"
    # Share of the trace's sequences whose load the balancer sees (the first ones).
    fit_fraction: float = Field(0.5, gt=0.0, le=1.0)
    hierarchical: bool | None = None  # None: where groups divide over nodes, as the algorithm does


class Searched(Copies):
    """A policy of moesim.placement.catalogue, fitted to steps drawn from a part of the trace.

    `decode`: requests of an attention rank that decode together; `prefill`: tokens of a step with
    prompts on all ranks; 0 leaves a kind of step out. `decode_share`: of routed-expert time.
    """

    policy: Literal[
        "lpt", "eplb-single", "affinity", "swap", "replicas", "portfolio", "stratified", "budgeted"
    ] = "portfolio"
    # Share of each domain's sequences that it sees (the first ones).
    fit_fraction: float = Field(0.5, gt=0.0, le=1.0)
    decode: int = Field(32, ge=0, le=65_536)
    prefill: int | None = Field(None, ge=0, le=262_144)  # None: the engine's token budget
    decode_share: float = Field(0.5, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _some_steps(self) -> Self:
        if self.decode == 0 and self.prefill == 0:
            raise broken_rule("decode", "must leave a kind of step: decode and prefill are both 0")
        if self.decode == 0 and self.decode_share == 1.0:
            raise broken_rule("decode_share", "must be below 1 where decode is 0", 1.0)
        if self.prefill == 0 and self.decode_share == 0.0:
            raise broken_rule("decode_share", "must be above 0 where prefill is 0", 0.0)
        return self


class FromFile(Copies):
    """A placement given in a file ({"physical_to_logical_map": [layers][slots]})."""

    policy: Literal["file"] = "file"
    file: str


PlacementChoice = Annotated[
    Contiguous | RoundRobinPlacement | RandomPlacement | EPLB | Searched | FromFile,
    by_policy(
        "placement policy",
        Contiguous,
        RoundRobinPlacement,
        RandomPlacement,
        EPLB,
        Searched,
        FromFile,
    ),
]
Exchange = Literal[
    "auto",
    "deepep",
    "deepep-normal",
    "deepep-low-latency",
    "deepep-low-latency-rdma",
    "deepep-low-latency-layered",
    "deepep-v2",
    "pplx",
    "pplx-ibrc",
    "nvlink-one-sided",
    "allgather-reducescatter",
]


class KVTier(Spec):
    """A memory below the GPU's that evicted prefix blocks go to; sizes are one GPU's share of it.

    `bytes_per_s` and `latency_s` are those of reading: a request whose prompt goes on with blocks
    from here waits for them before it queues.
    """

    name: Annotated[str, Field(min_length=1, max_length=100)]
    capacity_bytes: float = Field(gt=0.0, le=1e16)
    bytes_per_s: float = Field(gt=0.0, le=1e15)
    latency_s: float = Field(0.0, ge=0.0, le=60.0)


class KVCacheSpec(Spec):
    """The key-value cache of an attention rank; None follows the engine's rule."""

    utilisation: float | None = Field(None, gt=0.0, le=1.0)
    reserved_bytes: float | None = Field(None, ge=0.0, le=1e13)
    capacity_tokens: int | None = Field(None, ge=16, le=10**12)
    block_tokens: int | None = Field(None, ge=1, le=4096)
    prefix_caching: bool = True
    # Memories below the GPU's, the fastest first.
    tiers: Annotated[tuple[KVTier, ...], Field(max_length=8)] = ()

    @model_validator(mode="after")
    def _tiers_keep_prefixes(self) -> Self:
        if self.tiers and not self.prefix_caching:
            raise broken_rule("tiers", "need prefix_caching: they hold what it evicts")
        return self


class OverlapSpec(Spec):
    """What hides exchanges of tokens behind compute; the thresholds are vLLM's (DBO)."""

    policy: Literal["none", "shared-experts", "two-batch", "five-stage"] = "none"
    decode_tokens: int = Field(32, ge=2, le=1_000_000)
    prefill_tokens: int = Field(512, ge=2, le=1_000_000)


class AttentionFFN(Spec):
    """Attention and FFN on GPUs of their own; attention's are attention_tp x attention_dp."""

    expert_gpus: Count
    # Cut from a step's batch and sent to and fro: MegaScale-Infer's 3 where the network is fast.
    micro_batches: int = Field(3, ge=1, le=MOST_MICRO_BATCHES)
    transfers: Literal["m-to-n", "m-to-n-nccl"] = "m-to-n"


Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class SpeculationSpec(Spec):
    """Drafts verified with every decoded token; how likely each is accepted after those before."""

    drafts: int = Field(0, ge=0, le=MOST_DRAFTS)
    acceptance: Probability | list[Probability] = 0.85
    expand: bool = False

    @model_validator(mode="after")
    def _one_for_each(self) -> SpeculationSpec:
        if isinstance(self.acceptance, list) and len(self.acceptance) != self.drafts:
            raise ValueError("acceptance must be one number, or one for each draft")
        return self

    def of_each(self) -> tuple[float, ...]:
        """Acceptance of each draft."""
        if isinstance(self.acceptance, list):
            return tuple(self.acceptance)
        return (self.acceptance,) * self.drafts


class PoolSpec(Spec):
    """What a pool has of its own; None: as the deployment."""

    replicas: Count | None = None
    parallelism: ParallelismSpec | None = None
    batching: Batching | None = None
    placement: PlacementChoice | None = None
    exchange: Exchange | None = None
    overlap: OverlapSpec | None = None
    speculation: SpeculationSpec | None = None
    load_balancing: LoadBalancing | None = None
    rank_balancing: LoadBalancing | None = None
    kv_cache: KVCacheSpec | None = None

    def own(self) -> dict[str, object]:
        """The fields of DeploymentSpec that it sets."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in found.items() if value is not None}


class KVTransferSpec(Spec):
    """How keys and values go from the prefill pool to the decode pool; None: as the engine does.

    `direction`: `pull`, the decode pool takes its blocks and fetches when the prompt has been
    computed (vLLM, TensorRT-LLM); `push`, it takes its blocks before prefill begins (SGLang).
    `granularity`: a `request` at a time (vLLM, TensorRT-LLM), every `chunk` of a prompt when it is
    computed (SGLang) or every `layer` of it; the last two need push.
    `first_token`: who hands out the first output token: `prefill` as soon as it is computed,
    `transfer` the decode pool when it has come with the keys and values (SGLang, TensorRT-LLM),
    `decode` when that pool has computed the last prompt token again (vLLM).
    `reserved_decode_tokens`: output tokens of every request of a decode rank that another leaves
    room for when it takes its blocks (SGLang's --num-reserved-decode-tokens, 512; others 0).
    `preempted`: what a request of the decode pool does that loses its blocks: `recompute` its
    prompt there (vLLM), or `reload` them from host memory (SGLang).
    """

    direction: Literal["pull", "push"] | None = None
    granularity: Literal["request", "chunk", "layer"] | None = None
    first_token: Literal["prefill", "transfer", "decode"] | None = None
    setup_s: float | None = Field(None, ge=0.0, le=60.0)  # None: the profile's
    rate_cap_bytes_per_s: float | None = Field(None, gt=0.0, le=1e15)  # between two GPUs
    reserved_decode_tokens: int | None = Field(None, ge=0, le=1_000_000)
    preempted: Literal["recompute", "reload"] | None = None


class DisaggregationSpec(Spec):
    """Prefill and decode in pools of their own: the decode pool's GPUs follow the prefill's."""

    prefill: PoolSpec = PoolSpec.default()
    decode: PoolSpec = PoolSpec.default()
    kv_transfer: KVTransferSpec = KVTransferSpec.default()

    def pools(self) -> dict[str, PoolSpec]:
        return {"prefill": self.prefill, "decode": self.decode}


class DeploymentSpec(Spec):
    """The serving software and how the model lies on the machines."""

    engine: Literal["vllm", "sglang", "trtllm"] = "vllm"
    replicas: Count = 1
    parallelism: ParallelismSpec = ParallelismSpec.default()
    batching: Batching | None = None
    placement: PlacementChoice = Contiguous.default()
    rebalancing: Rebalancing | None = None  # None: experts stay where they are
    exchange: Exchange = "auto"
    overlap: OverlapSpec = OverlapSpec.default()
    attention_ffn: AttentionFFN | None = None  # None: every GPU computes both
    speculation: SpeculationSpec = SpeculationSpec.default()
    load_balancing: LoadBalancing = LeastLoaded.default()
    rank_balancing: LoadBalancing | None = None
    kv_cache: KVCacheSpec = KVCacheSpec.default()
    expert_offload: ExpertOffload | None = None  # None: all experts in GPU memory
    queue: QueueChoice = FirstCome.default()
    admission: Admission | None = None
    autoscaling: Autoscaling | None = None
    disaggregation: DisaggregationSpec | None = None  # None: every replica does both
    # auto: measured kernels where there are any of this GPU and engine, else assumed rates.
    profile: str = "auto"
    # A file written by `moesim calibrate kernels`: asked before the shipped kernels.
    kernels: str | None = Field(None, min_length=1, max_length=4096)
    # Version whose measured kernels are preferred; None: the newest.
    engine_version: str | None = Field(None, max_length=64)
