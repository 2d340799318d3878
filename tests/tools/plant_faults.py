"""Plant faults in a copy of the engine and see that the test named for each fails.

    python tests/tools/plant_faults.py            all faults, about two minutes
    python tests/tools/plant_faults.py NAME...    some of them

The copy runs as plain Python (MOESIM_NO_JIT=1), so nothing is compiled. First the tests must pass
without any fault. docs/planted-faults.md says what each fault would have meant.

Each fault gets a process of its own, forked from one that has loaded what moesim and the tests need
of others, and nothing of moesim: loading that took longer than the tests.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("moesim", "tests", "scenarios")  # of the project, that the tests need
PRELOADED = ("hypothesis", "numpy", "pandas", "pydantic", "pytest", "scipy.stats", "simpy", "yaml")


@dataclass(frozen=True)
class Fault:
    """`old`, which stands exactly once in `file`, becomes `new`; `test` must then fail."""

    name: str
    file: str
    old: str
    new: str
    test: str


FAULTS = (
    Fault(
        "blocks-freed-twice",
        "moesim/sim/kvcache.py",
        "    s.ranks[g].kv_free_bytes += own\n",
        "    s.ranks[g].kv_free_bytes += 2 * own\n",
        "tests/oracles/test_kvcache.py::test_a_windowed_layer_stops_growing_at_its_window",
    ),
    Fault(
        "held-prefix-evicted",
        "moesim/sim/kvcache.py",
        """        if s.prefix_refs[g, block] == 0:
            _unlink_idle(s, g, block)
            s.ranks[g].kv_idle_bytes -= size
        s.prefix_refs[g, block] += 1
    tokens =""",
        """        s.prefix_refs[g, block] += 1
    tokens =""",
        "tests/oracles/test_kvcache.py::test_a_block_found_in_the_cache_is_held_from_then_on",
    ),
    Fault(
        "most-recent-evicted-first",
        "moesim/sim/kvcache.py",
        "        block = rank.idle_head\n",
        "        block = rank.idle_tail\n",
        "tests/oracles/test_kvcache.py::"
        "test_the_least_recently_used_block_goes_first_and_leaves_before_stems",
    ),
    Fault(
        "one-token-too-many-due",
        "moesim/sim/queues.py",
        "    return max(0, request.prompt_tokens + request.generated - request.computed)\n",
        "    return max(0, request.prompt_tokens + request.generated - request.computed + 1)\n",
        "tests/oracles/test_queueing.py::"
        "test_a_closed_batch_takes_its_tokens_however_it_is_batched",
    ),
    Fault(
        "preempted-goes-to-the-back",
        "moesim/sim/schedule.py",
        "        preempt(s, g, last, True)\n",
        "        preempt(s, g, last, False)\n",
        "tests/oracles/test_batching.py::"
        "test_the_last_running_request_is_preempted_and_returns_to_the_front",
    ),
    Fault(
        "retracts-who-has-most-output",
        "moesim/sim/sglang.py",
        "s.requests[r].generated < least.generated or",
        "s.requests[r].generated > least.generated or",
        "tests/oracles/test_batching.py::"
        "test_retraction_keeps_who_has_most_output_and_sends_the_rest_to_the_back",
    ),
    Fault(
        "token-before-its-last-chunk",
        "moesim/sim/commit.py",
        "if request.in_flight > 0 or tokens_due(s, r) > 0:",
        "if tokens_due(s, r) > 0:",
        "tests/oracles/test_pipeline.py::"
        "test_chunks_of_one_prompt_follow_each_other_through_the_stages",
    ),
    Fault(
        "mean-instead-of-slowest-rank",
        "moesim/sim/experts.py",
        "= slowest_s + kernel_s\n",
        "= mean_s + kernel_s\n",
        "tests/oracles/test_experts.py::test_the_step_waits_for_the_busiest_rank_in_every_layer",
    ),
    Fault(
        "attention-mean-instead-of-slowest",
        "moesim/sim/front.py",
        "        full_s = max(full_s, w.attention_s[d, 0] * slow)\n",
        "        full_s += w.attention_s[d, 0] / ranks\n",
        "tests/oracles/test_batching.py::"
        "test_a_step_lasts_as_long_as_its_slowest_rank_in_each_part",
    ),
    Fault(
        "first-choice-counted-only",
        "moesim/sim/replay.py",
        "            for j in range(np.uint64(top_k)):\n",
        "            for j in range(np.uint64(1)):\n",
        "tests/oracles/test_experts.py::test_a_tiny_step_by_hand",
    ),
    Fault(
        "running-sums-keep-the-rows-before",
        "moesim/sim/replay.py",
        "        return stop, first, -1\n",
        "        return stop, stop, -1\n",
        "tests/oracles/test_experts.py::test_running_sums_count_like_counting",
    ),
    Fault(
        "tiles-not-filled-up",
        "moesim/sim/sums.py",
        "np.int32(counts_P[p] + tile) >> shift",
        "np.int32(counts_P[p]) >> shift",
        "tests/oracles/test_experts.py::test_sums_over_slots_are_numpys",
    ),
    Fault(
        "a-word-forgets-a-rank",
        "moesim/sim/sums.py",
        "        pairs_X[x + np.uint64(1)] = np.int32(pairs >> np.uint64(32))\n",
        "        pairs_X[x + np.uint64(1)] = np.int32(pairs & np.uint64(0xFFFF_FFFF))\n",
        "tests/oracles/test_experts.py::test_sums_over_ranks_are_numpys",
    ),
    Fault(
        "engine-without-its-queues",
        "moesim/sim/parts.py",
        "    if rules.queue_order != FIRST_COME or rules.remote_kv > 0",
        "    if rules.remote_kv > 0",
        "tests/unit/test_engine_parts.py::test_rules_that_need_everything",
    ),
    Fault(
        "copies-per-rank-not-per-node",
        "moesim/sim/exchange.py",
        "                    copies = w.source_LX[layer, ranks + domain] / tp\n",
        "                    first = domain * width\n"
        "                    copies = w.source_LX[layer, first : first + width].sum() / tp\n",
        "tests/oracles/test_exchange.py::"
        "test_normal_mode_sends_one_copy_to_each_node_and_fans_out_there",
    ),
    Fault(
        "sends-to-itself",
        "moesim/sim/exchange.py",
        "            if r // tp == d:  # what",
        "            if r < 0:  # what",
        "tests/oracles/test_exchange.py::test_low_latency_mode_sends_every_token_to_every_expert",
    ),
    Fault(
        "combine-as-small-as-dispatch",
        "moesim/sim/exchange.py",
        "    combine_s = phase_s(w, step, c.exchange[kind, 1], back, True)\n",
        "    combine_s = phase_s(w, step, c.exchange[kind, 0], back, True)\n",
        "tests/oracles/test_exchange.py::"
        "test_normal_mode_sends_one_copy_to_each_node_and_fans_out_there",
    ),
    Fault(
        "ffn-before-its-tokens",
        "moesim/sim/ping_pong.py",
        "    if path[MICRO_BATCH + j, 0] > path[of, 0]:\n",
        "    if path[MICRO_BATCH + j, 0] > path[of, 0] and of != EXPERTS:\n",
        "tests/oracles/test_ping_pong.py::test_two_micro_batches_take_turns",
    ),
    Fault(
        "a-copy-for-each-expert",
        "moesim/sim/exchange.py",
        "            _add_pair(c, w, layer, d * tp, tp, r, w.source_LX[layer, r] / tp)\n",
        "            pairs = w.source_LP[layer, c.rank_of_slot == r].sum()\n"
        "            _add_pair(c, w, layer, d * tp, tp, r, pairs / tp)\n",
        "tests/oracles/test_ping_pong.py::test_a_copy_goes_once_to_each_gpu_and_by_the_nearer_link",
    ),
    Fault(
        "shared-experts-of-all-tokens",
        "moesim/sim/ping_pong.py",
        "    each = -(-tokens // gpus)\n",
        "    each = tokens\n",
        "tests/oracles/test_ping_pong.py::test_a_step_by_hand",
    ),
    Fault(
        "other-experts-when-computed-again",
        "moesim/sim/queues.py",
        "    request.prompt_draws = 0\n",
        "",
        "tests/oracles/test_routing_replay.py::test_computing_again_meets_the_same_experts",
    ),
    Fault(
        "cached-tokens-keep-their-rows",
        "moesim/sim/step_routing.py",
        "            counted = request.routed >= start\n",
        "            counted = True\n",
        "tests/oracles/test_routing_replay.py::"
        "test_tokens_found_in_the_prefix_cache_take_no_expert_but_pass_their_rows",
    ),
    Fault(
        "door-never-looks-again",
        "moesim/sim/balancing.py",
        "                refresh(s, balancing, b)\n        due.tick",
        "                row.number += 0\n        due.tick",
        "tests/oracles/test_front_end.py::test_a_stale_view_counts_what_was_sent_since",
    ),
    Fault(
        "door-starts-two-for-one",
        "moesim/sim/door.py",
        "    for _ in range(ended):\n",
        "    for _ in range(2 * ended):\n",
        "tests/oracles/test_batching.py::test_a_closed_loop_keeps_its_number_in_flight",
    ),
    Fault(
        "gaps-across-pages-read-from-one",
        "moesim/sim/token_times.py",
        "            page = record.page_before[page]\n        earlier_s",
        "            page = page + 0\n        earlier_s",
        "tests/properties/test_streaming_invariants.py::"
        "test_gaps_across_pages_are_those_of_the_exact_run",
    ),
    Fault(
        "runs-kept-without-their-files",
        "moesim/sweeping/keys.py",
        '        "files": dict(files),\n',
        '        "files": {},\n',
        "tests/unit/test_sweep.py::"
        "test_the_key_changes_with_all_that_a_run_depends_on_and_nothing_else",
    ),
    Fault(
        "snapshot-never-refreshed",
        "moesim/sim/frontend.py",
        "                balancer.refresh()\n",
        "                balancer.number += 0\n",
        "tests/oracles/test_front_end.py::test_a_stale_view_counts_what_was_sent_since",
    ),
    Fault(
        "leaps-past-the-horizon",
        "moesim/sim/advance.py",
        "        if first_s > now and first_s >= horizon:\n",
        "        if first_s > now and first_s >= horizon + 0.5:\n",
        "tests/oracles/test_front_end.py::"
        "test_who_arrives_at_the_very_end_of_a_step_is_in_the_next",
    ),
    Fault(
        "door-opens-after-the-step",
        "moesim/sim/advance.py",
        "        if arrival_s <= t:",
        "        if arrival_s < t:",
        "tests/oracles/test_front_end.py::"
        "test_who_arrives_at_the_very_end_of_a_step_is_in_the_next",
    ),
    Fault(
        "promised-memory-forgotten",
        "moesim/sim/trtllm.py",
        "        room -= growth_bytes(s, r, _declared_tokens(s, r))\n",
        "        room -= 0 * growth_bytes(s, r, _declared_tokens(s, r))\n",
        "tests/oracles/test_in_flight.py::test_a_request_enters_if_all_it_declares_is_free",
    ),
    Fault(
        "looks-for-requests-all-the-time",
        "moesim/sim/sglang.py",
        "    if idle or replica.unread_steps >= rules.recv_interval:\n",
        "    if idle or replica.unread_steps >= 0:\n",
        "tests/oracles/test_batching.py::"
        "test_new_requests_are_looked_for_every_few_decode_steps_and_after_prompts",
    ),
    Fault(
        "closed-loop-starts-two-for-one",
        "moesim/sim/frontend.py",
        "            self._ended(request, True)\n",
        "            self._ended(request, True)\n            self._ended(request, True)\n",
        "tests/oracles/test_batching.py::test_a_closed_loop_keeps_its_number_in_flight",
    ),
    Fault(
        "answers-not-found-again",
        "moesim/sim/setup.py",
        "            cached = cached + demand.output_tokens\n",
        "            cached = cached + 0\n",
        "tests/oracles/test_threads.py::test_the_second_turn_finds_the_first_and_its_answer",
    ),
    Fault(
        "the-most-urgent-leaves",
        "moesim/sim/schedule.py",
        "more_urgent(s, s.running[g, worst], r)",
        "more_urgent(s, r, s.running[g, worst])",
        "tests/oracles/test_queue_order.py::test_memory_is_taken_from_the_least_urgent",
    ),
    Fault(
        "absence-earns-credit",
        "moesim/sim/order.py",
        "    s.service_GT[g, tenant] = max(s.service_GT[g, tenant], least)\n",
        "    s.service_GT[g, tenant] += 0.0\n",
        "tests/oracles/test_queue_order.py::test_who_was_away_gets_no_credit_for_it",
    ),
    Fault(
        "buckets-never-empty",
        "moesim/sim/gate.py",
        "            bucket.held -= cost\n",
        "            bucket.held -= 0.0 * cost\n",
        "tests/oracles/test_admission.py::test_a_token_bucket_lets_in_what_its_closed_form_says",
    ),
    Fault(
        "loads-side-by-side",
        "moesim/sim/offload.py",
        "max(now_s, float(self.free_s[g, t])) + took_s",
        "now_s + took_s",
        "tests/oracles/test_offload.py::test_transfers_of_a_tier_queue_up",
    ),
    Fault(
        "decode-at-all-lengths-together",
        "moesim/sim/attention.py",
        "mean_kv_tokens = kv_tokens / decoding",
        "mean_kv_tokens = kv_tokens",
        "tests/oracles/test_measured_attention.py::"
        "test_decoding_requests_are_timed_together_at_their_mean_length",
    ),
    Fault(
        "chunks-forget-their-prefix",
        "moesim/sim/attention.py",
        "position(PREFIX_SCALE, PREFIX_POINTS, before)",
        "position(PREFIX_SCALE, PREFIX_POINTS, 0)",
        "tests/oracles/test_measured_attention.py::"
        "test_each_chunk_of_a_prompt_is_timed_behind_its_prefix",
    ),
    Fault(
        "decode-at-the-ratio-of-prompts",
        "moesim/sim/experts.py",
        "c.expert_ratio[kind, group_tokens]",
        "c.expert_ratio[0, group_tokens]",
        "tests/oracles/test_measured_attention.py::test_decode_takes_the_other_ratio",
    ),
    Fault(
        "averages-without-exchange",
        "moesim/sim/averages.py",
        "        add_traffic(c, w, d, exchange)\n",
        "        add_traffic(c, w, d, -1)\n",
        "tests/oracles/test_measured_attention.py::"
        "test_averages_of_equal_tokens_are_what_replaying_them_takes",
    ),
    Fault(
        "foreign-kernels-first",
        "moesim/costs/measured/expert_kernels.py",
        "(*newest, *foreign)",
        "(*foreign, *newest)",
        "tests/unit/test_measured_steps.py::"
        "test_experts_are_timed_by_the_family_that_the_engine_runs",
    ),
    Fault(
        "tables-end-flat",
        "moesim/costs/grids.py",
        "    u = x - i\n",
        "    u = min(1.0, x - i)\n",
        "tests/unit/test_grids.py::test_powers_are_exact_between_points_and_beyond_the_table",
    ),
    Fault(
        "kv-freed-before-it-is-sent",
        "moesim/sim/commit.py",
        """                if rules.keeps_kv == 0:
                    release(s, g, r)
""",
        "                release(s, g, r)\n",
        "tests/oracles/test_disaggregation.py::test_a_full_decode_pool_holds_up_prefill",
    ),
    Fault(
        "no-room-for-output-to-come",
        "moesim/sim/remote_kv.py",
        "        if spare_bytes(s, g, r, found, tokens) < margin:\n",
        "        if spare_bytes(s, g, r, found, tokens) < 0:\n",
        "tests/oracles/test_disaggregation.py::test_room_is_left_for_output_to_come",
    ),
    Fault(
        "layers-sent-before-they-are-computed",
        "moesim/sim/kv_sending.py",
        "source, target, size, made if cap is None else min(made, cap)",
        "source, target, size, cap",
        "tests/oracles/test_disaggregation.py::test_layer_by_layer_only_the_last_layer_remains",
    ),
    Fault(
        "decodes-before-the-last-byte",
        "moesim/sim/kv_sending.py",
        "        return moving is not None and moving.all_sent and moving.parts == 0\n",
        "        return moving is not None and moving.all_sent\n",
        "tests/oracles/test_disaggregation.py::test_one_request",
    ),
    Fault(
        "every-rank-sends-every-head",
        "moesim/kv_layout.py",
        "sum(_holder(heads, tp_s, head) + t % copies == s for head in",
        "sum(True for head in",
        "tests/unit/test_kv_layout.py::test_heads_are_gathered_and_split",
    ),
    Fault(
        "tokens-lost-in-rounding",
        "moesim/placement/level.py",
        "        if i < over:\n            given += 1\n",
        "",
        "tests/unit/test_replica_choice.py::"
        "test_every_token_is_served_once_by_a_copy_of_its_expert",
    ),
    Fault(
        "sweeps-taken-for-the-optimum",
        "moesim/placement/replica_choice.py",
        "    level_out(copies, tokens_P, s.load_R, s)\n",
        "    pass\n",
        "tests/unit/test_replica_choice.py::test_a_chain_of_copies_hands_tokens_on",
    ),
    Fault(
        "replay-sends-across-per-rank",
        "moesim/placement/fan_out.py",
        "_ones(nodes_hit & ~home)",
        "_ones(ranks_hit & ~home)",
        "tests/unit/test_replay.py::test_hash_is_what_placed_rows_come_to",
    ),
    Fault(
        "replay-law-of-the-other-steps",
        "moesim/costs/layer_time.py",
        "costs.expert_ratio[0 if prompts else 1, group_tokens]",
        "costs.expert_ratio[1, group_tokens]",
        "tests/unit/test_layer_time.py::test_the_law_is_what_the_engine_prices",
    ),
    Fault(
        "replicas-cure-every-imbalance",
        "moesim/placement/advice.py",
        "FLUCTUATION = 0.7\n",
        "FLUCTUATION = 0.0\n",
        "tests/unit/test_placement_advice.py::test_what_varies_from_step_to_step_mostly_stays",
    ),
    Fault(
        "steps-go-on-while-experts-move",
        "moesim/sim/fleet.py",
        """        replica["stopped"] += 1
        replica["schedule_s"] = np.inf
        # Its""",
        """        replica["stopped"] += 1
        # Its""",
        "tests/oracles/test_rebalancing.py::"
        "test_a_replica_stands_still_for_planning_and_copying_and_is_faster_afterwards",
    ),
    Fault(
        "chunks-one-after-the-other",
        "moesim/sim/rebalancing.py",
        "            due = self._met[k] + 1\n",
        "            due = self._met[k]\n",
        "tests/oracles/test_rebalancing.py::test_chunks_of_layers_are_copied_between_steps",
    ),
    Fault(
        "every-step-counts-load",
        "moesim/sim/cost.py",
        "if w.rare and s.replicas[k].steps > s.replicas[k].load_step:\n",
        "if w.rare and w.condition.load_KLE.size > 0:\n",
        "tests/oracles/test_rebalancing.py::test_the_window_counts_its_own_steps_only",
    ),
    Fault(
        "moved-experts-keep-their-copies",
        "moesim/sim/copies.py",
        '    order = np.argsort(slot_expert_P[here], kind="stable")\n',
        '    order = np.argsort(slot_expert_P[here], kind="stable")[::-1]\n',
        "tests/oracles/test_rebalancing.py::"
        "test_counts_after_the_switch_are_those_of_a_trace_placed_anew",
    ),
    Fault(
        "copies-on-links-of-their-own",
        "moesim/sim/expert_copies.py",
        "        port_M = np.array(list(ports), np.int64)\n",
        "        port_M, weight_M = np.zeros(0, np.int64), np.zeros(0)\n",
        "tests/oracles/test_rebalancing.py::"
        "test_steps_and_copies_take_from_each_other_as_step_traffic_says",
    ),
    Fault(
        "first-copy-first",
        "moesim/sim/copy_choice.py",
        "            if given < share and lack > most:\n",
        "            if given < share and most < 0:\n",
        "tests/oracles/test_replica_choice.py::test_dealing_is_proportional_for_every_sender",
    ),
    Fault(
        "nearest-to-the-first-rank",
        "moesim/sim/remap.py",
        "    rank: int = (d * tp + row % tp) *",
        "    rank: int = (0 * tp + row % tp) *",
        "tests/oracles/test_replica_choice.py::test_the_nearest_copy_keeps_tokens_in_their_node",
    ),
    Fault(
        "larger-coalitions-count-less",
        "moesim/attribution/shapley.py",
        "comb(players - 1, size))\n",
        "comb(players, size))\n",
        "tests/unit/test_shapley.py::test_values_are_the_average_over_all_orders",
    ),
    Fault(
        "tokenising-counts-as-waiting",
        "moesim/attribution/samples.py",
        'rows_N["arrival_s"] - delay_s\n',
        'rows_N["arrival_s"]\n',
        "tests/unit/test_attribution.py::test_without_a_queue_requests_are_told_less_their_wait",
    ),
    Fault(
        "p99-without-its-neighbour",
        "moesim/attribution/samples.py",
        "above_B[:, None] + 1)",
        "above_B[:, None])",
        "tests/unit/test_attribution.py::test_statistics_are_those_of_the_values_repeated",
    ),
    Fault(
        "even-routing-heals-slow-gpus",
        "moesim/sim/experts.py",
        "            slowest_s = w.sum_s_L[layer] / ranks * worst\n",
        "            slowest_s = w.sum_s_L[layer] / ranks\n",
        "tests/unit/test_attribution.py::test_a_slow_gpu_stays_slow_where_routing_is_even",
    ),
)


def copy_project(folder: Path) -> None:
    """What the tests need of the project: sources and their bytecode, without compiled code."""
    ignore = shutil.ignore_patterns("*.nbi", "*.nbc")
    for name in PARTS:
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)


def run_tests(folder: Path, tests: list[str]) -> int:
    """pytest's exit status: 0 all passed, 1 some failed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    process = context.Process(target=_tested, args=(str(folder), tests))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _tested(folder: str, tests: list[str]) -> None:
    """Run tests of the project's copy in this process and end it with pytest's status."""
    import pytest

    silent = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(silent, stream)
    os.chdir(folder)
    os.environ["MOESIM_NO_JIT"] = os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True  # bytecode of a fault must not be there for the next one
    sys.path[:] = [folder, *(each for each in sys.path if Path(each or ".").resolve() != ROOT)]
    for name in [name for name in sys.modules if name.partition(".")[0] in PARTS]:
        del sys.modules[name]
    options = ["-x", "--tb=no", "--hypothesis-profile=first-failure"]
    options += ["-p", "no:cacheprovider", "-p", "no:xdist"]
    status = int(pytest.main([*options, *tests]))
    import moesim

    if not Path(moesim.__file__).is_relative_to(folder):
        status = 5  # neither passed nor failed: it was not the copy that was tested
    os._exit(status)


@contextmanager
def planted(fault: Fault, folder: Path) -> Iterator[None]:
    """The project's copy has the fault meanwhile."""
    path = folder / fault.file
    text = path.read_text(encoding="utf-8")
    if text.count(fault.old) != 1:
        raise ValueError(f"{fault.name}: its text does not stand exactly once in {fault.file}")
    for bytecode in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        bytecode.unlink()
    path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")


def caught(fault: Fault, folder: Path) -> bool:
    """Whether the fault's test fails in this copy of the project once that has the fault."""
    with planted(fault, folder):
        return run_tests(folder, [fault.test]) == 1


def main(names: list[str]) -> int:
    chosen = [fault for fault in FAULTS if not names or fault.name in names]
    missed = 0
    with tempfile.TemporaryDirectory(prefix="moesim-fault-") as name:
        folder = Path(name)
        copy_project(folder)
        if run_tests(folder, sorted({fault.test for fault in chosen})) != 0:
            print("the tests fail without any fault")
            return 1
        for fault in chosen:
            found = caught(fault, folder)
            missed += not found
            print(f"{'caught' if found else 'MISSED'}  {fault.name}  by {fault.test}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} faults caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
