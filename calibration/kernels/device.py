"""The device that is measured: which one it is, what it can do, and what to note about it."""

from __future__ import annotations

import datetime
import importlib
import platform
import re
import subprocess
from dataclasses import dataclass
from typing import Any

from moesim.errors import InputError

INSTALL = "pip install 'moesim[calibration]'"

# What the driver calls a GPU -> moesim's name. Other memory sizes, PCIe cards and slices of a GPU
# (MIG) have other rates: they match nothing.
DEVICES = (
    (r"A100-SXM4-80GB$", "a100-80g"),
    (r"H100 80GB HBM3$", "h100-sxm"),
    (r"H100 NVL$", "h100-nvl"),
    (r"H200$", "h200-sxm"),
    (r"H800$", "h800"),
    (r"H20$", "h20"),
    (r"GB200\b.*$", "gb200-nvl72"),
    (r"GB300\b.*$", "gb300-nvl72"),
    (r"NVIDIA B200$", "b200"),
    (r"NVIDIA B300\b.*$", "b300"),
    (r"L40S$", "l40s"),
    (r"RTX 4090$", "rtx-4090"),
    (r"RTX PRO 6000\b.*$", "rtx-pro-6000"),
    (r"MI300X\b.*$", "mi300x"),
    (r"MI325X\b.*$", "mi325x"),
    (r"MI355X\b.*$", "mi355x"),
)
QUERY = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"
CPU_L2_BYTES, CPU_OPERAND_BYTES = 2**16, 2**26
SPINS = 200
OPERAND_SHARE = 0.6  # of free memory, for one point's operands


@dataclass(frozen=True)
class Device:
    """`torch` and one of its devices; `operand_bytes` is what one point may take."""

    torch: Any
    place: str
    name: str
    l2_bytes: int
    operand_bytes: int
    devices: int
    grouped: bool
    fp8: bool

    @property
    def is_cuda(self) -> bool:
        return self.place != "cpu"

    def machine(self) -> dict[str, str]:
        """What must be equal for points to belong together."""
        torch = self.torch
        return {
            "device": self.name,
            "torch": str(torch.__version__),
            "cuda": str(torch.version.cuda or torch.version.hip or "none"),
        }

    def spin_up(self) -> None:
        """Start matrix multiplications that raise a GPU's clocks, some 0.3 s on an H100."""
        if self.is_cuda:
            torch = self.torch
            x = torch.randn((8192, 8192), dtype=torch.bfloat16, device=self.place)
            for _ in range(SPINS):
                torch.mm(x, x)

    def state(self) -> dict[str, str]:
        """Machine, driver, and clocks under load, in words, for the provenance of a profile."""
        now = {**self.machine(), "date": datetime.date.today().isoformat()}
        if self.is_cuda:
            self.spin_up()
            now |= _nvidia_smi(str(self.torch.cuda.get_device_properties(self.place).uuid))
            spread = self.torch.distributed
            if self.torch.version.cuda and spread.is_available() and spread.is_nccl_available():
                now["nccl"] = ".".join(map(str, self.torch.cuda.nccl.version()))
        return now


def load_torch() -> Any:
    """The module torch; InputError with the line that installs it."""
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise InputError("torch", "must be installed to measure kernels", hint=INSTALL) from None


def find_device() -> Device:
    """The first CUDA device, else the CPU. Raises InputError without torch."""
    torch = load_torch()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # threads that wait for each other scatter tiny times
        return Device(
            torch, "cpu", f"CPU ({platform.machine()})", CPU_L2_BYTES, CPU_OPERAND_BYTES, 1,
            grouped=hasattr(torch, "_grouped_mm"), fp8=False,
        )  # fmt: skip
    torch.cuda.set_device(0)
    about = torch.cuda.get_device_properties(0)
    free_bytes, _ = torch.cuda.mem_get_info(0)
    capability = tuple(torch.cuda.get_device_capability(0))
    return Device(
        torch,
        "cuda:0",
        str(about.name),
        int(about.L2_cache_size),
        int(free_bytes * OPERAND_SHARE),
        int(torch.cuda.device_count()),
        # Older GPUs fall back to a loop that waits for the host.
        grouped=hasattr(torch, "_grouped_mm") and capability >= (9, 0),
        fp8=capability >= (8, 9),
    )


def gpu_name(device: Device, asked: str | None) -> str:
    """moesim's name of the GPU: what the driver says, or `asked` where that is not known.

    Raises InputError where nobody says, or where the two contradict each other.
    """
    known = next((gpu for words, gpu in DEVICES if re.search(words, device.name)), None)
    if known is None and asked is None:
        what = "a CPU" if not device.is_cuda else "a device that moesim has no name for"
        raise InputError(
            "--gpu", f"must name the GPU of `moesim gpus` that this machine ({what}) stands for"
        )
    if known is not None and asked not in (None, known):
        raise InputError("--gpu", f"must be the device of this machine ({known})", asked)
    return known or str(asked)


def _nvidia_smi(uuid: str) -> dict[str, str]:
    """Driver, clocks, power limit and temperature; nothing where the tool is missing."""
    name = uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
    command = ["nvidia-smi", f"--id={name}", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(QUERY.split(","), values, strict=False))
