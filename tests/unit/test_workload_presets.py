"""The presets say what their files say, and the files are what the fitting script makes."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from calibration import workload_fit
from moesim.errors import InputError
from moesim.workload import (
    DemandStreams,
    Workload,
    draw_demand,
    load_preset,
    preset_names,
    read_trace,
)

# p50, p90, p99 and mean of the public Azure code trace (8,819 rows), prompt and output.
CODE = {"prompt": (1469, 5187.6, 7436, 2048), "output": (13, 55, 251.5, 28)}


def test_the_five_presets() -> None:
    assert preset_names() == ("chat", "code", "rag", "reasoning", "summarisation")
    assert set(preset_names()) == set(workload_fit.SOURCES)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_states_its_source_and_a_small_error(name: str) -> None:
    preset = load_preset(name)
    assert preset.name == name
    assert "@" in preset.source
    for fit in (preset.prompt_fit, preset.output_fit):
        assert 0 < fit.ks < 0.02
        assert abs(fit.mean) < 0.025
        assert fit.held_out_ks < 0.035
        assert abs(fit.held_out_p50) < 0.05
        assert abs(fit.held_out_p90) < 0.09
        assert abs(fit.held_out_p99) < 0.13


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_draws_what_it_was_fitted_to(name: str) -> None:
    preset = load_preset(name)
    workload = Workload.parse(
        {"arrivals": {"gamma": {"rate_per_s": 3}}, "preset": name, "requests": 20_000}
    )
    assert workload.with_preset().arrivals.cv == preset.arrival_cv  # type: ignore[union-attr]
    found = draw_demand(workload, DemandStreams.from_seed(0))
    for tokens, length in (
        (found.prompt_tokens, preset.prompt),
        (found.output_tokens, preset.output),
    ):
        assert tokens.mean() == pytest.approx(length.mean_tokens(), rel=0.05)
    assert (found.prefix_block_tokens > 0) == (name == "rag")


def test_code_has_the_published_percentiles() -> None:
    preset = load_preset("code")
    for length, truth in ((preset.prompt, CODE["prompt"]), (preset.output, CODE["output"])):
        sample = length.tokens_at((np.arange(100_000) + 0.5) / 100_000)
        found = [*np.percentile(sample, [50, 90, 99]), sample.mean()]
        assert found == pytest.approx(truth, rel=0.025)


def test_what_is_given_goes_before_the_preset() -> None:
    plain = {
        "arrivals": {"gamma": {"rate_per_s": 3, "cv": 2}},
        "preset": "rag",
        "prompt": {"fixed": 600},
        "requests": 3,
    }
    completed = Workload.parse(plain).with_preset()
    assert completed.arrivals.cv == 2  # type: ignore[union-attr]
    assert completed.prompt.tokens == 600  # type: ignore[union-attr]
    assert completed.output == load_preset("rag").output
    assert completed.shared_prefix is None


def test_unknown_preset_names_the_closest() -> None:
    with pytest.raises(InputError, match=r"\(did you mean summarisation\?\)"):
        load_preset("sumarisation")
    with pytest.raises(InputError, match=r"workload.preset must be one of"):
        load_preset("../../etc/passwd")


@pytest.mark.parametrize("name", ["chat", "summarisation", "reasoning", "rag"])
def test_shipped_files_are_what_the_script_makes(shared_data: Path, name: str) -> None:
    made = workload_fit.as_yaml(workload_fit.fit_preset(name, shared_data / "workloads"))
    shipped = files("moesim").joinpath("presets", "workloads", f"{name}.yaml")
    assert made == shipped.read_text(encoding="utf-8")


def test_the_script_names_the_traces_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert workload_fit.main([str(tmp_path), "chat"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "chat: no AzureLLMInferenceTrace_conv.csv; from Azure/AzurePublicDataset" in shown.err


def test_a_lognormal_trace_is_recognised() -> None:
    tokens = np.rint(np.random.default_rng(0).lognormal(np.log(900), 0.8, 30_000)).astype(np.int32)
    fitted = workload_fit.best_fit(np.maximum(tokens, 1))
    assert isinstance(fitted, workload_fit.Lognormal)
    assert fitted.median == pytest.approx(900, rel=0.02)
    assert fitted.sigma == pytest.approx(0.8, rel=0.02)


def test_ks_distance_of_known_samples() -> None:
    first, second = np.array([1, 2, 3, 4], np.int32), np.array([3, 4, 5, 6], np.int32)
    assert workload_fit.ks_distance(first, second) == pytest.approx(0.5)
    assert workload_fit.ks_distance(first, first) == 0


def test_cached_share_by_hand(tmp_path: Path) -> None:
    """Three prompts of two blocks: the second repeats one, the third both but one is not first."""
    path = tmp_path / "mooncake.jsonl"
    rows = [(1024, [1, 2]), (1024, [1, 3]), (1024, [4, 2])]
    path.write_text(
        "\n".join(
            f'{{"timestamp": {n}, "input_length": {p}, "output_length": 1, "hash_ids": {ids}}}'
            for n, (p, ids) in enumerate(rows)
        )
    )
    trace = read_trace(path)
    share = workload_fit.cached_share(trace.prefixes, trace.prompt_tokens_T)
    assert share == pytest.approx(512 / 3072)


def test_rag_preset_saves_as_much_as_its_trace(shared_data: Path) -> None:
    trace = read_trace(shared_data / "workloads" / "synthetic_trace.jsonl")
    truth = workload_fit.cached_share(trace.prefixes, trace.prompt_tokens_T)
    workload = Workload.parse(
        {"arrivals": {"poisson": {"rate_per_s": 4}}, "preset": "rag", "requests": len(trace)}
    )
    found = draw_demand(workload, DemandStreams.from_seed(3))
    prefixes = workload_fit.Prefixes(
        found.prefix_start, found.prefix_blocks.astype(np.int64), found.prefix_block_tokens
    )
    share = workload_fit.cached_share(prefixes, found.prompt_tokens)
    assert share == pytest.approx(truth, abs=0.03)
