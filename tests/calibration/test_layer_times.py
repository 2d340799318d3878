"""Layer times measured on a machine: read, interpolated, and added up into a step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibration.expert_times import fit_experts
from calibration.layer_times import Overheads, layer_step_costs, read_layer_times
from calibration.mixed_attention import read_attention
from moesim.errors import InputError
from moesim.model import load_model
from moesim.sharding import Sharding
from tests.fixtures.engine import Harness, linear_costs, make_demand

# Microseconds of one call for n tokens: a launch and so much per token.
DENSE = {"qkv_proj": (5, 2), "o_proj": (4, 1), "rotary_emb": (1, 0.5), "layernorm": (2, 0.25)}
MLP = {"gate_up_proj": (6, 3), "act_fn": (1, 0.5), "down_proj": (5, 2)}
ONCE = {"embedding": (3, 0.1), "final_layernorm": (2, 0.2)}
HEAD = {"lm_head": (100, 1), "sampler": (10, 2)}
NO_OVERHEAD = Overheads(0.0, 0.0, 0.0, 1.0)
LLAMA = load_model("llama-3.1-8b")
QWEN = load_model("qwen3-30b-a3b")


def context_us(chunk: float, prefix: float) -> float:
    return 3 + 0.1 * chunk + 0.02 * prefix


def generation_us(requests: float, cached: float) -> float:
    return 2 + 0.5 * requests + 0.01 * cached


def mixed_us(requests: float, cached: float) -> float:
    return 1 + 1.5 * requests + 0.03 * cached


def expert_us(tokens: float, active: float) -> float:
    own = tokens * 8 / active
    return 30 + 0.02 * tokens + active * (6 + 0.05 * max(0.0, own - 1))


def write_tables(folder: Path, experts: bool = False) -> Path:
    tables = {
        "dense.csv": ["layer,tokens,time_us"],
        "per_sequence.csv": ["layer,sequences,time_us"],
        "attention.csv": ["prefill_chunk,kv_prefill,n_decode,kv_decode,time_us"],
        "moe.csv": ["tokens,activated_experts,time_us"],
    }
    for name, (fixed, each) in {**DENSE, **ONCE, **({} if experts else MLP)}.items():
        tables["dense.csv"] += [f"{name},{n},{fixed + each * n}" for n in (1, 4, 64, 2048)]
    for name, (fixed, each) in HEAD.items():
        tables["per_sequence.csv"] += [f"{name},{n},{fixed + each * n}" for n in (1, 256)]
    for chunk in (0, 16, 256, 2048):
        for prefix in (0, 64, 4096) if chunk else (0,):
            for requests in (0, 1, 32, 128):
                for cached in (16, 512, 4096) if requests else (0,):
                    us = mixed_us(requests, cached) + 0.001 * (chunk - 1) * requests
                    if chunk == 0 == requests:
                        continue
                    if requests == 0:
                        us = 0.0
                    elif chunk == 0:
                        us = generation_us(requests, cached)
                    us += context_us(chunk, prefix) if chunk else 0.0
                    tables["attention.csv"].append(f"{chunk},{prefix},{requests},{cached},{us}")
    for tokens in (1, 16, 128, 2048):
        for active in (8, 16, 64, 128):
            if active <= tokens * 8:
                tables["moe.csv"].append(f"{tokens},{active},{expert_us(tokens, active)}")
    folder.mkdir(parents=True)
    for name, lines in tables.items():
        if experts or name != "moe.csv":
            (folder / name).write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def test_layers_add_up_to_a_step(tmp_path: Path) -> None:
    times = read_layer_times(write_tables(tmp_path / "tp1"))
    base = linear_costs(most_tokens=4096)
    costs = layer_step_costs(base, times, LLAMA, Sharding(), replace(NO_OVERHEAD, step_s=2e-3))
    n = 777.0
    of_attention = sum(DENSE[name][0] + DENSE[name][1] * n for name in DENSE if name != "layernorm")
    norm = DENSE["layernorm"][0] + DENSE["layernorm"][1] * n
    mlp = sum(fixed + each * n for fixed, each in MLP.values())
    once = sum(fixed + each * n for fixed, each in ONCE.values())
    expected_us = [32 * of_attention, 32 * (2 * norm + mlp) + once, 0.0]
    for kind in range(2):
        assert costs.token_s[kind, :, 777] * 1e6 == pytest.approx(expected_us)
    assert costs.token_s[0, 0, 4000] == pytest.approx(32 * (10 + 3.5 * 4000) * 1e-6)  # beyond
    assert costs.head_s[60] * 1e6 == pytest.approx(110 + 3 * 60)
    assert costs.rates["step_s"] == 2e-3
    assert (costs.token_s[:, :, 0] == 0).all()


def test_tensor_parallel_layers_are_joined_by_two_all_reduces(tmp_path: Path) -> None:
    times = read_layer_times(write_tables(tmp_path / "tp2"))
    extra = Overheads(0.0, 0.0, 20e-6, 16e9)
    costs = layer_step_costs(linear_costs(most_tokens=512), times, LLAMA, Sharding(2), extra)
    once_s = 2 * 20e-6 + 100 * 4096 * 2 / 16e9
    assert costs.token_s[0, 2, 100] == pytest.approx(64 * once_s)


def test_mixed_batches_are_told_apart_from_their_parts(tmp_path: Path) -> None:
    times = read_layer_times(write_tables(tmp_path / "tp1")).attention
    one = np.array([1.0])
    assert times.uneven_token_s == pytest.approx(1e-9, rel=1e-6)
    assert times.context_s(300 * one, 1000 * one) * 1e6 == pytest.approx(context_us(300, 1000))
    assert times.generation_s(50 * one, 600 * one) * 1e6 == pytest.approx(generation_us(50, 600))
    assert times.mixed_s(50 * one, 600 * one) * 1e6 == pytest.approx(mixed_us(50, 600))


def test_tables_without_mixed_batches_time_decode_by_itself() -> None:
    rows = [(c, p, 0, 0, 1e-6) for c in (16, 32) for p in (0, 64)]
    rows += [(0, 0, n, k, 2e-6) for n in (1, 2) for k in (16, 32)]
    times = read_attention(np.array(rows, dtype=np.float64))
    assert times.uneven_token_s == 0.0
    assert times.mixed_s is times.generation_s


def test_a_step_with_prompts_takes_the_mixed_table_and_the_empty_rows() -> None:
    def flat(seconds: float) -> np.ndarray:
        return np.full((3, 4, 4), np.log(seconds))

    costs = replace(
        linear_costs(uneven_token_s=0.5, full_layers=2),
        context_log_s=flat(10.0),
        generation_log_s=flat(1.0),
        mixed_log_s=flat(3.0),
    )
    run = Harness({}, costs, log=True).run(make_demand([4, 7], [3, 1], [0, 1]))
    # a's prompt; a decodes beside b's prompt, 6 tokens shorter; a alone again.
    assert run.steps["attention_s"].tolist() == pytest.approx([20.0, 2 * (13 + 3.0), 2.0])


def test_an_expert_s_time_follows_from_whole_blocks() -> None:
    rows = [(t, e) for t in (2, 16, 128, 2048) for e in (16, 64, 128) if e <= 8 * t]
    # 8 experts, repeated, come from the cache: they would spoil the fit.
    table = [(t, e, expert_us(t, e) * 1e-6) for t, e in rows] + [(16, 8, 20e-6)]
    fit = fit_experts(np.array(table, dtype=np.float64), 8)
    for tokens, active, seconds in table[:-1]:
        own = np.array([tokens * 8 / active])
        predicted = fit.fixed_s + fit.token_s * tokens + active * fit.expert_s(own)[0]
        assert predicted == pytest.approx(seconds, rel=2e-3)
    assert fit.expert_s(np.zeros(1))[0] == 0.0


def test_experts_of_a_step_are_timed_one_by_one(tmp_path: Path) -> None:
    write_tables(tmp_path / "tp1", experts=True)
    times = read_layer_times(write_tables(tmp_path / "tp2"))  # its experts are those beside it
    assert times.experts is not None
    whole = layer_step_costs(
        linear_costs(most_tokens=600, layers=48), times, QWEN, Sharding(), NO_OVERHEAD
    )
    halves = layer_step_costs(
        linear_costs(most_tokens=600, layers=48),
        times,
        QWEN,
        Sharding(2),
        replace(NO_OVERHEAD, reduce_bytes_per_s=1e9),
    )
    assert whole.rates["tile_shift"] == 0
    assert whole.expert_tile_s[1] * 1e6 == pytest.approx(6.0, rel=0.05)
    assert halves.expert_tile_s[1] == pytest.approx(whole.expert_tile_s[1] / 2)
    assert whole.expert_ratio.shape == (2, 601)


@pytest.mark.parametrize(
    ("file", "text", "match"),
    [
        ("dense.csv", "layer,tokens\nqkv_proj,1\n", "must have the column"),
        ("dense.csv", "layer,tokens,time_us\nqkv_proj,1,x\n", "line 2"),
        ("dense.csv", "layer,tokens,time_us\nqkv_proj,1,nan\n", "finite"),
        ("attention.csv", "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n", "finite"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, file: str, text: str, match: str) -> None:
    folder = write_tables(tmp_path / "tp1")
    (folder / file).write_text(text, "utf-8")
    with pytest.raises(InputError, match=match):
        read_layer_times(folder)


def test_a_missing_layer_is_named(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "tp1")
    kept = [
        line for line in (folder / "dense.csv").read_text().splitlines() if "o_proj" not in line
    ]
    (folder / "dense.csv").write_text("\n".join(kept), "utf-8")
    with pytest.raises(InputError, match="o_proj"):
        layer_step_costs(
            linear_costs(most_tokens=8), read_layer_times(folder), LLAMA, Sharding(), NO_OVERHEAD
        )


def test_experts_of_the_measured_machine_are_timed_to_a_percent(shared_data: Path) -> None:
    folder = shared_data / "kernels/rtx_pro_6000_vllm/Qwen3-30B-A3B-Instruct-2507/tp1"
    rows = read_layer_times(folder).experts
    assert rows is not None
    fit = fit_experts(rows, 8)
    tokens, active, seconds = rows[rows[:, 1] >= 16].T
    own = np.maximum(1.0, tokens * 8 / active)
    predicted = fit.fixed_s + fit.token_s * tokens + active * fit.expert_s(own)
    assert np.abs(predicted / seconds - 1).mean() < 0.015
