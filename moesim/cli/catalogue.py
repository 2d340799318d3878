"""`moesim models`, `gpus`, `scenarios`, `schema`: what ships."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moesim.cli.options import JsonOption
from moesim.cli.output import WIDE, console, print_json, print_notes, print_table

if TYPE_CHECKING:
    from moesim.hardware import GPU


def models(as_json: JsonOption = False) -> None:
    """Models: parameters, bytes to host them, bytes of keys and values per token."""
    from moesim.model import NOT_MODELLED, model_names
    from moesim.report.words import significant
    from moesim.units import GB, KB

    rows = [_model(name) for name in model_names()]
    if as_json:
        print_json(rows)
        return
    header = ["model", "total", "active", "experts", "format", "GB", "KV kB", "status"]
    shown = [
        [
            row["name"],
            significant(row["total_parameters"] / 1e9, 3),
            significant(row["active_parameters"] / 1e9, 3),
            f"{row['top_k']}/{row['experts']}" if row["experts"] else "dense",
            row["native_precision"],
            significant(row["hosting_bytes"] / GB, 3),
            significant(row["kv_bytes_per_token"] / KB, 3),
            row["status"],
        ]
        for row in rows
    ]
    out = console()
    out.print(
        "Parameters in billions, in all and active for a token; GB to host the weights in their "
        "published format; kB of keys and values per token of context, in bf16.",
        soft_wrap=out.width == WIDE,
    )
    print_table(out, header, shown)
    unpublished = [row for row in rows if row["status"] in ("rumoured", "assumed")]
    print_notes(out, (f"{row['name']} is {row['status']}: {row['note']}" for row in unpublished))
    print_notes(out, (f"{name} cannot be modelled: {why}." for name, why in NOT_MODELLED.items()))


def _model(name: str) -> dict[str, Any]:
    from moesim.model import load_model
    from moesim.precision import make_precision, native_formats
    from moesim.sharding import Sharding, kv_bytes_per_token_per_gpu, weight_bytes_per_gpu

    model = load_model(name)
    count = model.parameters()
    formats = native_formats(model.native_precision, model.is_moe)
    precision = make_precision(*formats, "bf16", None)
    kv = kv_bytes_per_token_per_gpu(model, Sharding(), precision)
    return {
        "name": name,
        "family": model.family,
        "status": model.status,
        "total_parameters": count.total,
        "active_parameters": count.active,
        "published_total_parameters": model.published_total,
        "published_active_parameters": model.published_active,
        "layers": model.layers,
        "moe_layers": len(model.moe_layers),
        "experts": model.experts,
        "top_k": model.top_k,
        "native_precision": model.native_precision,
        "hosting_bytes": weight_bytes_per_gpu(model, Sharding(), precision)["total"],
        "kv_bytes_per_token": kv.full + kv.sliding,
        "kv_bytes_per_token_in_windows": kv.sliding,
        "window_tokens": kv.window,
        "max_context_tokens": model.max_context,
        "source": model.source,
        "note": model.note,
    }


def gpus(as_json: JsonOption = False) -> None:
    """GPUs and fabrics: datasheet figures, prices, and where they come from."""
    from moesim.hardware import fabric_names, gpu_names, load_fabric, load_gpu
    from moesim.report.words import money, significant
    from moesim.units import GB, TB, TERA, US

    cards = [load_gpu(name) for name in gpu_names()]
    if as_json:
        print_json([_gpu(card) for card in cards])
        return
    header = ["GPU", "mem GB", "TB/s", "bf16", "fp8", "fp4", "link GB/s", "of"]
    shown = [
        [
            card.name,
            significant(card.memory_bytes / GB, 3),
            significant(card.memory_bytes_per_s / TB, 3),
            *(_teraflops(card.flops_per_s.get(kind), TERA) for kind in ("bf16", "fp8", "fp4")),
            significant(card.scale_up_bytes_per_s / GB, 3),
            f"{card.scale_up_domain}",
            significant(card.nic_bytes_per_s / GB, 3),
            f"{card.power_w:,.0f}",
            money(card.usd_per_gpu_hour),
        ]
        for card in cards
    ]
    out = console()
    out.print(
        "GPUs: memory and its bandwidth; dense TFLOP/s; scale-up link per direction and how many "
        "GPUs it joins; network card; W; price per hour.",
        soft_wrap=out.width == WIDE,
    )
    print_table(out, [*header, "NIC GB/s", "W", "price"], shown)
    links = [load_fabric(name) for name in fabric_names("scale-out")]
    fabrics = [
        [
            link.name,
            f"{significant(link.bytes_per_s / GB, 3)} GB/s",
            f"{significant(link.latency_s / US, 3)} µs",
            f"{100 * link.reached_fraction:.0f} %",
            link.trust,
        ]
        for link in links
    ]
    header = ["fabric", "bandwidth", "latency", "reached", "trust"]
    out.print("Fabrics between nodes")
    print_table(out, header, fabrics)
    print_notes(
        out,
        ["prices are rental prices of their date; `moesim prices` and `--json` say more of them"],
    )


def _teraflops(rate: float | None, tera: float) -> str:
    return "-" if rate is None else f"{rate / tera:.0f}"


def _gpu(card: GPU) -> dict[str, Any]:
    return {
        "name": card.name,
        "memory_bytes": card.memory_bytes,
        "memory_bytes_per_s": card.memory_bytes_per_s,
        "flops_per_s": dict(card.flops_per_s),
        "scale_up_name": card.scale_up_name,
        "scale_up_bytes_per_s": card.scale_up_bytes_per_s,
        "scale_up_domain": card.scale_up_domain,
        "nic_bytes_per_s": card.nic_bytes_per_s,
        "fabric": card.fabric_name,
        "power_w": card.power_w,
        "usd_per_gpu_hour": card.usd_per_gpu_hour,
        "prices": [vars(price) for price in card.prices],
        "trust": card.trust,
        "date": card.date,
        "source": card.source,
    }


def scenarios(as_json: JsonOption = False) -> None:
    """Scenarios: ready-made studies, each with the question it answers."""
    from moesim.errors import InputError
    from moesim.scenario import load_scenario, scenario_names, scenarios_folder

    rows = []
    for name in scenario_names():
        row = {"name": name, "file": str(scenarios_folder() / f"{name}.yaml")}
        try:
            scenario = load_scenario(name)
            rows.append({**row, "model": scenario.model, "question": scenario.question})
        except InputError as error:
            rows.append({**row, "model": "", "question": f"cannot be read: {error}"})
    if as_json:
        print_json(rows)
        return
    out = console()
    shown = [[row["name"], row["question"] or row["model"]] for row in rows]
    print_table(out, ["scenario", "question"], shown, numbers=False)
    out.print("Run one: moesim run NAME", soft_wrap=True)


def schema() -> None:
    """The JSON Schema of scenario files, for editors."""
    from moesim.scenario import Scenario

    print_json(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", **Scenario.model_json_schema()}
    )
