"""Which method, at what price: tasks, ways to draw, judges that nothing optimises, and what each costs."""

from redge_guidance.evaluate.embedded import TASKS
from redge_guidance.evaluate.methods import Method, method, methods_of
from redge_guidance.evaluate.plots import plot
from redge_guidance.evaluate.report import table
from redge_guidance.evaluate.running import Plan, cells, run
from redge_guidance.evaluate.tasks import task
from redge_guidance.evaluate.wanted import Goal, Task

__all__ = ["TASKS", "Goal", "Method", "Plan", "Task", "cells", "method", "methods_of", "plot", "run", "table", "task"]
