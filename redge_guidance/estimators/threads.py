"""Rows on several threads, each of which works through its own by operations that do not go parallel again.

torch shares every operation among threads that wait for one another at its end, spinning. Where cores are shared with
other work, one of them is often not running, and a chain of many short operations mostly waits. Here rows are shared
once, and the caller sleeps until all are done.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from threading import Event, Lock, Thread
from typing import TypeVar

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

Part = TypeVar("Part")

_STARTING = Lock()  # held while a thread of a pool starts


def in_threads(work: Callable[[Part], object], parts: Sequence[Part]) -> None:
    """`work(part)` for every part, on as many threads as torch has here, `torch.get_num_threads()`.

    The operations of a part run on one thread: its result does not depend on the number of threads, and threads wait
    for one another only at the end. Parts are begun in their order, and of the errors that `work` raises the one of the
    first part comes out. Grad mode, inference mode and autocast are those of the caller. With one thread, and while
    torch's dispatch is traced, which other threads would not see, the caller does the work itself.
    """
    threads = torch.get_num_threads()
    if threads == 1 or not parts or not _threads_have_settings() or is_in_torch_dispatch_mode():
        for part in parts:
            work(part)
        return
    left = deque(enumerate(parts))
    errors: list[tuple[int, BaseException]] = []
    run = _worker(work, left, errors)
    loops: list[Future[None]] = []
    try:
        try:
            for _ in range(min(threads, len(parts))):
                loops.append(_pool(threads).submit(run))
        except RuntimeError:  # no thread can be started, there are too many, or the interpreter ends
            run()
        wait(loops)
        if not errors:
            run()  # what is left if threads could not begin; nothing else ends with parts left and no error
        if errors:
            raise min(errors, key=lambda error: error[0])[1]
    finally:
        left.clear()  # after an interrupt
        errors.clear()  # which have this frame in their tracebacks


def _worker(
    work: Callable[[Part], object], left: "deque[tuple[int, Part]]", errors: list[tuple[int, BaseException]]
) -> Callable[[], None]:
    """Takes parts until none is left or one fails, in the modes of the thread that calls this function."""
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    enabled, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    cached = torch.is_autocast_cache_enabled()

    def run() -> None:
        # Not `torch.autocast`, whose end throws away what other threads have cached.
        torch.set_autocast_enabled("cpu", enabled)
        torch.set_autocast_dtype("cpu", dtype)
        torch.set_autocast_cache_enabled(cached)
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            while left:
                try:
                    index, part = left.popleft()
                except IndexError:  # another thread was faster
                    return
                try:
                    work(part)
                except BaseException as error:
                    left.clear()
                    errors.append((index, error))

    return run


@cache
def _threads_have_settings() -> bool:
    """Whether `torch.set_num_threads` is about the thread that calls it, and about threads to come; so is OpenMP's."""
    return "parallel backend: OpenMP" in torch.__config__.parallel_info()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "estimators", _run_alone)


def _run_alone() -> None:
    """Operations of the calling thread run on it alone from now on; those of others, threads to come too, as before.

    Asked first, torch gives a new thread the number of threads that was set last, in whichever thread.
    """
    with _STARTING:
        of_new_threads, set_here = torch.get_num_threads(), Event()

        def restore() -> None:
            set_here.wait()
            torch.set_num_threads(of_new_threads)

        other = Thread(target=restore)
        other.start()
        torch.set_num_threads(1)
        set_here.set()
        other.join()


def _after_fork() -> None:
    """Threads do not survive a fork."""
    _pool.cache_clear()
    _STARTING.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_STARTING.acquire, after_in_parent=_STARTING.release, after_in_child=_after_fork)
