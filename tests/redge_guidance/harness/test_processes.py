"""Two processes of the CPU, as `torchrun` starts them, know of each other."""

import os
import subprocess
import sys

ASK = """
import torch
from redge_guidance.harness.processes import Processes
found = Processes.of_environment()
told = (found.rank, found.number, found.all_gather(torch.tensor([found.rank + 5])).tolist(), found.gather_object("x"))
open(f"told-{found.rank}", "w").write(repr(told))
found.barrier()
"""


def test_each_hears_the_other(tmp_path):
    (tmp_path / "ask.py").write_text(ASK)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "ask.py"]
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=120)
    told = [(tmp_path / f"told-{rank}").read_text() for rank in (0, 1)]
    assert told == ["(0, 2, [5, 6], ['x', 'x'])", "(1, 2, [5, 6], None)"]
