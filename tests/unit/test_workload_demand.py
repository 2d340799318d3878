"""Demand drawn from a workload: what two deployments must meet identically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.workload import Demand, DemandStreams, Workload, draw_demand

POISSON = {"poisson": {"rate_per_s": 4}}
LENGTHS: dict[str, Any] = {
    "prompt": {"lognormal": {"median": 800, "sigma": 1.1, "high": 32768}},
    "output": {"uniform": {"low": 5, "high": 900}},
}
ARRAYS = ("arrival_s", "prompt_tokens", "output_tokens", "max_output_tokens", "domain",
          "prefix_start", "prefix_blocks")  # fmt: skip


def demand(seed: int = 0, **workload: object) -> Demand:
    return draw_demand(Workload.parse(workload, "workload"), DemandStreams.from_seed(seed))


def azure(folder: Path, rows: int = 100) -> str:
    lines = [f"2023-11-16 18:15:{n * 0.5:010.7f},{n + 100},{n + 1}" for n in range(rows)]
    path = folder / "azure.csv"
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]))
    return str(path)


def mooncake(folder: Path, rows: list[tuple[int, list[int]]]) -> str:
    path = folder / "mooncake.jsonl"
    path.write_text(
        "\n".join(
            json.dumps({"timestamp": n, "input_length": p, "output_length": 3, "hash_ids": ids})
            for n, (p, ids) in enumerate(rows)
        )
    )
    return str(path)


def test_types_and_read_only_arrays() -> None:
    found = demand(arrivals=POISSON, requests=10, **LENGTHS)
    types = ["float64", "int32", "int32", "int32", "uint16", "int64", "int32"]
    assert [str(getattr(found, name).dtype) for name in ARRAYS] == types
    assert len(found) == 10
    assert found.concurrency is None
    assert found.domains == ()
    assert found.prefix_block_tokens == 0
    assert found.prefix_start.tolist() == [0] * 11
    with pytest.raises(ValueError, match="read-only"):
        found.prompt_tokens[0] = 1


def test_closed_loop_has_no_times() -> None:
    found = demand(arrivals={"closed_loop": {"concurrency": 8}}, requests=80, **LENGTHS)
    assert found.concurrency == 8
    assert not found.arrival_s.any()


def test_declared_output_is_the_largest_exact_or_a_limit_that_cuts() -> None:
    workload = {"arrivals": "all_at_once", "requests": 500, **LENGTHS}
    largest = demand(**workload)
    assert set(largest.max_output_tokens) == {largest.output_tokens.max()}
    exact = demand(**workload, max_output_tokens="exact")
    assert np.array_equal(exact.max_output_tokens, largest.output_tokens)
    cut = demand(**workload, max_output_tokens=300)
    assert set(cut.max_output_tokens) == {300}
    assert np.array_equal(cut.output_tokens, np.minimum(largest.output_tokens, 300))
    over = int((largest.output_tokens > 300).sum())
    assert cut.notes == (f"{over} outputs cut to max_output_tokens (300)",)


def test_domains_follow_their_weights() -> None:
    found = demand(
        arrivals=POISSON, requests=40_000, domains={"math": 3, "none": 0, "law": 1}, **LENGTHS
    )
    assert found.domains == ("math", "none", "law")
    share = np.bincount(found.domain, minlength=3) / len(found)
    assert share == pytest.approx([0.75, 0.0, 0.25], abs=0.01)


def test_replay_takes_the_whole_trace_at_its_own_times(tmp_path: Path) -> None:
    found = demand(arrivals="replay", trace=azure(tmp_path))
    assert len(found) == 100
    assert found.arrival_s == pytest.approx(np.arange(100) * 0.5)
    assert found.prompt_tokens.tolist() == list(range(100, 200))
    slower = demand(arrivals={"replay": {"time_scale": 3}}, trace=azure(tmp_path), requests=10)
    assert slower.arrival_s == pytest.approx(np.arange(10) * 1.5)
    cut = demand(arrivals="replay", trace=azure(tmp_path), duration_s=10)
    assert len(cut) == 20
    long = demand(arrivals="replay", trace=azure(tmp_path), duration_s=1000)
    assert len(long) == 100
    assert long.notes == ("the trace ends after 49.5 s, before duration_s",)


def test_other_arrivals_draw_whole_rows_with_replacement(tmp_path: Path) -> None:
    found = demand(arrivals=POISSON, trace=azure(tmp_path), requests=20_000)
    assert np.array_equal(found.prompt_tokens - 100, found.output_tokens - 1)
    counts = np.bincount(found.output_tokens, minlength=101)[1:]
    assert counts.min() > 130
    assert counts.max() < 270
    assert "drawn with replacement from the 100 rows of the azure trace" in found.notes[0]


def test_replayed_prefixes_are_whole_blocks_numbered_by_first_use(tmp_path: Path) -> None:
    rows = [(1100, [90, 91, 92]), (512, [90]), (2000, [7, 90, 91, 92]), (100, [5])]
    found = demand(arrivals="replay", trace=mooncake(tmp_path, rows))
    assert found.prefix_block_tokens == 512
    blocks = [found.prefix_of(n).tolist() for n in range(4)]
    # the last block of each is cut where the prompt does not fill it
    assert blocks == [[0, 1], [0], [2, 0, 1], []]


def test_a_row_drawn_twice_does_not_hit_itself(tmp_path: Path) -> None:
    """Blocks of one row only are new at every draw; blocks that rows share stay shared."""
    rows = [(1536, [1, 2, 3]), (1536, [1, 4, 5])]
    found = demand(arrivals="all_at_once", trace=mooncake(tmp_path, rows), requests=50)
    first = {int(found.prefix_of(n)[0]) for n in range(50)}
    rest = [int(block) for n in range(50) for block in found.prefix_of(n)[1:]]
    assert first == {0}
    assert len(set(rest)) == 100
    assert sorted({*first, *rest}) == list(range(101))


def test_shared_prefix_is_the_start_of_every_long_enough_prompt() -> None:
    lengths = {"prompt": {"uniform": {"low": 1, "high": 2000}}, "output": {"fixed": 1}}
    found = demand(arrivals=POISSON, requests=300, shared_prefix=768, **lengths)
    assert found.prefix_block_tokens == 256
    for n in range(300):
        assert found.prefix_of(n).tolist() == [0, 1, 2][: found.prompt_tokens[n] // 256]


def test_shared_prefixes_of_many_texts() -> None:
    shared = {"tokens": 512, "prefixes": 10, "fraction": 0.25}
    lengths = {"prompt": {"fixed": 1000}, "output": {"fixed": 1}}
    found = demand(arrivals=POISSON, requests=20_000, shared_prefix=shared, **lengths)
    assert np.diff(found.prefix_start).mean() == pytest.approx(0.25, abs=0.01)
    uses = np.bincount(found.prefix_blocks)
    assert len(uses) == 10
    assert uses.min() > 400


workloads = st.fixed_dictionaries(
    {
        "arrivals": st.one_of(
            st.builds(lambda rate: {"poisson": {"rate_per_s": rate}}, st.floats(0.01, 1e3)),
            st.builds(
                lambda cv: {"gamma": {"rate_per_s": 5, "cv": cv}}, st.floats(0.1, 10)
            ),
            st.just("all_at_once"),
            st.builds(lambda n: {"closed_loop": {"concurrency": n}}, st.integers(1, 100)),
        ),
        "prompt": st.sampled_from(
            [LENGTHS["prompt"], {"range_ratio": {"tokens": 99, "ratio": 0.5}}]
        ),
        "output": st.sampled_from(
            [LENGTHS["output"], {"histogram": {"edges": [1, 4], "weights": [1]}}]
        ),
        "domains": st.sampled_from([{}, {"a": 1}, {"a": 0.2, "b": 0.8}]),
        "shared_prefix": st.sampled_from(
            [None, 64, {"tokens": 96, "prefixes": 5, "fraction": 0.5}]
        ),
        "max_output_tokens": st.sampled_from([None, "exact", 40]),
        "requests": st.integers(1, 200),
    }
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(workloads, st.integers(0, 2**32))
def test_demand_invariants(workload: dict[str, Any], seed: int) -> None:
    found, again = demand(seed, **workload), demand(seed, **workload)
    for name in ARRAYS:
        assert np.array_equal(getattr(found, name), getattr(again, name))
    assert len(found) == workload["requests"]
    assert np.all(np.diff(found.arrival_s) >= 0)
    assert found.prompt_tokens.min() >= 1
    assert found.output_tokens.min() >= 1
    assert np.all(found.max_output_tokens >= found.output_tokens)
    assert np.all(found.domain < max(1, len(found.domains)))
    blocks = np.diff(found.prefix_start)
    assert np.all(blocks * found.prefix_block_tokens <= found.prompt_tokens)
    assert len(found.prefix_blocks) == found.prefix_start[-1]
    unique, first = np.unique(found.prefix_blocks, return_index=True)
    assert np.array_equal(unique, np.arange(len(unique)))
    assert np.all(np.diff(first) > 0)


@settings(max_examples=60, deadline=None)
@given(workloads, st.integers(0, 2**32), st.integers(1, 50))
def test_more_requests_leave_the_first_ones_alone(
    workload: dict[str, Any], seed: int, more: int
) -> None:
    fewer = demand(seed, **workload)
    longer = demand(seed, **{**workload, "requests": workload["requests"] + more})
    n = len(fewer)
    for name in ("arrival_s", "prompt_tokens", "output_tokens", "domain"):
        assert np.array_equal(getattr(fewer, name), getattr(longer, name)[:n])
    assert np.array_equal(fewer.prefix_blocks, longer.prefix_blocks[: fewer.prefix_start[-1]])


@settings(max_examples=40, deadline=None)
@given(workloads, workloads, st.integers(0, 2**32))
def test_streams_are_independent(
    workload: dict[str, Any], other: dict[str, Any], seed: int
) -> None:
    """Changing one quantity's distribution moves no draw of another's."""
    base = demand(seed, **workload)
    prompt = demand(seed, **{**workload, "prompt": other["prompt"]})
    assert np.array_equal(base.output_tokens, prompt.output_tokens)
    assert np.array_equal(base.arrival_s, prompt.arrival_s)
    assert np.array_equal(base.domain, prompt.domain)
    arrivals = demand(seed, **{**workload, "arrivals": other["arrivals"]})
    assert np.array_equal(base.prompt_tokens, arrivals.prompt_tokens)
    assert np.array_equal(base.output_tokens, arrivals.output_tokens)
    domains = demand(seed, **{**workload, "domains": other["domains"]})
    assert np.array_equal(base.arrival_s, domains.arrival_s)
    assert np.array_equal(base.prompt_tokens, domains.prompt_tokens)


def test_seeds_differ() -> None:
    workload = {"arrivals": POISSON, "requests": 100, **LENGTHS}
    assert not np.array_equal(demand(0, **workload).arrival_s, demand(1, **workload).arrival_s)


def test_lengths_do_not_follow_arrivals() -> None:
    found = demand(arrivals=POISSON, requests=20_000, **LENGTHS)
    gaps = np.diff(found.arrival_s, prepend=0)
    for tokens in (found.prompt_tokens, found.output_tokens):
        assert abs(np.corrcoef(gaps, np.log(tokens))[0, 1]) < 0.02
    pair = np.corrcoef(np.log(found.prompt_tokens), found.output_tokens)[0, 1]
    assert abs(pair) < 0.02


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"requests": 10**12}, "workload.requests must be at most"),
        ({"requests": -1}, "workload.requests must be at least 1; got -1"),
        ({"requests": "many"}, "workload.requests must be a whole number"),
        ({"requests": None}, r"workload.requests is required \(or duration_s\)"),
        ({"duration_s": 3}, "workload.duration_s cannot be given together with requests"),
        ({"requests": None, "duration_s": -3}, "workload.duration_s must be above 0"),
        ({"requests": None, "duration_s": 1e9}, "workload.duration_s must bring at most 5"),
        ({"requests": None, "duration_s": 5, "arrivals": {"closed_loop": {"concurrency": 4}}},
         "workload.requests is required: these arrivals have no rate"),
        ({"requests": 40_000_000, "prompt": {"fixed": 30_000}}, r"workload.requests must bring at"),
        ({"requests": None, "duration_s": 1e7, "prompt": {"fixed": 30_000}},
         r"workload.duration_s must bring at most 10\^12 tokens"),
        ({"prompt": None}, r"workload.prompt is required \(or a preset, or a trace\)"),
        ({"arrivals": {"poisson": {"rate_per_s": -4}}},
         "workload.arrivals.poisson.rate_per_s must be at least"),
        ({"arrivals": {"poisson": {"rate_per_s": float("nan")}}},
         "workload.arrivals.poisson.rate_per_s must be a finite number"),
        ({"arrivals": {"poisson": {"rate_per_s": 4}, "gamma": {}}},
         "workload.arrivals must name exactly one arrival process"),
        ({"arrivals": "poison"}, r"did you mean poisson\?"),
        ({"arrivals": {"gamma": {"rate_per_s": 4}}},
         "workload.arrivals.gamma.cv is required without a preset"),
        ({"arrivals": "replay"}, "workload.trace is required by arrivals: replay"),
        ({"arrivals": {"closed_loop": {"concurrency": 0}}}, "closed_loop.concurrency must be"),
        ({"trace": "a.csv"}, "workload.prompt must be left out where workload.trace is given"),
        ({"preset": "chatter"}, "workload.preset must be one of chat, code"),
        ({"domains": {"math": -1}}, "workload.domains.math must be at least"),
        ({"domains": {"math": 0}}, "workload.domains must have a positive weight"),
        ({"domains": ["math"]}, "workload.domains must be a valid dictionary"),
        ({"max_output_tokens": "exct"}, "workload.max_output_tokens must be exact or a whole"),
        ({"max_output_tokens": 0}, "workload.max_output_tokens must be exact or a whole"),
        ({"shared_prefix": {"tokens": 0}}, "workload.shared_prefix.tokens must be at least"),
        ({"shared_prefix": {"tokens": 9, "fraction": 0}}, "workload.shared_prefix.fraction must"),
        ({"promt": {"fixed": 1}}, r"workload.promt is not a known field \(did you mean prompt\?\)"),
        ({"lengths": {"fixed": 1}}, "workload.lengths is written as prompt and output"),
        ({"output": {"fixed": "1k"}}, "workload.output.fixed.tokens must be a whole number"),
    ],
)  # fmt: skip
def test_impossible_workloads_are_refused_in_one_line(
    changes: dict[str, object], message: str
) -> None:
    plain = {"arrivals": POISSON, "requests": 10, **LENGTHS, **changes}
    with pytest.raises(InputError, match=message) as caught:
        demand(**{key: value for key, value in plain.items() if value is not None})
    assert "\n" not in str(caught.value)


def test_too_many_prefix_blocks_are_refused_before_they_are_listed() -> None:
    with pytest.raises(InputError, match=r"workload.shared_prefix.tokens must list at most"):
        demand(
            arrivals="all_at_once",
            requests=10,
            prompt={"fixed": 100_000_000},
            output={"fixed": 1},
            shared_prefix=99_999_999,
        )


def test_replay_asks_for_what_the_trace_lacks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"workload.requests must be at most the 100 rows"):
        demand(arrivals="replay", trace=azure(tmp_path), requests=101)
    path = tmp_path / "vidur.csv"
    path.write_text("num_prefill_tokens,num_decode_tokens\n1,2\n")
    with pytest.raises(InputError, match="needs arrival times, which this vidur trace"):
        demand(arrivals="replay", trace=str(path))
    with pytest.raises(InputError, match="after the first 100; it has none"):
        demand(arrivals="replay", trace={"file": azure(tmp_path), "skip": 100})


def test_what_is_dumped_reads_back() -> None:
    plain = {
        "arrivals": {"gamma": {"rate_per_s": 2}},
        "preset": "rag",
        "output": {"fixed": 7},
        "requests": 5,
        "domains": {"a": 1},
        "max_output_tokens": "exact",
    }
    workload = Workload.parse(plain, "workload")
    dumped = json.loads(workload.model_dump_json())
    assert dumped["arrivals"] == {"gamma": {"rate_per_s": 2.0, "cv": None}}
    assert Workload.parse(dumped, "workload") == workload


def test_json_schema_describes_the_syntax() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    check = jsonschema.Draft202012Validator(Workload.model_json_schema())
    good = {"arrivals": "all_at_once", "requests": 5, "prompt": {"fixed": 3}, "trace": "x.csv"}
    assert check.is_valid(good)
    assert check.is_valid({**good, "prompt": {"fixed": {"tokens": 3}}, "shared_prefix": 512})
    assert not check.is_valid({**good, "prompt": {"fixed": -3}})
    assert not check.is_valid({**good, "arrivals": "poisson"})


def test_the_real_hour_of_conversation_replays_whole(shared_data: Path) -> None:
    path = shared_data / "workloads" / "AzureLLMInferenceTrace_conv.csv"
    found = demand(arrivals="replay", trace=str(path))
    assert len(found) == 19_366
    assert found.arrival_s[-1] == pytest.approx(3501.721937)
    assert found.prompt_tokens.sum() == 22_361_870
    assert found.output_tokens.sum() == 4_088_665
    assert found.max_output_tokens[0] == 1000


DRIFT = [
    {"at_s": 0, "domains": {"math": 3, "law": 1}},
    {"at_s": 1000, "domains": {"law": 1, "code": 1, "none": 0}},
]


def shares(found: Demand, low_s: float, high_s: float) -> list[float]:
    inside = (found.arrival_s >= low_s) & (found.arrival_s < high_s)
    return (np.bincount(found.domain[inside], minlength=4) / inside.sum()).tolist()


def test_drift_steps_from_mix_to_mix_at_their_times() -> None:
    found = demand(
        arrivals={"poisson": {"rate_per_s": 40}}, duration_s=2000, drift=DRIFT, **LENGTHS
    )
    assert found.domains == ("math", "law", "code", "none")
    assert shares(found, 0, 1000) == pytest.approx([0.75, 0.25, 0, 0], abs=0.01)
    assert shares(found, 1000, 2000) == pytest.approx([0, 0.5, 0.5, 0], abs=0.01)
    assert shares(found, 0, 1000)[2:] == [0, 0]
    assert shares(found, 1000, 2000)[::3] == [0, 0]


def test_a_linear_drift_is_half_way_half_way() -> None:
    found = demand(
        arrivals={"poisson": {"rate_per_s": 40}},
        duration_s=2000,
        drift=DRIFT,
        drift_blend="linear",
        **LENGTHS,
    )
    assert shares(found, 450, 550) == pytest.approx([0.375, 0.375, 0.25, 0], abs=0.03)
    assert shares(found, 1000, 2000) == pytest.approx([0, 0.5, 0.5, 0], abs=0.01)


def test_drift_moves_nothing_else_and_one_mix_is_no_drift() -> None:
    still = {"math": 3.0, "law": 1.0}
    given = {"arrivals": POISSON, "requests": 500, **LENGTHS}
    base = demand(domains=still, **given)
    same = demand(drift=[{"at_s": 0, "domains": still}], **given)
    drifting = demand(drift=DRIFT, **given)
    for name in ARRAYS:
        assert np.array_equal(getattr(base, name), getattr(same, name)), name
        if name != "domain":
            assert np.array_equal(getattr(base, name), getattr(drifting, name)), name


def test_a_session_keeps_the_domain_of_its_first_request() -> None:
    found = demand(
        arrivals={"poisson": {"rate_per_s": 1}},
        requests=3000,
        sessions={"turns": {"fixed": 5}},
        prompt={"fixed": 10},
        output={"fixed": 10},
        drift=[{"at_s": 0, "domains": {"a": 1}}, {"at_s": 300, "domains": {"b": 1}}],
    )
    assert found.threads is not None
    first_s = found.arrival_s[found.threads.turn_N == 0][found.threads.thread_N]
    assert np.array_equal(found.domain, first_s >= 300)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"domains": {"a": 1}}, "must be left out where drift"),
        ({"arrivals": {"closed_loop": {"concurrency": 2}}, "requests": 9}, "times of their own"),
        ({"drift": DRIFT[1:]}, "the first of them 0"),
        ({"drift": [DRIFT[0], DRIFT[0]]}, "ascending"),
        ({"drift": [{"at_s": 0, "domains": {"a": 0}}]}, "positive weight in every mix"),
        (
            {
                "drift": [
                    {"at_s": t, "domains": {f"{t}-{i}": 1 for i in range(600)}} for t in (0, 1)
                ]
            },
            "must name at most 1000 domains in all",
        ),
    ],
)
def test_drift_that_cannot_be_is_refused(given: dict[str, Any], rule: str) -> None:
    base = {"arrivals": POISSON, "requests": 10, "drift": DRIFT, **LENGTHS}
    with pytest.raises(InputError, match=rule):
        demand(**{**base, **given})
