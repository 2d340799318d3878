"""Cost per hour and per million tokens, and where prices come from."""

from __future__ import annotations

import pytest

from moesim.economics import cost_summary, gpu_hour_price, price_note
from moesim.errors import InputError
from moesim.hardware import load_gpu


def test_cost_by_hand() -> None:
    # 16 GPUs at 2.5 USD for half an hour: 20 USD for 4 million output and 12 million input tokens.
    assert cost_summary(16, 2.5, 1800.0, 4_000_000, 12_000_000) == {
        "usd_per_hour": 40.0,
        "usd_per_million_output_tokens": 5.0,
        "usd_per_million_total_tokens": 1.25,
    }


def test_no_tokens_have_no_price() -> None:
    cost = cost_summary(8, 2.0, 60.0, 0, 0)
    assert cost["usd_per_hour"] == 16.0
    assert cost["usd_per_million_output_tokens"] is None
    assert cost["usd_per_million_total_tokens"] is None
    assert cost_summary(8, 2.0, 60.0, 0, 10)["usd_per_million_total_tokens"] is not None


def test_cost_is_linear_in_gpus_price_and_time_and_inverse_in_tokens() -> None:
    base = cost_summary(8, 2.0, 100.0, 1000, 0)["usd_per_million_output_tokens"]
    assert base is not None
    for arguments, factor in (
        ((16, 2.0, 100.0, 1000, 0), 2.0),
        ((8, 6.0, 100.0, 1000, 0), 3.0),
        ((8, 2.0, 50.0, 1000, 0), 0.5),
        ((8, 2.0, 100.0, 4000, 0), 0.25),
    ):
        cost = cost_summary(*arguments)["usd_per_million_output_tokens"]
        assert cost == pytest.approx(base * factor)


def test_price_given_beats_price_shipped() -> None:
    gpu = load_gpu("h100-sxm")
    assert gpu_hour_price(gpu) == gpu.usd_per_gpu_hour == 2.95
    assert gpu_hour_price(gpu, 1.25) == 1.25
    assert gpu_hour_price(gpu, 0.0) == 0.0
    assert gpu_hour_price(gpu, kind="3-year") == 1.30


def test_notes_say_where_a_price_comes_from() -> None:
    gpu = load_gpu("h100-sxm")
    assert price_note(gpu).startswith("2.95 USD per GPU-hour: on-demand, 2026-05-20, trust B, http")
    assert price_note(gpu, 2.0) == "2.00 USD per GPU-hour, as given"


@pytest.mark.parametrize("price", [-0.01, float("nan"), float("inf")])
def test_impossible_prices_are_refused(price: float) -> None:
    with pytest.raises(InputError, match=r"^economics.usd_per_gpu_hour must be a finite price"):
        gpu_hour_price(load_gpu("b200"), price)


def test_unknown_kind_of_price_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"must be a price known for b300: 3-year; got 'on-demand'"
    ):
        gpu_hour_price(load_gpu("b300"), kind="on-demand")
