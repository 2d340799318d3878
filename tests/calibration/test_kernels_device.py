"""What is asked of CUDA, with a stand-in that notes it: the order of calls, and their units."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from calibration.kernels import device as devices
from calibration.kernels.device import find_device
from calibration.kernels.timing import CudaTimer

MIB = 2**20
SPUN: list[Any] = []


class Cuda:
    """torch.cuda, as far as it is used; `capturable` says whether a graph can be captured."""

    def __init__(self, capturable: bool = True) -> None:
        self.capturable, self.log = capturable, []  # type: ignore[var-annotated]
        outer = self

        class Graph:
            def replay(self) -> None:
                outer.log.append("replay")

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                outer.log.append("record")

            def synchronize(self) -> None:
                outer.log.append("wait")

            def elapsed_time(self, end: Any) -> float:
                return 2.5  # milliseconds

        self.CUDAGraph, self.Event = Graph, Event

    def synchronize(self) -> None:
        self.log.append("synchronize")

    @contextmanager
    def graph(self, graph: Any) -> Iterator[None]:
        self.log.append("capture")
        yield
        if not self.capturable:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.log.append("captured")


def test_calls_are_captured_once_and_replayed_between_two_events() -> None:
    cuda = Cuda()
    timer = CudaTimer(SimpleNamespace(cuda=cuda))
    run = timer.record([lambda: cuda.log.append("a"), lambda: cuda.log.append("b")])
    assert timer.launch == "graph"
    assert timer.seconds(run, 3) == 2.5e-3
    captured = ["synchronize", "capture", "a", "b", "captured"]
    assert cuda.log == [*captured, "record", *["replay"] * 3, "record", "wait"]


def test_what_cannot_be_captured_is_launched_one_by_one_and_says_so() -> None:
    cuda = Cuda(capturable=False)
    timer = CudaTimer(SimpleNamespace(cuda=cuda))
    run = timer.record([lambda: cuda.log.append("a")])
    assert timer.launch == "eager"
    cuda.log.clear()
    timer.seconds(run, 2)
    assert cuda.log == ["record", "a", "a", "record", "wait"]
    assert CudaTimer(SimpleNamespace(cuda=cuda), graphs=False).record([]) is not None
    assert "capture" not in cuda.log


def torch_with(name: str, capability: tuple[int, int]) -> Any:
    about = SimpleNamespace(name=name, L2_cache_size=50 * MIB, uuid="1234-abcd")
    cuda = SimpleNamespace(
        is_available=lambda: True,
        set_device=lambda index: None,
        get_device_properties=lambda place: about,
        mem_get_info=lambda index: (70_000 * MIB, 80_000 * MIB),
        get_device_capability=lambda index: capability,
        device_count=lambda: 4,
        nccl=SimpleNamespace(version=lambda: (2, 27, 3)),
    )
    return SimpleNamespace(
        cuda=cuda,
        __version__="2.13.0",
        version=SimpleNamespace(cuda="12.8", hip=None),
        distributed=SimpleNamespace(is_available=lambda: True, is_nccl_available=lambda: True),
        _grouped_mm=None,
        bfloat16="bfloat16",
        randn=lambda shape, dtype, device: shape,
        mm=lambda x, y: SPUN.append(x),
    )


@pytest.mark.parametrize(
    ("name", "capability", "grouped", "fp8"),
    [
        ("NVIDIA H100 80GB HBM3", (9, 0), True, True),
        ("NVIDIA B200", (10, 0), True, True),
        ("NVIDIA L40S", (8, 9), False, True),
        ("NVIDIA A100-SXM4-80GB", (8, 0), False, False),
    ],
)
def test_a_gpu_is_described_by_what_it_can_do(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    capability: tuple[int, int],
    grouped: bool,
    fp8: bool,
) -> None:
    monkeypatch.setattr(devices, "load_torch", lambda: torch_with(name, capability))
    found = find_device()
    assert (found.grouped, found.fp8, found.devices) == (grouped, fp8, 4)
    assert found.l2_bytes == 50 * MIB
    assert 0 < found.operand_bytes < 70_000 * MIB
    assert found.machine() == {"device": name, "torch": "2.13.0", "cuda": "12.8"}


def test_driver_and_clocks_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    SPUN.clear()

    def smi(command: list[str], **how: Any) -> Any:
        assert SPUN  # under load: an idle GPU's clocks say nothing
        asked.append(command)
        out = "570.86.15, 1980 MHz, 2619 MHz, 1980 MHz, 700.00 W, 41\n"
        return subprocess.CompletedProcess(command, 0, out, "")

    monkeypatch.setattr(devices, "load_torch", lambda: torch_with("NVIDIA H200", (9, 0)))
    monkeypatch.setattr(devices.subprocess, "run", smi)
    state = find_device().state()
    assert asked[0][:2] == ["nvidia-smi", "--id=GPU-1234-abcd"]
    assert state["driver_version"] == "570.86.15"
    assert state["clocks.sm"] == "1980 MHz"
    assert state["power.limit"] == "700.00 W"
    assert state["nccl"] == "2.27.3"


@pytest.mark.parametrize("error", [FileNotFoundError(), subprocess.TimeoutExpired("x", 1)])
def test_a_missing_tool_leaves_them_out(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def smi(command: list[str], **how: Any) -> Any:
        raise error

    monkeypatch.setattr(devices, "load_torch", lambda: torch_with("NVIDIA H200", (9, 0)))
    monkeypatch.setattr(devices.subprocess, "run", smi)
    assert set(find_device().state()) == {"device", "torch", "cuda", "date", "nccl"}
