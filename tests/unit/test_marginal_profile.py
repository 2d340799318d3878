"""Marginal profiles: shares from counts, their file, and what the synthesiser makes of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.cli import main
from moesim.errors import InputError
from moesim.model import load_model
from moesim.routing.marginal_profile import MarginalProfile
from moesim.routing.profiles import completed_trace
from moesim.routing.statistics import expert_counts
from moesim.routing.trace import RoutingTrace
from tests.fixtures.recordings import imatrix

COUNTS_LE = np.array([[6, 2, 4, 0], [0, 0, 0, 0], [3, 3, 3, 3]])


def profile(**changes: Any) -> MarginalProfile:
    made = MarginalProfile.from_counts(COUNTS_LE, [3, 4, 5], 2, "toy", provenance={"from": "x"})
    return replace(made, **changes) if changes else made


def test_shares_by_hand() -> None:
    made = profile()
    np.testing.assert_allclose(made.share_LE, [[1.0, 1 / 3, 2 / 3, 0.0], [0.5] * 4])
    assert made.layers_L == (3, 5)
    assert (made.experts, made.top_k, made.tokens) == (4, 2, 6)


def test_targets_keep_to_the_shares_and_to_what_can_be_met() -> None:
    targets_LE = profile().targets(3)
    np.testing.assert_allclose(targets_LE.sum(axis=1), 2.0)
    np.testing.assert_allclose(targets_LE[2], 0.5, atol=1e-6)
    assert targets_LE[0].max() <= 0.98 * (1 + 1e-6)
    assert 0 < targets_LE[0, 3] < 1e-3
    full = MarginalProfile.from_counts(np.ones((1, 4), int), [0], 4, "all")
    np.testing.assert_allclose(full.targets(2), 1.0)


def test_a_profile_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    profile().save(path)
    assert list(tmp_path.iterdir()) == [path]
    made = MarginalProfile.open(path)
    np.testing.assert_allclose(made.share_LE, profile().share_LE, rtol=1e-6)
    assert (made.layers_L, made.model, made.tokens) == ((3, 5), "toy", 6)
    assert made.provenance == {"model": "toy", "from": "x"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "its format must be moesim-marginals-1"),
        ({"share": [[0.5, "x"]]}, "table of numbers"),
        ({"share": [[0.5], [0.5, 0.5]]}, "must be a marginal profile"),
        ({"share": [[2.0, 0, 0, 0], [0.5] * 4]}, "must be between 0 and 1"),
        ({"share": [[float("nan"), 1, 1, 0], [0.5] * 4]}, "must be between 0 and 1"),
        ({"share": [[-0.5, 1, 1, 0.5], [0.5] * 4]}, "must be between 0 and 1"),
        ({"share": [[0.1] * 4, [0.5] * 4]}, "must sum to top_k"),
        ({"share": []}, "must be"),
        ({"layers": [5, 3]}, "in rising order"),
        ({"layers": [3]}, "must number the rows"),
        ({"top_k": 9}, "must be 1 to 4"),
        ({"top_k": True}, "must hold whole numbers"),
        ({"tokens": -1}, "must hold whole numbers"),
        ({"model": "\x1b[2J"}, "must be printable"),
    ],
)
def test_unsound_profiles_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "p.json"
    profile().save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(InputError) as error:
        MarginalProfile.open(path)
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_the_synthesiser_keeps_to_what_was_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """llama.cpp's counts of Mixtral, through the command line, to a trace with these shares."""
    model = load_model("mixtral-8x7b")
    weights_LE = np.random.default_rng(0).uniform(0.5, 2.0, (32, 8))
    counts_LE = np.rint(weights_LE / weights_LE.sum(axis=1, keepdims=True) * 20_000)
    counts_LE[:, 0] += 20_000 - counts_LE.sum(axis=1)
    (tmp_path / "i.gguf").write_bytes(imatrix(counts_LE, 10, 1000, first_layer=0))
    made, out = tmp_path / "m.json", tmp_path / "t.safetensors"
    files = [str(tmp_path / "i.gguf"), "--model", "mixtral-8x7b"]
    assert main(["trace", "import", *files, "--out", str(made)]) == 0
    assert "Recognised imatrix: llama.cpp importance matrix" in capsys.readouterr().out
    synth = ["trace", "synth", "--model", "mixtral-8x7b", "--marginals", str(made)]
    assert main([*synth, "--tokens", "12000", "--out", str(out)]) == 0
    trace = RoutingTrace.open(out)
    found_LE = expert_counts(trace) / trace.tokens
    # Mixtral's last second choices are as likely for any expert: one of 1/9 comes out as 1/7.
    np.testing.assert_allclose(found_LE, 2 * counts_LE / 20_000, atol=0.04)
    assert trace.provenance["counts_format"] == "imatrix"
    capsys.readouterr()
    assert main(["trace", "import", *files, "--out", str(out)]) == 2
    assert "must end in .json" in capsys.readouterr().err
    other = MarginalProfile.open(made)
    with pytest.raises(InputError, match="must choose 4 of 32 experts as gpt-oss-20b does"):
        completed_trace(other, load_model("gpt-oss-20b"), 0)
    assert model.experts == other.experts
