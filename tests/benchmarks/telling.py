"""The suite's figures in words and columns."""

from __future__ import annotations

from typing import Any

GIGA, MEGA = 1e9, 1e6


def tell(found: dict[str, Any]) -> None:
    """Print everything that was measured."""
    of = found["machine"]
    memory = found["memory"]
    print(
        f"{of['processor']}, {of['cores']} cores, {of['system']}, Python {of['python']}, "
        f"numpy {of['numpy']}, numba {of['numba']}, load {of['load_average'][0]}"
    )
    print(
        f"memory: reads {memory['read_bytes_per_s'] / GIGA:.1f} GB/s, copies "
        f"{memory['copy_bytes_per_s'] / GIGA:.1f} GB/s, by one core"
    )
    if found.get("cases"):
        _cases(found["cases"])
    for row in found.get("growth", ()):
        print(
            f"growth {row['name']:30} {row['requests']}: loop {row['loop_s_exponent']:.3f}, "
            f"process {row['wall_s_exponent']:.3f}, memory {row['peak_bytes_exponent']:.3f}"
        )
    for shape in found.get("counting", {}).get("shapes", ()):
        _counting(shape)
    for row in found.get("startup", ()):
        _startup(row)
    if found.get("vidur"):
        _vidur(found["vidur"])


def _cases(cases: list[dict[str, Any]]) -> None:
    print(
        f"\n{'case':32} {'requests':>9} {'loop/s':>9} {'min':>8} {'max':>8} {'process/s':>9} "
        f"{'command/s':>9} {'us/step':>8} {'steps/req':>9} {'G ids/s':>8} {'x time':>8} {'MB':>6}"
    )
    for of in cases:
        if "loop_requests_per_s" not in of:
            print(f"{of['name']:32} {of['requests']:9,} {of.get('error') or of.get('cut')}")
            continue
        loop = of["loop_requests_per_s"]
        command = of.get("command_requests_per_s", {}).get("median", 0.0)
        step_us = of["loop_s"]["median"] / max(1, of["steps"]) * 1e6
        print(
            f"{of['name']:32} {of['requests']:9,} {loop['median']:9,.0f} {loop['min']:8,.0f} "
            f"{loop['max']:8,.0f} {of['process_requests_per_s']['median']:9,.0f} {command:9,.0f} "
            f"{step_us:8.2f} {of['steps_per_request']:9.1f} "
            f"{of.get('ids_per_s', {}).get('median', 0.0) / GIGA:8.2f} "
            f"{of['times_real_time']['median']:8.1f} {of['peak_bytes']['median'] / MEGA:6,.0f}"
            f"{'  ' + of['cut'] if 'cut' in of else ''}"
        )


def _counting(of: dict[str, Any]) -> None:
    rates = {name: of[name]["median"] / GIGA for name in of if isinstance(of[name], dict)}
    told = ", ".join(f"{name.replace('_', ' ')} {rate:.2f}" for name, rate in rates.items())
    print(f"\ncounting {tuple(of['shape'])}, G ids/s: {told}")
    print(
        f"  engine over plain: random {of['random_times_plain']:.2f}, contiguous "
        f"{of['contiguous_times_plain']:.2f}; of read bandwidth: random "
        f"{of['random_share_of_read']:.0%}, contiguous {of['contiguous_share_of_read']:.0%}"
    )
    chunks = ", ".join(f"{each['tokens']}: {each['us']['median']:.1f}" for each in of["chunks"])
    print(f"  us for a chunk of so many tokens: {chunks}")


def _startup(row: dict[str, Any]) -> None:
    told = ", ".join(
        f"{name[:-2].replace('_', ', ')} {of['median']:.2f} s"
        for name, of in row.items()
        if isinstance(of, dict)
    )
    print(f"start-up {row['name']}, {row['requests']:,} requests: {told}")


def _vidur(of: dict[str, Any]) -> None:
    if "error" in of:
        print(f"Vidur: {of['error']}")
        return
    print(f"\nVidur {of['version']}, {of['requests']:,} requests, in turns")
    for name, each in of["simulators"].items():
        print(
            f"  {name:18} requests/s: loop {each['loop_requests_per_s']['median']:9,.0f} "
            f"({each['times_vidur_loop']['median']:5.1f} x Vidur), process "
            f"{each['process_requests_per_s']['median']:7,.0f} "
            f"({each['times_vidur_process']['median']:5.1f} x); TPOT "
            f"{each['tpot_s'] * 1e3:5.1f} ms, {each['steps_per_request']:5.1f} steps a request, "
            f"{each['peak_bytes']['median'] / MEGA:6,.0f} MB"
        )
