"""Labels of measured runs: the repair rules, copies and twins, and the whole file."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from calibration.runs.labels import (
    RULES,
    LabelledRun,
    conflicting_copies,
    faster_twins,
    label_runs,
    repair,
)
from calibration.runs.rows import (
    Parallelism,
    SiliconRun,
    read_disaggregated,
    read_runs,
    systems_folder,
)
from moesim.errors import InputError

RUN = SiliconRun(
    row=0,
    id="a",
    source="inferencex-2026-04-06",
    aggregated=True,
    engine="sglang",
    version="0.5.9",
    image="",
    model="deepseek-ai/DeepSeek-R1",
    gpu="b200_sxm",
    precision="fp8",
    gemm_format="fp8",
    moe_format="fp8_block",
    parallel=Parallelism(8, 1, 8, 1),
    isl=1024,
    osl=1024,
    concurrency=16,
    measured=date(2026, 4, 1),
    workflow_run="",
    ttft_s=0.1,
    tpot_s=0.01,
)
# Our names and those of the hand-made table.
NAMES = {
    "mtp_trt_r1_image": "mtp_trt_r1_image",
    "mixed_mtp_possible": "mixed_mtp_possible_trt_r1_2026-01-14",
    "mtp_qwen3.5_b200": "mtp_qwen3.5_b200",
    "mtp_r1_sglang_b200": "mtp_r1_sglang_b200",
    "cold_start": "cold_start_no_warmup",
    "b300_v3_8k_stall": "b300_v3_8k_stall",
    "multinode": "multinode_tp_label",
    "gptoss_h100_c512": "gptoss_h100_c512",
    "gptoss_trt_h200_c64": "gptoss_trt_h200_c64_cap",
    "nvfp4_gap_rows": "nvfp4_gap_rows",
    "kv_starved": "kv_starved_real",
}
# Where the rule reaches further than the table, which flags one of several copies of a run.
WIDER = {"mtp_r1_sglang_b200": 19, "gptoss_h100_c512": 2}


@pytest.mark.parametrize(
    ("written", "ran", "rule"),
    [
        (Parallelism(64, 1, 8, 8), Parallelism(8, 1, 1, 8), "tp_overcounted"),
        (Parallelism(4, 1, 2, 2), Parallelism(2, 1, 1, 2), "tp_overcounted"),
        (Parallelism(1, 16, 4, 4), Parallelism(1, 4, 1, 4), "dp_overcounted"),
        (Parallelism(4, 4, 1, 16), Parallelism(1, 4, 1, 4), "dp_overcounted"),
        (Parallelism(8, 1, 8, 1), Parallelism(8, 1, 8, 1), ""),
        (Parallelism(8, 1, 1, 8), Parallelism(8, 1, 1, 8), ""),
    ],
)
def test_overcounted_parallelism(written: Parallelism, ran: Parallelism, rule: str) -> None:
    assert repair(replace(RUN, parallel=written)) == (ran, rule)
    elsewhere = replace(RUN, parallel=written, source="inferencex-2026-03-25")
    assert repair(elsewhere) == (written, "")


def test_no_rule_reads_what_was_measured() -> None:
    slow = replace(RUN, ttft_s=50.0, tpot_s=3.0)
    assert [rule.applies(slow) for rule in RULES] == [rule.applies(RUN) for rule in RULES]
    assert repair(slow) == repair(RUN)


def test_copies_name_the_first_run_with_the_same_values() -> None:
    again = replace(RUN, id="b", parallel=Parallelism(64, 1, 8, 8))
    first, copy = label_runs([RUN, again])
    assert (first.copy_of, copy.copy_of) == ("", "a")
    assert len(conflicting_copies([RUN, again])) == 1


def test_the_faster_of_two_runs_with_one_label() -> None:
    faster = replace(RUN, id="fast", tpot_s=0.009)
    assert faster_twins([RUN, faster]) == {"fast"}
    assert not faster_twins([RUN, replace(faster, tpot_s=0.0099)])
    assert not faster_twins([RUN, replace(faster, concurrency=32)])


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"silicon_sample\.csv"):
        systems_folder(tmp_path)
    (tmp_path / "silicon_sample.csv").write_text("id,silicon_data_source\nx,y\n", "utf-8")
    with pytest.raises(InputError, match="line 2"):
        read_runs(tmp_path)


@pytest.fixture(scope="module")
def labelled(aic_package: Path) -> tuple[LabelledRun, ...]:
    return label_runs(read_runs(aic_package / "systems"))


def test_the_whole_file(aic_package: Path, labelled: tuple[LabelledRun, ...]) -> None:
    assert len(labelled) == 3619
    assert len(read_disaggregated(aic_package / "systems")) == 1602
    assert sum(each.run.is_moe for each in labelled) == 2556
    repairs = Counter(each.repair for each in labelled)
    assert repairs["tp_overcounted"] + repairs["dp_overcounted"] == 426
    assert repairs["scripted"] == 218


def test_repaired_copies_agree(aic_package: Path, labelled: tuple[LabelledRun, ...]) -> None:
    """The proof of the repair: 71 measurements stand in the file under two different labels, and
    under one after it.
    """
    assert len(conflicting_copies(read_runs(aic_package / "systems"))) == 71
    assert conflicting_copies(each.run for each in labelled) == {}


def test_agreement_with_the_hand_made_table(
    shared_data: Path, labelled: tuple[LabelledRun, ...]
) -> None:
    text = (shared_data / "silicon" / "labels.csv").read_text("utf-8")
    table = {row["id"]: row for row in csv.DictReader(text.splitlines())}
    flagged = {row_id: row["flag"].split(";") for row_id, row in table.items()}
    for ours, theirs in NAMES.items():
        found = {each.run.id for each in labelled if ours in each.flags}
        known = {row_id for row_id, flags in flagged.items() if theirs in flags}
        assert known <= found, ours
        assert len(found - known) == WIDER.get(ours, 0), ours
    for each in labelled:
        row = table[each.run.id]
        if each.repair == "scripted":  # the table was made without the scripts' history
            assert row["repair"] == "False"
            continue
        assert (row["repair"] == "True") == bool(each.repair)
        if each.repair:
            known = [int(float(row[key])) for key in ("tp", "attention_dp", "moe_tp", "moe_ep")]
            parallel = each.run.parallel
            ran = [parallel.tp, parallel.attention_dp, parallel.moe_tp, parallel.moe_ep]
            assert ran == known
    # Values that a reader of the table rounded in the last digit count as copies in one only.
    copies = sum((row["duplicate_of_earlier"] == "True") for row in table.values())
    assert abs(copies - sum(bool(each.copy_of) for each in labelled)) <= 7
