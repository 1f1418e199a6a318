"""Estimators on several threads: what they draw, and that nothing of the process is changed."""

import dataclasses
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from torch.autograd import grad as gradient

from redge_guidance.estimators import ESTIMATORS, Pathwise, ReDGE, redge, sampling
from redge_guidance.estimators.threads import in_threads

HARD = {name: kind() for name, kind in ESTIMATORS.items() if kind.needs == "gradient"}
ALL = HARD | {f"{name}-soft": dataclasses.replace(estimator, hard=False) for name, estimator in HARD.items()}
every = pytest.mark.parametrize("estimator", ALL.values(), ids=ALL)


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def _small_chunks(monkeypatch):
    monkeypatch.setattr(sampling, "CHUNK_ELEMENTS", 2**9)
    monkeypatch.setattr(sampling, "NOISE_BLOCK", 2**12)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def in_a_new_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(timeout=60)


def drawn(estimator, shape, threads, dtype=torch.float32):
    """A sample and its gradient."""
    torch.set_num_threads(threads)
    logits = (4 * torch.randn(shape, generator=seeded())).to(dtype).requires_grad_()
    sample = estimator(logits, generator=seeded(1))
    return sample.detach(), gradient(sample, logits, torch.randn(shape, generator=seeded(2)).to(dtype))[0]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(1, 150_001), (5, 40_000), (300, 130), (40, 9), (3, 17, 211)], ids=str)
@every
def test_results_do_not_depend_on_the_number_of_threads(estimator, shape):
    one = drawn(estimator, shape, 1)
    for threads in (2, 3):
        assert_same(one, drawn(estimator, shape, threads))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.usefixtures("_small_chunks")
def test_of_other_dtypes_likewise(dtype):
    assert_same(drawn(ReDGE(), (50, 600), 1, dtype), drawn(ReDGE(), (50, 600), 3, dtype))


@dataclass(frozen=True)
class Watched(Pathwise):
    """Straight-through that does something where its rows are worked through."""

    watch: object = None

    def soft(self, logits, noise):
        self.watch(logits)
        return super().soft(logits, noise)


@pytest.mark.usefixtures("_small_chunks")
def test_operations_stay_on_their_thread_and_the_settings_of_others_are_left_alone():
    seen = []

    def watch(logits):
        time.sleep(0.002)
        seen.append((threading.get_ident(), torch.get_num_threads()))

    for threads in (3, 2):
        seen.clear()
        torch.set_num_threads(threads)
        assert in_a_new_thread(torch.get_num_threads) == threads
        Watched(watch)(torch.zeros(90, 300))
        assert {number for _, number in seen} == {1}
        workers = {thread for thread, _ in seen}
        assert 2 <= len(workers) <= threads  # one may have been too late for any
        assert threading.get_ident() not in workers
        assert torch.get_num_threads() == threads
        assert in_a_new_thread(torch.get_num_threads) == threads


@pytest.mark.usefixtures("_small_chunks")
def test_one_thread_is_the_caller_s():
    torch.set_num_threads(1)
    seen = set()
    Watched(lambda logits: seen.add(threading.get_ident()))(torch.zeros(90, 300))
    assert seen == {threading.get_ident()}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.usefixtures("_small_chunks")
def test_the_error_is_that_of_the_first_rows(threads):
    torch.set_num_threads(threads)
    logits = torch.zeros(200, 300)
    logits[120, 5], logits[121:, 7] = torch.inf, torch.nan
    for _ in range(20):
        with pytest.raises(ValueError, match="`logits` contain inf"):
            redge(logits)
    assert redge(torch.zeros(200, 300)).sum() == 200  # and the next call is as if nothing had been


@pytest.mark.usefixtures("_small_chunks")
def test_errors_come_out_as_they_are_when_all_threads_rest():
    class Odd(BaseException):
        pass

    torch.set_num_threads(3)
    odd, at_work = Odd(), []

    def watch(logits):
        at_work.append(1)
        time.sleep(0.01)
        at_work.pop()
        raise odd

    with pytest.raises(Odd) as caught:
        Watched(watch)(torch.zeros(90, 300))
    assert caught.value is odd
    assert not at_work


@pytest.mark.usefixtures("_small_chunks")
def test_modes_are_those_of_the_caller():
    torch.set_num_threads(3)
    modes = []

    def watch(logits):
        autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled()
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled(), *autocast, product.dtype))

    logits = torch.zeros(90, 300)
    for dtype, enabled in ((torch.float16, True), (torch.bfloat16, False), (torch.bfloat16, True)):
        modes.clear()
        with torch.autocast("cpu", dtype, enabled=enabled, cache_enabled=False):
            Watched(watch)(logits)
        assert set(modes) == {(False, False, enabled, dtype, False, dtype if enabled else torch.float32)}
    modes.clear()
    with torch.inference_mode():
        sample = Watched(watch)(logits)
    assert sample.is_inference()
    assert {mode[:2] for mode in modes} == {(True, False)}


@pytest.mark.usefixtures("_small_chunks")
def test_parts_that_share_rows_themselves_do_not_wait_for_one_another():
    torch.set_num_threads(2)
    logits = torch.randn(90, 300, generator=seeded())
    nested = []

    def watch(chunk):
        nested.append(redge(logits, generator=seeded(1)))

    in_a_new_thread(lambda: Watched(watch)(torch.zeros(20, 300)))
    assert all(torch.equal(one, redge(logits, generator=seeded(1))) for one in nested)


@pytest.mark.usefixtures("_small_chunks")
def test_many_callers_at_once():
    expected = [drawn(estimator, (40, 300), 1) for estimator in ALL.values()]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda estimator: drawn(estimator, (40, 300), 3), ALL.values()))
    for one, other in zip(expected, found, strict=True):
        assert_same(one, other)


@pytest.mark.usefixtures("_small_chunks")
@every
def test_transformations_of_torch(estimator):
    logits, slope = torch.randn(4, 30, 200, generator=seeded()), torch.randn(4, 30, 200, generator=seeded(1))

    def loss(x, w):
        return (estimator(x) * w).sum()

    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(3)
        found.append(torch.func.vmap(torch.func.grad(loss), randomness="different")(logits, slope))
    assert torch.equal(*found)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo does so itself
@pytest.mark.usefixtures("_small_chunks")
def test_compiles_into_one_graph_beside_several_threads():
    torch.set_num_threads(3)
    logits, slope = torch.randn(40, 90, requires_grad=True), torch.randn(40, 90)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: (redge(x) * slope).sum(), fullgraph=True, backend="aot_eager")
    assert gradient(compiled(logits), logits)[0].isfinite().all()


def test_the_caller_works_where_no_thread_can_be_started(monkeypatch):
    class Refuses(ThreadPoolExecutor):
        def submit(self, *args, **kwargs):
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr("redge_guidance.estimators.threads._pool", Refuses)
    torch.set_num_threads(3)
    done = []
    in_threads(done.append, range(5))
    assert done == [0, 1, 2, 3, 4]


IN_CHILDREN = """
import os, sys, threading, warnings
import torch
from redge_guidance import redge

warnings.simplefilter("ignore")  # newer versions of Python warn of any fork
torch.set_num_threads(3)
logits = torch.randn(40, 20_000)

def draw(seed=0):
    return redge(logits, generator=torch.Generator().manual_seed(seed))

class Draws(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return draw(i).argmax(-1)

here = draw()
sys.stderr.flush()
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(here, draw()) else 1)
assert os.waitpid(child, 0)[1] == 0
loader = torch.utils.data.DataLoader(Draws(), num_workers=2, multiprocessing_context="fork", batch_size=1)
for i, batch in enumerate(loader):
    assert torch.equal(batch[0], draw(i).argmax(-1))
"""

AT_THE_END = """
import atexit
import torch
from redge_guidance import redge

torch.set_num_threads(3)
logits = torch.randn(40, 20_000)
redge(logits)
atexit.register(lambda: print(int(redge(logits).sum())))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_children_of_a_fork_have_threads_of_their_own():
    run = subprocess.run([sys.executable, "-c", IN_CHILDREN], capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_a_sample_while_the_interpreter_ends():
    run = subprocess.run([sys.executable, "-c", AT_THE_END], capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stdout, run.stderr) == (0, "40\n", "")
