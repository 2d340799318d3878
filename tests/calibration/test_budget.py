"""The error budget by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import numpy as np
import pytest

from calibration.validation.budget import budget
from calibration.validation.rows import PredictedRows
from tests.calibration.test_labels import RUN

A = replace(RUN, id="a", concurrency=4, ttft_s=1.0, tpot_s=0.010, version="1")


def test_one_factor_per_configuration_leaves_the_shape() -> None:
    """Ratios 2, 2 and 3 of one configuration: its level is 2, and 0, 0, 1/2 are left."""
    runs = tuple(
        replace(A, id=name, concurrency=c, ttft_s=t)
        for name, c, t in (("a", 4, 1.0), ("b", 8, 2.0), ("c", 16, 4.0))
    )
    predicted = np.array([(2.0, 0.01), (4.0, 0.01), (12.0, 0.01)])
    told = budget(PredictedRows(runs, predicted))["ttft"]
    assert told["error"] == {"mape": pytest.approx(133.33), "median_ape": 100.0}
    assert told["level_known"] == {"mape": pytest.approx(16.67), "median_ape": 0.0}
    assert told["other_version"]["rows"] == told["repeat"]["rows"] == 0


def test_versions_and_repeats_are_what_the_data_cannot_agree_on() -> None:
    """1 s and 4 s on two versions: 2 s is the best number, wrong by 1 and by 1/2. A repeat of the
    first version on another day counts there, and once, as their geometric mean, among versions.
    A rounded copy under another version's name is no measurement."""
    repeat = replace(A, id="r", measured=date(2026, 4, 2))
    other = replace(A, id="o", version="2", ttft_s=4.0)
    copy = replace(A, id="x", version="3", ttft_s=1.000004)
    runs = (A, repeat, other, copy)
    assert repeat.measured != A.measured
    told = budget(PredictedRows(runs, np.ones((4, 2))))["ttft"]
    assert told["other_version"] == {"rows": 2, "mape": 75.0, "median_ape": 75.0}
    assert told["repeat"]["rows"] == 0, "the same values are a copy, not a repeat"
    runs = (replace(A, ttft_s=0.5), replace(repeat, ttft_s=2.0), other)
    told = budget(PredictedRows(runs, np.ones((3, 2))))["ttft"]
    assert told["repeat"] == {"rows": 2, "mape": 75.0, "median_ape": 75.0}
    assert told["other_version"] == {"rows": 2, "mape": 75.0, "median_ape": 75.0}
