"""What every result file says of itself."""

import json
import platform
import subprocess
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import redge_guidance


def environment(*packages: str, device: str = "cpu") -> dict[str, object]:
    """Date, commit, hardware and versions of torch, this library and `packages`, None for what is not installed.

    With the name of the accelerator and the version of CUDA where `device` is one of CUDA's.
    """
    model = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    hardware = f"{model[0] if model else platform.machine()}, {torch.get_num_threads()} threads"
    versions = {name: _version(name) for name in ("redge-guidance", "torch", *packages)}
    if torch.device(device).type == "cuda":
        hardware = f"{torch.cuda.get_device_name(device)}; {hardware}"
        versions |= {"cuda": torch.version.cuda, "triton": _version("triton")}
    return {"date": date.today().isoformat(), "commit": _commit(), "hardware": hardware, "versions": versions}


def save(path: str, report: dict[str, object]) -> None:
    """Write `report` as JSON; folders are made."""
    output = Path(path)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # a checkout on the path has no metadata
        return redge_guidance.__version__ if name == "redge-guidance" else None


def _commit() -> str:
    """Empty without git, and outside a repository."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return found.stdout.strip()


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []
