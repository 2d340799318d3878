"""A scenario's deployment as `python -m sglang.launch_server`."""

from __future__ import annotations

from moesim.launch.drafted import (
    HEAD,
    Draft,
    checkpoint_name,
    loaded,
    note_formats,
    note_replicas,
    note_what_no_engine_is_told,
    replica_gpus,
    wanted_format,
)
from moesim.policies.batching import PrefillFirst
from moesim.scenario import Scenario

_MODES = {
    "deepep": None,  # auto, the default
    "deepep-normal": "normal",
    "deepep-low-latency": "low_latency",
    "deepep-low-latency-rdma": "low_latency",
    "deepep-low-latency-layered": "low_latency",
    "deepep-v2": None,
}
_QUANTISATION = {"fp8": "fp8", "awq": "moe_wna16", "nvfp4": "modelopt_fp4", "mxfp4": "mxfp4"}
INIT_PORT = 5000  # of the examples in SGLang's documentation


def write_sglang(scenario: Scenario, pool: str = "") -> Draft:
    """Of one deployment, or of one pool of two."""
    model, of = loaded(scenario), scenario.deployment
    name, problem = checkpoint_name(scenario, model)
    draft = Draft(["python", "-m", "sglang.launch_server"])
    draft.note(problem, bool(problem))
    draft.put("--model-path", name)
    draft.put("--disaggregation-mode", pool or None)
    _degrees(draft, scenario, model.is_moe)
    if model.is_moe:
        _experts(draft, scenario)
    _scheduling(draft, scenario)
    _memory(draft, scenario)
    quantisation = wanted_format(scenario, model)
    draft.put("--quantization", _QUANTISATION.get(quantisation or ""))
    draft.put("--kv-cache-dtype", "fp8_e4m3", scenario.precision.kv_cache == "fp8")
    draft.put("--deepep-dispatcher-output-dtype", scenario.precision.dispatch)
    note_formats(draft, scenario, model)
    drafts = of.speculation.drafts
    if drafts and pool != "prefill":
        draft.put("--speculative-algorithm", "EAGLE")
        draft.put("--speculative-num-steps", drafts)
        draft.put("--speculative-eagle-topk", 1)
        draft.put("--speculative-num-draft-tokens", drafts + 1)
    note_what_no_engine_is_told(draft, of)
    if of.parallelism.attention_dp > 1:
        note_replicas(draft, of, replica_gpus(of))
    return draft


def _degrees(draft: Draft, scenario: Scenario, is_moe: bool) -> None:
    of, split = scenario.deployment, scenario.deployment.parallelism
    ranks = split.attention_tp * split.attention_dp
    draft.put("--tp-size", ranks)
    shared = split.attention_dp > 1
    copies = of.replicas
    draft.put("--dp-size", split.attention_dp if shared else copies, shared or copies > 1)
    draft.put("--enable-dp-attention", shared)
    draft.put("--pp-size", split.pipeline, split.pipeline > 1)
    balancing = of.rank_balancing if shared else of.load_balancing if copies > 1 else None
    methods = {"round-robin": "round_robin", "least-loaded": "total_requests"}
    if balancing is not None:
        draft.put("--load-balance-method", methods.get(balancing.policy))
        draft.note(
            f"SGLang has no load balancing {balancing.policy}", balancing.policy not in methods
        )
    gpus = replica_gpus(of) * (1 if shared else copies)
    nodes = -(-gpus // scenario.cluster.gpus_per_node)
    if nodes > 1:
        draft.put("--nnodes", nodes)
        draft.put("--node-rank", 0)
        draft.put("--dist-init-addr", f"{HEAD}:{INIT_PORT}")
        draft.note("on every other node the same with its own --node-rank")


def _experts(draft: Draft, scenario: Scenario) -> None:
    of, split = scenario.deployment, scenario.deployment.parallelism
    ranks = split.attention_tp * split.attention_dp
    choice = of.exchange
    if choice == "auto":
        choice = "deepep" if of.engine == "sglang" else "allgather-reducescatter"
    sends = split.attention_dp > 1 and choice != "allgather-reducescatter"
    if sends and choice == "nvlink-one-sided":
        draft.put("--moe-a2a-backend", "flashinfer")
    elif sends:
        draft.put("--moe-a2a-backend", "deepep")
        draft.put("--deepep-mode", _MODES.get(choice))
        draft.note(f"SGLang has no exchange {choice}", choice not in _MODES)
    draft.put("--ep-size", split.expert_parallel, split.expert_parallel > 1)
    draft.note(
        f"SGLang spreads experts over all {ranks} GPUs of a stage with this backend",
        sends and split.expert_parallel != ranks,
    )
    placement = of.placement
    redundant = placement.redundant_experts
    draft.put("--enable-eplb", placement.policy == "eplb")
    draft.put("--ep-num-redundant-experts", redundant, redundant > 0)
    if placement.policy == "file":
        draft.put("--init-expert-location", placement.file)
    draft.note("SGLang deals no experts in turn", placement.policy == "round-robin")
    overlap = of.overlap
    halves = overlap.policy in ("two-batch", "five-stage")
    draft.put("--enable-two-batch-overlap", halves)
    draft.put("--enable-single-batch-overlap", overlap.policy == "shared-experts")
    draft.note(
        f"SGLang splits batches of any size, the scenario from {overlap.decode_tokens} tokens on",
        halves and overlap.decode_tokens > 2,
    )


def _scheduling(draft: Draft, scenario: Scenario) -> None:
    of, chosen = scenario.deployment, scenario.batching
    ranks = of.parallelism.attention_dp  # SGLang divides what it is given among them
    budget, running = getattr(chosen, "token_budget", None), chosen.max_requests
    draft.put("--max-running-requests", running * ranks if running else None)
    draft.put("--chunked-prefill-size", budget * ranks if budget else None)
    if isinstance(chosen, PrefillFirst):
        usual = PrefillFirst()
        most, held = chosen.max_prefill_tokens, chosen.schedule_conservativeness
        draft.put("--max-prefill-tokens", most, most != usual.max_prefill_tokens)
        draft.put("--enable-mixed-chunk", chosen.mixed_chunk)
        draft.put("--schedule-conservativeness", held, held != usual.schedule_conservativeness)
        draft.put("--scheduler-recv-interval", chosen.recv_interval, chosen.recv_interval > 1)
        if chosen.delay_passes:
            draft.put("--enable-prefill-delayer")
            draft.put("--prefill-delayer-max-delay-passes", chosen.delay_passes)
            low = chosen.delay_low_usage or None
            draft.put("--prefill-delayer-token-usage-low-watermark", low)
    else:
        draft.note(f"SGLang batches by prefill-first, the scenario by {chosen.policy}")
    draft.put("--enable-priority-scheduling", of.queue.policy == "priority")
    draft.put("--schedule-low-priority-values-first", of.queue.policy == "priority")
    if of.admission is not None:
        draft.put("--max-queued-requests", of.admission.max_queued_requests)
        tokens = of.admission.max_queued_tokens
        draft.note("SGLang does not limit queued tokens", tokens is not None)


def _memory(draft: Draft, scenario: Scenario) -> None:
    cache, engine = scenario.deployment.kv_cache, scenario.deployment.engine
    draft.put("--mem-fraction-static", cache.utilisation, engine == "sglang")
    draft.note(
        f"kv_cache.utilisation is counted as {engine} does: set --mem-fraction-static yourself",
        engine != "sglang" and cache.utilisation is not None,
    )
    draft.put("--max-total-tokens", cache.capacity_tokens)
    draft.put("--page-size", cache.block_tokens)
    draft.put("--disable-radix-cache", not cache.prefix_caching)
