"""What every result file says of itself."""

import json
import platform
import subprocess
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch


def environment(*packages: str) -> dict[str, object]:
    """Date, commit, hardware and versions of torch, this library and `packages`."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    model = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "date": date.today().isoformat(),
        "commit": commit,
        "hardware": f"{model[0] if model else platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {name: version(name) for name in ("redge-guidance", "torch", *packages)},
    }


def save(path: str, report: dict[str, object]) -> None:
    """Write `report` as JSON; folders are made."""
    output = Path(path)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []
