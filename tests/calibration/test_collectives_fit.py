"""The fit of exchange laws: exact on its own rows, and within 12 % on the published ones."""

from __future__ import annotations

import csv
import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from calibration.collectives_families import FAMILIES, LOW_LATENCY, PPLX
from calibration.collectives_fit import Family, errors, fit, predicted_s, preset, study
from calibration.collectives_rows import Row, read_rows
from moesim.costs.libraries import laws
from moesim.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(os.environ.get("MOESIM_TEST_FACTS", ROOT.parent / "shared" / "facts")) / "comm.csv"

HEADER = (
    "op,library,mode,gpu,interconnect,ep,ranks_per_node,tokens_per_rank,hidden,topk,dtype,"
    "latency_us,latency_sd_us,bandwidth_gbps_logical,bandwidth_kind,n_sms,source"
)
# DeepEP@dd758caf docs/legacy.md, pplx-kernels@2bd6e30f README.md.
ROWS = """
dispatch,DeepEP V1,normal,H800,IB,32,8,4096,7168,8,fp8,,,58,bottleneck RDMA,24,legacy
dispatch,DeepEP V1,low-latency (pure RDMA),H800,IB,8,8,128,7168,8,fp8,77,,98,RDMA,,legacy
combine,DeepEP V1,low-latency (pure RDMA),H800,IB,8,8,128,7168,8,bf16,114,,127,RDMA,,legacy
dispatch,DeepEP V1,low-latency (pure RDMA),H800,IB,16,8,128,7168,8,fp8,118,,63,RDMA,,legacy
combine,DeepEP V1,low-latency (pure RDMA),H800,IB,16,8,128,7168,8,bf16,195,,74,RDMA,,legacy
dispatch,DeepEP V1,low-latency (pure RDMA),H800,IB,32,8,128,7168,8,fp8,155,,48,RDMA,,legacy
combine,DeepEP V1,low-latency (pure RDMA),H800,IB,32,8,128,7168,8,bf16,273,,53,RDMA,,legacy
dispatch,pplx,IBGDA,H100 (?),IB,16,8,128,7168,8,fp8 dispatch/bf16 combine,622.4,1.7,,,,pplx
gemm,DeepGEMM,dense,H800,,,,,,,fp8,9.4,,,,,gemm
""".strip()


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    path = tmp_path / "comm.csv"
    path.write_text(f"{HEADER}\n{ROWS}\n")
    found, left_out = read_rows(path)
    assert [each.rows for each in left_out] == [1, 0]
    return found


def test_logical_bandwidth_becomes_time_by_deepeps_definition(rows: list[Row]) -> None:
    """4,096 tokens reach 3.6 of 4 nodes, the own one counted, at 58 GB/s."""
    assert rows[0].seconds == pytest.approx(4096 * 3.6 * 7392 / 58e9, rel=0.01)
    assert rows[0].load[1] == pytest.approx(4096 * 3 * 0.9, rel=0.02)  # hottest of other nodes'
    assert rows[1].copy_bytes == 7408
    assert rows[1].seconds == 77e-6


def test_parameters_that_made_the_rows_are_found_again(rows: list[Row]) -> None:
    truth = {name: each.prior * 1.05 for name, each in PPLX.parameters.items()}
    truth |= {"gda_pair_us": 6.0, "gda_dispatch_us": 80.0}
    made = PPLX.made(truth)
    pattern = rows[-1]
    some = []
    for tokens in (1, 8, 32, 128):
        for ep, domains in ((16, 2), (32, 4)):
            load = (tokens * 3.0, tokens * 5.0, tokens * 8.0 / ep, tokens * 4.0)
            row = dataclasses.replace(pattern, ep=ep, domains=domains, tokens=tokens, load=load)
            some.append(dataclasses.replace(row, seconds=predicted_s(made, row)))
    tight = Family(PPLX.parameters, PPLX.laws, PPLX.fields)
    found = tight.made(fit(tight, some))
    assert np.abs(errors(found, some)).max() < 0.01


def test_low_latency_rows_alone(rows: list[Row]) -> None:
    result = study(LOW_LATENCY, rows)
    assert np.abs(result.error).mean() < 0.03
    assert np.abs(result.held_out).mean() < 0.12
    low, high = (LOW_LATENCY.parameters["out"].low, LOW_LATENCY.parameters["out"].high)
    assert low < result.values["out"] <= high


def test_an_unknown_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="must have the columns"):
        read_rows(path)


@pytest.mark.skipif(not TABLE.is_file(), reason="needs ../shared/facts/comm.csv")
def test_published_rows_within_12_percent_and_deepep_held_out() -> None:
    found, _ = read_rows(TABLE)
    shipped = laws()
    exchanges = [row for row in found if row.law != "torch-all-to-all"]
    assert len(exchanges) == 122
    assert {row.ep for row in exchanges} == {8, 16, 32}
    for phase in ("dispatch", "combine"):
        for modes in (("deepep-normal", "deepep-v2"), ("deepep-low-latency",), ("pplx",)):
            mine = [row for row in exchanges if row.phase == phase and row.law in modes]
            assert np.abs(errors(shipped, mine)).mean() < 0.12, (phase, modes)
    assert np.abs(errors(shipped, exchanges)).mean() < 0.05
    held = [abs(float(error)) for family in FAMILIES[:2] for error in study(family, found).held_out]
    assert np.mean(held) < 0.06
    # What is shipped is what the fit gives.
    refitted = study(LOW_LATENCY, found).laws
    for key, law in refitted.items():
        assert shipped[key].up_share == pytest.approx(law.up_share, rel=1e-3)
        assert shipped[key].network_us == pytest.approx(law.network_us, rel=1e-3)


def test_the_preset_reads_back() -> None:
    text = preset(laws().values())
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(list(csv.DictReader(lines))) == len(laws())
