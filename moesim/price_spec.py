"""The `economics:` section of a scenario: what a GPU-hour costs."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from moesim.spec import Spec, broken_rule

Usd = Annotated[float, Field(ge=0.0, le=1e7)]


class OwnedSpec(Spec):
    """A GPU of one's own: inputs of the cost of ownership (moesim.economics.owned).

    `capex_usd_per_gpu`: the GPU with its share of server, network and racks. `power_w`: what that
    draws at full load; None: 1.82 x the GPU's limit, as a server of eight H100s is rated (10.2 kW
    over 8 x 700 W). `load`: share of it drawn on average. `upkeep`: repairs, spares, software and
    people, a year, as a share of the capex. `in_service`: share of the hours in which the machine
    serves at all; an idle one that could serve counts as in service. The defaults are assumptions,
    of trust C, but for `hosting_usd_per_kw_month`: 150 to 250 in a colocation, 2026.
    """

    capex_usd_per_gpu: Usd
    years: float = Field(4.0, gt=0.0, le=30.0)
    interest: float = Field(0.0, ge=0.0, le=1.0)
    upkeep: float = Field(0.05, ge=0.0, le=1.0)
    power_w: float | None = Field(None, ge=0.0, le=1e5)
    load: float = Field(1.0, ge=0.0, le=1.0)
    hosting_usd_per_kw_month: float = Field(200.0, ge=0.0, le=1e5)
    in_service: float = Field(1.0, gt=0.0, le=1.0)


class EconomicsSpec(Spec):
    """Prices; None takes the dated preset."""

    usd_per_gpu_hour: float | None = Field(None, ge=0.0, le=1000.0)
    price: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    owned: OwnedSpec | None = None
    usd_per_kwh: float | None = Field(None, ge=0.0, le=100.0)
    pue: float | None = Field(None, ge=1.0, le=10.0)

    @model_validator(mode="after")
    def _one_price(self) -> Self:
        names = ("usd_per_gpu_hour", "price", "owned")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise broken_rule(given[1], f"cannot be given together with {given[0]}")
        return self
