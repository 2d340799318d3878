"""Placement studies: planted routing whose answer is known, and what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.placement.placement import Placement
from moesim.placement.task import PlacementTask
from moesim.routing.trace import RoutingTrace
from moesim.scenario import Scenario
from moesim.what_if import PlacementStudy, place_study
from moesim.what_if.setting import make_ready
from moesim.what_if.weighing import of_workload

LAYERS, EXPERTS, TOP_K = 32, 8, 2  # mixtral-8x7b
RANKS = 4
STEPS: dict[str, Any] = {"decode": 0, "prefill": 4096, "simulated": False, "curves": False}


def save_trace(
    path: Path, popularity_XE: NDArray[np.float64], sequences: int = 24, tokens: int = 60
) -> str:
    """A trace whose tokens choose two different experts by their domain's popularity; domains in
    turn, a third of each sequence is prompt."""
    rng = np.random.default_rng(3)
    domains = len(popularity_XE)
    domain_S = np.sort(np.arange(sequences) % domains)
    domain_T = np.repeat(domain_S, tokens)
    keys = rng.exponential(size=(domain_T.size, LAYERS, EXPERTS)) / popularity_XE[domain_T][:, None]
    RoutingTrace(
        ids_TLK=np.argsort(keys, axis=2)[:, :, :TOP_K].astype(np.uint8),
        sequence_start_S1=np.arange(sequences + 1) * tokens,
        prompt_tokens_S=np.full(sequences, tokens // 3, np.int32),
        domain_S=domain_S.astype(np.uint16),
        domains=tuple(f"domain {x}" for x in range(domains)),
        layers_L=np.arange(LAYERS, dtype=np.int32),
        experts=EXPERTS,
        model="hand-made",
    ).save(path)
    return str(path)


def hot(expert: int, factor: float = 40.0) -> NDArray[np.float64]:
    popularity_E = np.ones(EXPERTS)
    popularity_E[expert] = factor
    return popularity_E


def scenario(trace: str, prompt: int = 20, **deployment: Any) -> Scenario:
    return Scenario.parse(
        {
            "name": "what if",
            "model": "mixtral-8x7b",
            "cluster": {"gpu": "h100-sxm", "gpus_per_node": RANKS},
            "deployment": {
                "parallelism": {"attention_dp": RANKS, "expert_parallel": RANKS},
                **deployment,
            },
            "routing": {"trace": trace},
            "workload": {
                "arrivals": "all_at_once",
                "requests": 12,
                "prompt": {"fixed": prompt},
                "output": {"fixed": 5},
            },
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


@pytest.fixture(scope="module")
def hot_study(folder: Path) -> PlacementStudy:
    """Half of all choices fall on expert 3: only a second copy of it helps."""
    trace = save_trace(folder / "hot.safetensors", hot(3)[None])
    return place_study(scenario(trace), ["eplb", "portfolio"], [0, 4], ["hash", "lp"], **STEPS)


def test_a_planted_hot_expert_is_to_be_replicated(hot_study: PlacementStudy) -> None:
    advice = {each.question: each.answer for each in hot_study.advice}
    assert advice["prefill 4096: replicate experts, one more slot on every rank filled by EPLB?"]
    replicate = next(a for q, a in advice.items() if "replicate" in q)
    assert replicate.startswith("Yes")
    best = hot_study.recommended
    assert best is not None
    assert best.redundant_experts == 4
    assert (best.placement.copies_LE()[:, 3] > 1).all()
    assert best.next_window.percent > 20.0
    assert best.next_window.excludes_loss
    assert hot_study.headline.startswith(f"Take {best.name}: ")
    assert best.kv_cost_tokens == hot_study.present.kv_capacity_tokens - best.kv_capacity_tokens > 0


def test_nothing_gains_more_than_perfect_balance(hot_study: PlacementStudy) -> None:
    for each in hot_study.candidates:
        assert each.next_window.percent <= hot_study.cap_percent + 1e-9
        assert each.headroom_percent >= -1e-9
        left = (1 - each.next_window.percent / 100) * (1 - each.headroom_percent / 100)
        assert left == pytest.approx(1 - hot_study.cap_percent / 100)


def test_the_recommended_is_never_worse_in_sample(hot_study: PlacementStudy) -> None:
    assert hot_study.recommended is not None
    assert hot_study.recommended.in_sample.percent > 0.0
    assert hot_study.recommended.against_best_eplb.percent > -0.5


def test_eplb_against_itself_gains_nothing(hot_study: PlacementStudy) -> None:
    for each in hot_study.candidates:
        if each.policy == "eplb" and each.choice == "hash":
            assert (each.against_eplb.percent, each.against_eplb.low) == (0.0, 0.0)
    with_copies = [c for c in hot_study.candidates if c.redundant_experts and c.policy == "eplb"]
    assert [c.choice for c in with_copies] == ["hash", "lp"]
    assert with_copies[0].against_best_eplb.percent == 0.0  # copies help: it is the better one


def test_choosing_by_lp_costs_its_time(hot_study: PlacementStudy, folder: Path) -> None:
    """100 us of every layer, by LPLB's authors; nothing where the scenario says so."""
    lp = next(c for c in hot_study.candidates if c.choice == "lp" and c.policy == "eplb")
    free = place_study(
        scenario(
            str(folder / "hot.safetensors"), placement={"policy": "contiguous", "choice_s": 0}
        ),
        ["eplb"],
        [4],
        ["lp"],
        **STEPS,
    ).candidates[0]
    assert lp.scores[0].layer_s == pytest.approx(free.scores[0].layer_s + 1e-4)
    present_s = hot_study.present.scores[0].layer_s
    for each in (lp, free):
        gain = 100 * (1 - each.scores[0].layer_s / present_s)
        assert each.next_window.percent == pytest.approx(gain)
    assert np.array_equal(lp.placement.slot_expert_LP, free.placement.slot_expert_LP)
    assert any("choosing among copies by lp: 100 us" in text for text in hot_study.basis)


def test_eplb_without_copies_is_always_tried(folder: Path) -> None:
    """Copies that bring nothing are to be given up, asked for or not."""
    trace = save_trace(folder / "spare.safetensors", np.ones((1, EXPERTS)))
    now = scenario(trace, placement={"policy": "eplb", "redundant_experts": 4})
    study = place_study(now, ["eplb"], [4], **STEPS)
    assert [(c.name, c.asked) for c in study.candidates] == [
        ("eplb, 4 redundant experts", True),
        ("eplb", False),
    ]
    assert study.recommended is study.candidates[1]
    assert study.recommended.kv_capacity_tokens > study.present.kv_capacity_tokens
    table = study.table()
    assert table["name"].tolist() == ["eplb, 4 redundant experts", "eplb"]
    assert table["present"].tolist() == [True, False]


def test_even_routing_says_keep_what_you_have(folder: Path) -> None:
    trace = save_trace(folder / "even.safetensors", np.ones((1, EXPERTS)))
    study = place_study(scenario(trace), ["eplb", "portfolio"], [0, 4], ["hash"], **STEPS)
    assert study.recommended is None
    assert study.headline.startswith("Keep what you have (contiguous): ")
    assert "at the optimum" in " ".join(study.reasons)


def test_a_placement_sees_the_first_half_only(folder: Path) -> None:
    """Other tokens in the second half of the sequences: the same placement, another score."""
    name = folder / "one.safetensors"
    save_trace(name, hot(3)[None])
    trace = RoutingTrace.open(name)
    half = trace.sequence_start_S1[trace.sequences // 2]
    ids_TLK = trace.ids_TLK.copy()
    ids_TLK[half:] = (ids_TLK[half:] + 1) % EXPERTS
    other = folder / "two.safetensors"
    RoutingTrace(
        ids_TLK, trace.sequence_start_S1, trace.prompt_tokens_S, trace.domain_S, trace.domains,
        trace.layers_L, EXPERTS, "hand-made",
    ).save(other)  # fmt: skip
    one, two = (
        place_study(scenario(str(path)), ["portfolio"], [4], ["hash"], **STEPS).candidates[0]
        for path in (name, other)
    )
    assert np.array_equal(one.placement.slot_expert_LP, two.placement.slot_expert_LP)
    assert one.in_sample == two.in_sample
    assert one.next_window.percent > two.next_window.percent + 5.0


def test_a_fit_fraction_of_the_scenario_does_not_widen_the_view(folder: Path) -> None:
    trace = save_trace(folder / "fit.safetensors", hot(2)[None])
    placement = {"policy": "eplb", "fit_fraction": 1.0, "redundant_experts": 4}
    study = place_study(scenario(trace, placement=placement), ["eplb"], [4], ["hash"], **STEPS)
    assert study.present.name == study.candidates[0].name == "eplb, 4 redundant experts"
    assert study.candidates[0].next_window.percent == 0.0
    tables = [c.placement.slot_expert_LP for c in (study.present, study.candidates[0])]
    assert np.array_equal(*tables)


@pytest.fixture(scope="module")
def domain_study(folder: Path) -> PlacementStudy:
    """Two domains with hot experts that contiguous placement puts on one rank each: 0 and 1, and
    4 and 5."""
    popularity_XE = np.ones((2, EXPERTS))
    popularity_XE[0, :2] = popularity_XE[1, 4:6] = 40.0
    trace = save_trace(folder / "domains.safetensors", popularity_XE)
    return place_study(
        scenario(trace),
        ["contiguous", "eplb"],
        [0],
        decode=8,
        prefill=2048,
        simulated=False,
        curves=True,
    )


def test_a_foreign_domain_costs(domain_study: PlacementStudy) -> None:
    matrix = domain_study.domains
    assert matrix is not None
    assert matrix.served == ("domain 0", "domain 1")
    assert np.diag(matrix.slower_percent_YX) == pytest.approx([0.0, 0.0])
    assert matrix.slower_percent_YX[0, 1] > 0.5
    assert matrix.slower_percent_YX[1, 0] > 0.5
    assert matrix.slower_percent_YX[2].max() < 0.5  # pooled: both pairs apart


def test_other_domains_are_served_beside_the_present_policy(domain_study: PlacementStudy) -> None:
    contiguous, eplb = domain_study.candidates
    assert contiguous.cross_domain is not None
    assert contiguous.cross_domain.percent == contiguous.next_window.percent == 0.0
    assert eplb.cross_domain is not None
    assert eplb.cross_domain.percent != eplb.next_window.percent


def test_curves_tell_redundancy_and_age(domain_study: PlacementStudy) -> None:
    extras = sorted({point.extra_per_rank for point in domain_study.redundancy})
    assert extras[:2] == [0.0, 0.25]  # an eighth of four ranks is no copy
    assert {1.0, 2.0} <= set(extras)
    kv = {point.extra_per_rank: point.kv_capacity_tokens for point in domain_study.redundancy}
    assert kv[0.0] > kv[0.25] > kv[1.0] > kv[2.0]
    fresh = [point.tokens for point in domain_study.ageing if point.age == 0.0]
    assert fresh == [100, 200, 500]  # of 720 tokens in the first half
    ages = [point.age for point in domain_study.ageing if point.age > 0.0]
    assert ages == [0.875, 0.625, 0.375, 0.125]


def test_kinds_of_step_share_the_time(domain_study: PlacementStudy) -> None:
    decode, prefill = domain_study.kinds
    assert (decode.name, decode.tokens) == ("decode 8 a rank", 32)
    assert (prefill.name, prefill.tokens) == ("prefill 2048", 2048)
    assert decode.share + prefill.share == pytest.approx(1.0)
    # 12 requests of 20 + 5 tokens: 240 / 2048 steps with prompts, 60 / 32 without.
    assert 0.5 < decode.share < 1.0


def test_ones_own_policy_stands_beside_the_others(folder: Path) -> None:
    seen: list[PlacementTask] = []

    def heaviest_apart(task: PlacementTask) -> NDArray[np.int32]:
        seen.append(task)
        order_LE = np.argsort(-task.load_LE, axis=1).astype(np.int32)
        dealt = order_LE.reshape(task.layers, -1, task.ranks)
        return dealt.transpose(0, 2, 1).reshape(task.layers, task.slots)

    trace = save_trace(folder / "own.safetensors", hot(3, 3.0)[None])
    one = place_study(scenario(trace), ["eplb", heaviest_apart], [0], **STEPS)
    assert [c.policy for c in one.candidates] == ["eplb", "heaviest-apart"]
    two = place_study(scenario(trace), {"mine": heaviest_apart}, [0], **STEPS)
    assert two.candidates[0].policy == "mine"
    assert two.candidates[0].next_window == one.candidates[1].next_window
    assert (seen[0].layers, seen[0].experts, seen[0].slots, seen[0].ranks) == (32, 8, 8, 4)


@pytest.mark.parametrize(
    ("policies", "redundant", "options", "message"),
    [
        (["swop"], None, {}, r"policies must be among .*swop.*did you mean swap\?"),
        ([], None, {}, "policies must be among"),
        (["eplb", "eplb"], None, {}, "policies must have different names"),
        (["eplb"], [3], {}, r"multiple of the EP size \(4\); got 3 \(use 4\)"),
        (["eplb"], [-4], {}, "must leave a slot for each of 8 experts"),
        (["eplb"], [], {}, "redundant must name a number"),
        (["eplb"], [10**9], {}, "redundant_experts must make at most"),
        (["eplb"], None, {"choices": ["hsh"]}, r"choices must be among .*did you mean hash\?"),
        (["eplb"], None, {"decode": 10**9}, "decode must make 0 to 262144 tokens"),
        (["eplb"], None, {"decode": 0, "prefill": 0}, "must leave a kind of step"),
        (["eplb"], None, {"seeds": 0}, "seeds must be 1 to 100"),
    ],
)
def test_what_cannot_be_is_refused(
    policies: list[str], redundant: list[int] | None, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        place_study(scenario("balanced"), policies, redundant, **options)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (np.zeros((2, 8), np.int32), "policies.mine must return 32 layers x 8 slots"),
        (np.zeros((32, 8), np.int32), "policies.mine must hold every expert at least once"),
        (np.full((32, 8), 9.5), "policies.mine must be a .* table of integers"),
    ],
)
def test_a_wrong_placement_of_ones_own_is_refused(returned: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        place_study(scenario("balanced"), {"mine": lambda task: returned}, [0], **STEPS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "llama-3.1-8b", "deployment": {}}, "model must have experts to place"),
        (
            {"deployment": {"parallelism": {"attention_tp": 4}}},
            "expert_parallel must be 2 at least",
        ),
        ({"deployment": {"disaggregation": {}}}, "look at each pool as a scenario of its own"),
    ],
)
def test_what_has_no_placement_is_refused(changes: dict[str, Any], message: str) -> None:
    data = scenario("balanced").model_dump() | changes
    with pytest.raises(InputError, match=message):
        place_study(data, ["eplb"])


def test_domains_weigh_as_the_workload_says(folder: Path) -> None:
    trace = RoutingTrace.open(save_trace(folder / "weights.safetensors", np.ones((3, EXPERTS))))
    asked = scenario(str(folder / "weights.safetensors")).model_dump()
    asked["workload"]["domains"] = {"domain 0": 3.0, "domain 2": 1.0}
    weighed_S = of_workload(Scenario.parse(asked), trace, np.arange(trace.sequences))
    counts = np.bincount(trace.domain_S[weighed_S], minlength=3)
    assert counts.tolist() == [24, 0, 8]  # eight sequences of each


def test_the_seconds_to_choose_are_those_of_the_scenario(folder: Path) -> None:
    setting = make_ready(scenario("balanced"))
    assert setting.seconds_to_choose(4, "lp") == 1e-4
    assert setting.seconds_to_choose(4, "hash") == setting.seconds_to_choose(0, "lp") == 0.0


def test_json_says_all_of_it(hot_study: PlacementStudy) -> None:
    rows = json.loads(json.dumps(hot_study.to_json(), allow_nan=False))
    assert [row["name"] for row in rows] == [c.name for c in hot_study.candidates]
    best = next(row for row in rows if row["name"] == rows[0]["placement"]["recommended"])
    of = best["placement"]
    assert of["policy"] in ("eplb", "portfolio")
    assert of["next_window"]["low"] <= of["next_window"]["percent"] <= of["next_window"]["high"]
    assert of["load_mean"] <= of["load_worst"]
    assert of["headline"] == hot_study.headline
    assert [step["kind"] for step in of["steps"]] == ["prefill 4096"]
    assert of["simulated"] is None


def test_runs_replay_what_no_placement_has_seen(folder: Path, tmp_path: Path) -> None:
    """The present and the recommended placement over two seeds, the other never; and files."""
    trace = save_trace(folder / "runs.safetensors", hot(3)[None])
    asked = scenario(trace, prompt=3000)
    study = place_study(asked, ["eplb"], [0, 4], ["hash"], seeds=2, curves=False)
    assert study.recommended is not None
    assert any("from a run of the scenario" in text for text in study.basis)
    assert study.present.summary is not None
    assert study.present.summary["requests"]["completed"] == 12
    other, best = study.candidates
    assert best is study.recommended
    assert best.simulated is not None
    assert best.simulated.seeds == 2
    assert other.simulated is other.summary is None
    gain = best.simulated.prompt_step
    assert gain is not None
    assert gain.percent > 0.0
    assert gain.low is not None
    assert any("second half is replayed" in note for note in best.summary["notes"])
    assert study.export(tmp_path / "a.json", "sglang") == (0, 4)
    table = json.loads((tmp_path / "a.json").read_text())["physical_to_logical_map"]
    assert np.array_equal(table, best.placement.slot_expert_LP)
    study.report(tmp_path / "page.html")
    assert "Mean decode step" in (tmp_path / "page.html").read_text()


def test_empty_slots_are_filled_for_engines_only(folder: Path, tmp_path: Path) -> None:
    def empty(task: PlacementTask) -> NDArray[np.int32]:
        table_LRp = np.full((task.layers, task.ranks, task.slots // task.ranks), -1, np.int32)
        table_LRp[:, :, :2] = np.arange(task.experts).reshape(task.ranks, 2)
        table_LRp[0, 0, 2] = 7
        return table_LRp.reshape(task.layers, -1)

    study = place_study(
        scenario(str(folder / "hot.safetensors")), {"mine": empty}, [4], ["hash"], **STEPS
    )
    mine = study.candidates[0]
    assert mine.empty_slots == 32 * 4 - 1
    assert study.export(tmp_path / "a.safetensors", "moesim", mine) == (0, 4)
    filled, redundant = study.export(tmp_path / "a.json", "sglang", mine)
    assert (filled, redundant) == (32 * 4 - 1, 4)
    rows = json.loads((tmp_path / "a.json").read_text())["physical_to_logical_map"]
    Placement(np.array(rows), RANKS).validate(EXPERTS)
