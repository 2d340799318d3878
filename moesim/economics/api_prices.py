"""What managed APIs charge: shipped prices with source and date, or one's own."""

from __future__ import annotations

import csv
import difflib
import functools
import math
from dataclasses import dataclass

from moesim.errors import InputError
from moesim.presets import read_preset

MILLION = 1e6


@dataclass(frozen=True)
class ApiPrice:
    """USD per million tokens; `cached_input` None: prompt tokens found in a cache cost as others.

    `model` is the shipped model that it serves, empty where none is known; `product`: what is sold,
    where that is not the model itself but another of its shape. `hours`: those in which the price
    holds, empty for all day.
    """

    name: str
    model: str
    input: float
    cached_input: float | None
    output: float
    date: str = ""
    trust: str = ""
    note: str = ""
    source: str = "as given"
    product: str = ""
    hours: str = ""

    @property
    def about(self) -> str:
        """What to know of it in a list: another product, hours in which it holds, its note."""
        hours = f"off-peak hours only: {self.hours}" if self.hours else ""
        return "; ".join(part for part in (self.product, hours, self.note) if part)

    def usd_per_token(self, input_share: float, cached_share: float = 0.0) -> float:
        """Mean price of a token, where `input_share` of all tokens are prompts and `cached_share`
        of those are found in the provider's cache."""
        for name, share in (("input_share", input_share), ("cached_share", cached_share)):
            if not 0.0 <= share <= 1.0:
                raise InputError(name, "must be from 0 to 1", share)
        cached = self.input if self.cached_input is None else self.cached_input
        prompt = (1.0 - cached_share) * self.input + cached_share * cached
        return (input_share * prompt + (1.0 - input_share) * self.output) / MILLION


@functools.cache
def api_prices() -> tuple[ApiPrice, ...]:
    """The shipped prices, in the order of the table."""
    lines = (line for line in read_preset("api_prices.csv").splitlines() if line[:1] != "#")
    return tuple(
        ApiPrice(
            name=row["name"],
            model=row["model"],
            input=float(row["input_usd_per_million"]),
            cached_input=_optional(row["cached_input_usd_per_million"]),
            output=float(row["output_usd_per_million"]),
            date=row["date"],
            trust=row["trust"],
            note=row["note"],
            source=row["source"],
            product=row["product"],
            hours=row["hours"],
        )
        for row in csv.DictReader(lines)
    )


def _optional(text: str) -> float | None:
    return float(text) if text else None


def prices_of_model(model: str) -> tuple[ApiPrice, ...]:
    """What APIs charge all day for a shipped model, by the price of equal input and output.

    Other products of the model's shape (a reasoning model, a later release) only where none sells
    the model itself.
    """
    found = [price for price in api_prices() if price.model == model and not price.hours]
    own = [price for price in found if not price.product]
    return tuple(sorted(own or found, key=lambda price: price.usd_per_token(0.5)))


def check_all_day(price: ApiPrice) -> ApiPrice:
    """The price; InputError where it holds some hours only, which says nothing of a day's bill."""
    if price.hours:
        rule = f"must hold all day; this price holds {price.hours}"
        hint = "`moesim prices` lists those of all day"
        raise InputError("--api", rule, price.name, hint)
    return price


def find_api_price(text: str) -> ApiPrice:
    """A shipped price by its name, or one's own as ``INPUT,OUTPUT`` or ``INPUT,CACHED,OUTPUT``.

    In USD per million tokens. InputError with the closest names otherwise.
    """
    if "," in text:
        return _own(text)
    known = {price.name: price for price in api_prices()}
    if text in known:
        return check_all_day(known[text])
    close = [name for name in known if text.lower() in name] or difflib.get_close_matches(
        text.lower(), known, n=3, cutoff=0.4
    )
    hint = f"did you mean {', '.join(close[:4])}?" if close else "`moesim prices` lists them"
    rule = "must be a shipped price or INPUT,CACHED,OUTPUT in USD per million tokens"
    raise InputError("--api", rule, text, hint)


def _own(text: str) -> ApiPrice:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (2, 3) or not all(0 <= x < 1e6 and math.isfinite(x) for x in values):
        rule = "must be INPUT,OUTPUT or INPUT,CACHED,OUTPUT, in USD per million tokens"
        raise InputError("--api", rule, text)
    cached = values[1] if len(values) == 3 else None
    return ApiPrice("your API price", "", values[0], cached, values[-1])
