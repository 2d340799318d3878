"""The recording that ships with moesim: what it holds, and that a scenario runs with its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import moesim
from calibration.tiny_moe.shift import domain_shift
from moesim.cli.app import main
from moesim.errors import InputError
from moesim.model import load_model
from moesim.routing import RoutingTrace, statistics
from moesim.routing.shipped import find_trace, shipped_traces
from moesim.routing.source import open_routing
from moesim.routing.study import study
from moesim.routing.summary import by_layer, over_layers


@pytest.fixture(scope="module")
def trace() -> RoutingTrace:
    return RoutingTrace.open(find_trace("tiny-moe"))


def test_the_recording_is_of_four_domains_prefilled_and_decoded(trace: RoutingTrace) -> None:
    assert shipped_traces() == ("tiny-moe",)
    assert set(trace.domains) == {"english", "french", "python", "metamath"}
    assert (trace.layers, trace.experts, trace.top_k) == (8, 32, 4)
    assert (trace.sequence_tokens_S > trace.prompt_tokens_S).all()
    assert (trace.prompt_tokens_S > 0).all()
    assert find_trace("tiny-moe").stat().st_size < 5e6
    assert {"prompts", "decoding", "software", "source"} <= set(trace.provenance)


def test_domains_are_routed_apart_by_more_than_noise(trace: RoutingTrace) -> None:
    pairs, noise = domain_shift(trace)
    assert len(pairs) == 6
    assert min(pairs.values()) > 3 * max(noise.values())


def test_its_routing_is_that_of_a_trained_router(trace: RoutingTrace) -> None:
    """No expert is dead, and neighbours share more experts than independent tokens would."""
    counts_LE = statistics.expert_counts(trace)
    assert counts_LE.min() > 0
    overlap_L = statistics.overlap_by_lag(trace, [1])[0]
    assert (overlap_L > statistics.independent_overlap(counts_LE, trace.top_k)).all()


def test_its_page_has_the_figures_that_trace_info_prints(trace: RoutingTrace) -> None:
    page = Path(__file__).parents[2] / "docs/reference/tiny-moe.md"
    found = by_layer(study(trace, "tiny-moe", ranks=8, batch=64))
    rows = {
        "busiest expert over mean": "expert_max_over_mean",
        "Gini coefficient": "expert_gini",
        "experts shared with the token before": "overlap_lag_1",
        "with 8 tokens before": "overlap_lag_8",
        "the same if tokens were independent": "overlap_if_independent",
        "busiest of 8 ranks over mean, 64 decoding tokens": "rank_max_over_mean",
    }
    for name, key in rows.items():
        values = over_layers(found[key])
        shown = " | ".join(f"{values[part]:#.3g}" for part in ("mean", "least", "most"))
        assert f"| {name} | {shown} |" in page.read_text(encoding="utf-8")


def test_a_file_of_that_name_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_trace("tiny-moe").name == "tiny-moe.safetensors"
    (tmp_path / "tiny-moe").write_bytes(b"")
    assert find_trace("tiny-moe") == Path("tiny-moe")
    assert find_trace("elsewhere.safetensors") == Path("elsewhere.safetensors")


def test_a_scenario_runs_with_its_name() -> None:
    settings = ["model=gpt-oss-20b", "routing.trace=tiny-moe", "workload.requests=20"]
    scenario = moesim.load_scenario("gpt-oss-120b-one-gpu", settings)
    opened, ids_TMK, notes = open_routing("tiny-moe", None, load_model("gpt-oss-20b"), 0)
    assert ids_TMK.shape == (opened.tokens, 24, 4)
    np.testing.assert_array_equal(ids_TMK[:, 0], opened.ids_TLK[:, 0])
    assert any("tiny" in note for note in notes)
    result = moesim.simulate(scenario)
    assert result.summary["requests"]["completed"] == 20
    assert any("routing of 8 layers" in note for note in result.notes)


def test_every_command_that_takes_a_trace_takes_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv, profile = str(tmp_path / "a.csv"), str(tmp_path / "a.yaml")
    for command, told in (
        (["info", "tiny-moe", "--domain", "english"], "4 of 32"),
        (["compare", "tiny-moe", "--domain", "python", "--domain", "metamath"], "total variation"),
        (["export", "tiny-moe", "--sequences", "1", "--out", csv], "1 sequences"),
        (["fit", "tiny-moe", "--out", profile], "4 topics"),
    ):
        assert main(["trace", *command]) == 0, command
        assert told in capsys.readouterr().out, command


def test_a_slip_in_the_name_is_told_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "info", "tiny-mo"]) == 2
    error = capsys.readouterr().err
    assert error == (
        "moesim: error: tiny-mo must be an existing file or a shipped trace (tiny-moe)\n"
    )
    with pytest.raises(InputError, match=r"routing.trace must be an existing file or a shipped"):
        open_routing("tiny-mo", None, load_model("gpt-oss-20b"), 0)


def test_a_model_of_another_shape_is_told_so() -> None:
    with pytest.raises(InputError, match=r"routing.trace must choose 2 of 8 experts"):
        open_routing("tiny-moe", None, load_model("mixtral-8x7b"), 0)
