"""Prices of GPU-hours and APIs, and what a run costs at them."""

from __future__ import annotations

import pytest

from moesim.economics import cost_summary, gpu_hour
from moesim.economics.api_prices import ApiPrice, api_prices, find_api_price, prices_of_model
from moesim.economics.owned import annuity, energy_presets, owned_parts
from moesim.errors import InputError
from moesim.hardware import gpu_names, load_gpu
from moesim.model import model_names
from moesim.price_spec import EconomicsSpec, OwnedSpec


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


def test_a_scenario_chooses_its_price() -> None:
    gpu = load_gpu("h100-sxm")
    assert gpu_hour(EconomicsSpec(), gpu).usd == gpu.usd_per_gpu_hour == 2.95
    assert gpu_hour(EconomicsSpec(usd_per_gpu_hour=1.25), gpu).usd == 1.25
    assert gpu_hour(EconomicsSpec(usd_per_gpu_hour=0.0), gpu).usd == 0.0
    assert gpu_hour(EconomicsSpec(price="3-year"), gpu).usd == 1.30
    assert gpu_hour(EconomicsSpec(price="owned-neocloud"), gpu).usd == 1.69


def test_notes_say_where_a_price_comes_from() -> None:
    gpu = load_gpu("h100-sxm")
    found = gpu_hour(EconomicsSpec(), gpu).note
    assert found.startswith("2.95 USD per GPU-hour: on-demand, 2026-05-20, trust B, http")
    given = gpu_hour(EconomicsSpec(usd_per_gpu_hour=2.0), gpu).note
    assert given == "2.00 USD per GPU-hour, as given"


def test_unknown_kind_of_price_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"^economics.price must be a price known for b300: 3-year, owned-"
    ):
        gpu_hour(EconomicsSpec(price="on-demand"), load_gpu("b300"))


def test_only_one_price_may_be_chosen() -> None:
    with pytest.raises(InputError, match=r"cannot be given together with usd_per_gpu_hour"):
        EconomicsSpec.parse({"usd_per_gpu_hour": 0.0, "price": "3-year"}, "economics")
    with pytest.raises(InputError, match=r"owned cannot be given together with price"):
        EconomicsSpec.parse({"price": "3-year", "owned": {"capex_usd_per_gpu": 1}}, "economics")


def test_cost_of_ownership_by_hand() -> None:
    """35,040 USD over 4 years are 1 USD an hour; 1 kW at half load, PUE 1.5 and 0.10 USD per kWh is
    0.075 USD; 146 USD per kW and month are 1752 a year, 0.20 USD an hour; upkeep 10 % is 0.40."""
    spec = OwnedSpec(
        capex_usd_per_gpu=35_040,
        years=4,
        upkeep=0.1,
        power_w=1000,
        load=0.5,
        hosting_usd_per_kw_month=146,
    )
    parts = owned_parts(spec, 700.0, usd_per_kwh=0.10, pue=1.5)
    assert parts == pytest.approx(
        {"capital": 1.0, "upkeep": 0.4, "electricity": 0.075, "hosting": 0.2}
    )
    half = owned_parts(spec.model_copy(update={"in_service": 0.5}), 700.0, 0.10, 1.5)
    assert half == pytest.approx({name: 2 * usd for name, usd in parts.items()})
    price = gpu_hour(EconomicsSpec(owned=spec, usd_per_kwh=0.10, pue=1.5), load_gpu("h100-sxm"))
    assert price.usd == pytest.approx(1.675)
    assert "capital 1.000, upkeep 0.400" in price.note
    assert "usd_per_kwh 0.1 (as given)" in price.note


def test_annuity_repays_the_sum_with_interest() -> None:
    assert annuity(4.0, 0.0) == 0.25
    rate = annuity(3.0, 0.1)
    left = 1.0
    for _ in range(3):
        left = left * 1.1 - rate
    assert left == pytest.approx(0.0, abs=1e-12)


def test_power_of_an_owned_gpu_defaults_to_its_share_of_a_server() -> None:
    spec = OwnedSpec(capex_usd_per_gpu=0, upkeep=0, hosting_usd_per_kw_month=0)
    assert owned_parts(spec, 700.0, 1.0, 1.0)["electricity"] == pytest.approx(10.2 / 8)


def test_an_owned_h100_costs_about_what_others_publish() -> None:
    """48,000 USD a GPU with its network (a public build of 2024) against 1.30 to 1.69 published."""
    price = gpu_hour(EconomicsSpec(owned=OwnedSpec(capex_usd_per_gpu=48_000)), load_gpu("h100-sxm"))
    assert 1.3 < price.usd < 1.69 * 1.5


def test_energy_presets_have_dates_and_sources() -> None:
    presets = energy_presets()
    assert presets["pue"].value > 1.0
    assert all(each.date and each.source for each in presets.values())


def test_every_gpu_that_is_owned_somewhere_is_cheaper_owned_by_a_hyperscaler() -> None:
    owned = 0
    for name in gpu_names():
        kinds = {price.kind: price.usd_per_gpu_hour for price in load_gpu(name).prices}
        if "owned-neocloud" in kinds:
            owned += 1
            assert kinds["owned-hyperscaler"] < kinds["owned-neocloud"]
    assert owned == 9


def test_api_price_with_a_cached_share_by_hand() -> None:
    price = ApiPrice("a", "", 0.50, 0.10, 2.0)
    # Of 4 tokens 3 are prompts, of which 40 % cached: 0.75 (0.6 x 0.5 + 0.4 x 0.1) + 0.25 x 2.
    assert price.usd_per_token(0.75, 0.4) == pytest.approx((0.75 * 0.34 + 0.5) / 1e6)
    assert price.usd_per_token(1.0, 1.0) == pytest.approx(0.1e-6)
    without = ApiPrice("b", "", 0.50, None, 2.0)
    assert without.usd_per_token(0.75, 0.4) == without.usd_per_token(0.75, 0.0)


def test_shares_outside_0_to_1_are_refused() -> None:
    price = ApiPrice("a", "", 0.50, 0.10, 2.0)
    for shares in ((1.1, 0.0), (0.5, -0.1), (float("nan"), 0.0)):
        with pytest.raises(InputError, match="must be from 0 to 1"):
            price.usd_per_token(*shares)


def test_shipped_api_prices_are_dated_and_of_shipped_models() -> None:
    prices = api_prices()
    assert len({price.name for price in prices}) == len(prices) > 50
    known = {"", *model_names()}
    for price in prices:
        assert price.date
        assert price.source
        assert price.trust in "ABC"
        assert price.model in known, price.name
        assert 0 < price.input <= price.output, price.name
        assert price.cached_input is None or price.cached_input < price.input, price.name


def test_prices_of_a_model_are_the_cheapest_first() -> None:
    found = prices_of_model("deepseek-v3")
    assert found[0].name == "openrouter/deepseek-chat-v3-0324"
    assert find_api_price("deepseek/deepseek-chat").cached_input == 0.07
    assert prices_of_model("generic-moe-400b-a30b") == ()


def test_an_api_price_of_ones_own() -> None:
    assert find_api_price("0.5,2").usd_per_token(0.5) == pytest.approx(1.25e-6)
    assert find_api_price("0.5,0.1,2").cached_input == 0.1


@pytest.mark.parametrize("text", ["1", "1,2,3,4", "a,b", "-1,2", "nan,1", "1,inf", "deepseek"])
def test_bad_api_prices_are_one_line(text: str) -> None:
    with pytest.raises(InputError, match=r"^--api must be"):
        find_api_price(text)
