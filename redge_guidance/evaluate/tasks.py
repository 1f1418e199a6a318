"""Tasks by name."""

import os
from pathlib import Path

from redge_guidance.evaluate.embedded import TASKS
from redge_guidance.evaluate.files import task_of
from redge_guidance.evaluate.wanted import Task
from redge_guidance.setups.schema import nearest


def task(name: str | os.PathLike[str]) -> Task:
    """An embedded task by its name, or the one that a file says, see `task_of`.

    Raises:
        ValueError: neither; of a file as `redge_guidance.load`.
        RuntimeError: a package that the task needs is not installed.
    """
    if os.fspath(name) in TASKS:
        return TASKS[os.fspath(name)][1]()
    if Path(name).suffix in (".yaml", ".yml"):
        return task_of(name)
    raise ValueError(f"there is no task `{name}`, and it is no file in YAML; {nearest(name, list(TASKS))}")
