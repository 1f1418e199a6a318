"""Many samples into files: what a kill leaves is gone on with, by one process or several."""

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from redge_guidance.checks import whole_number
from redge_guidance.config import GuidanceConfig
from redge_guidance.constraints.constraint import Constrained, Constraint, parted
from redge_guidance.constraints.named import fingerprint
from redge_guidance.evaluation import name_of
from redge_guidance.generation.finished import Finished, noted, stamp_of_request
from redge_guidance.generation.inputs import Input
from redge_guidance.generation.journal import Journal, line_of
from redge_guidance.generation.many import Run
from redge_guidance.generation.place import Place, image_name
from redge_guidance.generation.processes import Processes
from redge_guidance.generation.progress import Progress
from redge_guidance.generation.record import Key
from redge_guidance.generation.requests import Request, as_lines, requests_of
from redge_guidance.reward import AnyReward

logger = logging.getLogger(__name__)

_LIBRARIES = ("redge-guidance", "torch", "transformers", "diffusers", "accelerate")


@dataclass(frozen=True)
class Summary:
    """What a run has done.

    Attributes:
        output: as given.
        made: records of this run.
        before: records that were there before.
        failed: samples that could not be drawn, each of which was reported.
        rejected: records of this run that the constraint does not accept; 0 wherever it holds.
    """

    output: str
    made: int
    before: int
    failed: int
    rejected: int = 0


def generate_to(
    output: str | Path,
    pipe: Any,
    prompts: Any = "",
    reward: AnyReward | Constraint | Constrained | None = None,
    config: GuidanceConfig | None = None,
    *,
    samples_per_prompt: int = 1,
    batch_size: int = 16,
    seed: int = 0,
    nats: bool = False,
    overwrite: bool = False,
    described: Mapping[str, Any] | None = None,
    on_failure: Callable[[str], None] | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> Summary:
    """As `generate`, into a file, and on with it where an earlier run was stopped or killed.

    Every batch is on the disk when it is done. Started again with the same arguments a run makes what is missing, in
    the batches in which it would have been made: when it is finished the file is, byte for byte, that of a run that
    nobody stopped. Under `accelerate launch` or `torchrun` the batches are shared out among the processes; each calls
    this function alike, with a pipeline of its own.

    Args:
        output: a file `.jsonl`, `.csv`, `.txt` or `.parquet`; a folder, of a dataset of texts as `datasets` loads it
            from the disk, or of images with `metadata.jsonl`; `"-"`: lines of JSON to standard output, of which nothing
            is kept. Settings and versions go to `OUTPUT.run.json`.
        pipe, reward, config, samples_per_prompt, batch_size, seed, nats, **settings: as for `generate`.
        prompts: as for `generate`, or an `Input`, or the `Path` of a file that it reads.
        overwrite: begin anew, whatever is there.
        described: pipeline, reward and settings in plain values, by which a run knows its own; None: the names of their
            classes, the configuration, and the arguments of constraints.
        on_failure: told of each entry that could not be drawn; None: a warning in the log.
        progress: whether to show a progress bar; None: on a terminal.

    Raises:
        ValueError: as `generate`; `output` is of another kind, or was made by something else or with other settings or
            prompts, or is being written by another run. Where nothing was made before it nothing is left.
        OSError: a file that cannot be read or written, or an input that was changed while it was read.
    """
    samples_per_prompt = whole_number("samples_per_prompt", samples_per_prompt, 1)
    run = Run(pipe, reward, config, batch_size=batch_size, seed=seed, nats=nats, settings=settings)
    source = Input(prompts) if isinstance(prompts, Path) else prompts
    requests = requests_of(as_lines(source), samples_per_prompt, run.seed)
    report = on_failure or (lambda message: logger.warning("%s", message))
    processes = Processes()
    if processes.count > 1:
        _check_shared(output, source)
    bar = Progress(*((_count(source, samples_per_prompt), progress) if processes.is_first else (None, False)))
    if str(output) == "-":
        with bar:
            return _to_standard_output(run, requests, report, bar)
    told = dict(described or _described(pipe, reward, run.config, settings))
    told |= {"samples_per_prompt": samples_per_prompt, "seed": run.seed, "nats": nats}
    with ExitStack() as stack:
        stack.enter_context(bar)
        place = Place(output, run.makes_images)
        before = processes.shared(lambda: _begin(stack, place, told, overwrite, source))
        if isinstance(before, Finished):
            before.check(requests, place.path)
            return Summary(str(output), 0, before.made, before.failed)
        if processes.count == 1:
            stack.push(lambda kind, error, traceback: place.forget() if isinstance(error, ValueError) else None)
        journal = Journal(place.journal(processes.rank))
        stack.callback(journal.close)
        bar.update(len(before))
        bar.watch([place.journal(rank) for rank in range(1, processes.count)])
        writer = _Writer(run, place, journal, before, report, bar, processes)
        writer(requests)
        counts = processes.gathered((writer.made, writer.failed, writer.rejected))
        made, failed, rejected = (sum(numbers) for numbers in zip(*counts, strict=True))
        processes.shared(lambda: place.finish(writer.asked.hexdigest(), failed))
    return Summary(str(output), made, len(before), failed, rejected)


def _check_shared(output: str | Path, source: Any) -> None:
    """A ValueError for what several processes cannot share."""
    if str(output) == "-":
        raise ValueError("`output` must be a file for several processes, got -.")
    if isinstance(source, Input) and source.name == "-":
        raise ValueError("`input` must be a file for several processes, got -, of which each would read a part.")


def _begin(stack: ExitStack, place: Place, told: Mapping[str, Any], overwrite: bool, source: Any) -> Any:
    if isinstance(source, Input) and place.is_made_of(source.name):
        raise ValueError(f"`output` {place.path} must be another file than `input`, which it would replace.")
    stack.enter_context(place.locked())
    return place.begin(told, {name: version(name) for name in _LIBRARIES}, overwrite)


class _Writer:
    """Makes what is missing of this process's batches, and puts it on the disk batch by batch."""

    def __init__(
        self,
        run: Run,
        place: Place,
        journal: Journal,
        before: Mapping[Key, str],
        report: Callable[[str], None],
        bar: Progress,
        processes: Processes,
    ):
        self._run, self._place, self._journal, self._before = run, place, journal, before
        self._report, self._bar, self._processes = report, bar, processes
        self.made = self.failed = self.rejected = 0
        self.asked = hashlib.blake2b(digest_size=16)

    def __call__(self, requests: Iterator[Request]) -> None:
        with self._run.guiding():
            number = 0
            for window in self._run.planned(noted(requests, self.asked)):
                for batch in window:
                    if number % self._processes.count == self._processes.rank:
                        self._batch(batch)
                    number += 1

    def _batch(self, batch: Sequence[Request]) -> None:
        missing = {request.key: request for request in batch if not self._is_done(request)}
        if not missing:
            return
        # all of the batch, since its figures may depend on it in their last bits
        records = [record for record in self._run.batch(batch, list(missing)) if record.key in missing]
        lines = []
        for record in records:
            if record.error is not None:
                self.failed += 1
                if record.sample == 0:
                    self._report(f"{missing[record.key].line.place} {record.error}")
                continue
            self.rejected += record.accepted is False
            line = record.to_dict()
            if record.image is not None:
                line = {"file_name": image_name(record.key)} | line
                self._place.save_image(record.image, line["file_name"])
            lines.append(line)
        self._journal.append(lines)
        self.made += len(lines)
        self._bar.update(len(missing))

    def _is_done(self, request: Request) -> bool:
        stamp = self._before.get(request.key)
        if stamp is None or request.line.error is not None:
            return False
        if stamp != stamp_of_request(request):
            raise ValueError(
                f"`prompts` were others when `output` {self._place.path} was begun: {request.line.place} is not what "
                f"its record {request.key} was made from; take another output, or `overwrite`."
            )
        return True


def _to_standard_output(run: Run, requests: Iterator[Request], report: Callable[[str], None], bar: Progress) -> Summary:
    if run.makes_images:
        raise ValueError("`output` must be a folder for images, got -.")
    made = failed = rejected = 0
    for record in run.records(requests):
        bar.update(1)
        if record.error is not None:
            failed += 1
            report(f"{record.place} {record.error}")
            continue
        made += 1
        rejected += record.accepted is False
        _write_out(line_of(record.to_dict()))
    return Summary("-", made, 0, failed, rejected)


def _write_out(line: bytes) -> None:
    """In UTF-8, whatever the terminal's encoding is."""
    if sys.stdout is None:  # closed by whoever started the program
        return
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(f"standard output could not be written: {error.strerror or error}.") from error


def _count(source: Any, samples_per_prompt: int) -> int | None:
    """How many samples there will be, where that is known."""
    if isinstance(source, Input):
        entries = source.count()
    elif isinstance(source, str) or source is None:
        entries = 1
    else:
        entries = len(source) if hasattr(source, "__len__") else None
    return None if entries is None else entries * samples_per_prompt


def _described(pipe: Any, reward: Any, config: GuidanceConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    guidance: Any
    try:
        guidance = json.loads(config.to_json())
    except ValueError:  # objects of one's own
        guidance = hashlib.blake2b(repr(config).encode()).hexdigest()
    name = getattr(getattr(pipe, "config", None), "_name_or_path", "")
    rewarding, constraint = parted(reward)
    return {
        "pipeline": f"{type(pipe).__name__} {name}".strip(),
        "reward": None if rewarding is None else _reward_name(rewarding),
        **({} if constraint is None else {"constraints": fingerprint(constraint)}),
        "config": guidance,
        "settings": dict(settings),
    }


def _reward_name(reward: Any) -> str:
    return repr(reward) if hasattr(reward, "terms") else name_of(reward)
