"""Which device is this process's own."""

import os


def own_device(name: str) -> str:
    """Of several processes on a machine each has its own accelerator: `cuda` is `cuda:1` in the second of them."""
    several = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1"))) > 1
    if not several or name not in ("cuda", "xpu", "npu", "mlu", "hpu", "musa"):
        return name
    return f"{name}:{os.environ.get('LOCAL_RANK', '0')}"
