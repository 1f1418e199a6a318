"""Many samples: prompts in, records out."""

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redge_guidance.accepting import as_reward
from redge_guidance.attach import GuidanceHandle, guide
from redge_guidance.checks import whole_number
from redge_guidance.config import GuidanceConfig
from redge_guidance.constraints.constraint import Constrained, parted
from redge_guidance.generation.batches import Halving, windows
from redge_guidance.generation.judging import Guided, Judge, bound_of, guided_of
from redge_guidance.generation.record import Key, Record
from redge_guidance.generation.requests import Line, Request, as_lines, requests_of
from redge_guidance.generation.sampler import Drawn, Sampler
from redge_guidance.randomness import check_seed
from redge_guidance.records import columns
from redge_guidance.reward import Wanted
from redge_guidance.strength import least_of
from redge_guidance.trace import StepTrace

_REMEMBERED = 4096  # entries, of which it is known whether they can be drawn


def generate(
    pipe: Any,
    prompts: Any = "",
    reward: Wanted | None = None,
    config: GuidanceConfig | None = None,
    *,
    samples_per_prompt: int = 1,
    batch_size: int = 16,
    seed: int = 0,
    nats: bool = False,
    in_order: bool = True,
    enforced: bool = True,
    **settings: Any,
) -> Iterator[Record]:
    """Draw samples for any number of prompts, guided by a reward, and give a `Record` of each as it is ready.

    The same seed and prompt give the same sample, whatever the batch size, the order of the prompts and what else is
    drawn, up to ties within float32: every sample has a generator of its own. Batches are made of prompts of alike
    lengths, and where `num_inference_steps` is not given of those that take as many steps. What the memory does not
    hold is drawn in halves, with a warning. Memory does not grow with the number of prompts.

    An entry that cannot be drawn, such as a prompt that is too long for the model, gives a record with an `error`, and
    the rest goes on. What is wrong with all of the first batch is raised.

    Args:
        pipe: a pipeline that `guide` takes. One that takes no list of generators draws one sample at a time.
        prompts: a text, a list of messages, the number of a class, or an iterable of these, or of mappings with a field
            `prompt`, whose other fields are handed through.
        reward, config: as for `guide`, a reward, a constraint, or `reward & constraint`; without either nothing is
            guided. With `scale=0` no reward guides and records have the rewards; a constraint holds all the same.
        samples_per_prompt: of every prompt.
        batch_size: samples that are drawn together.
        seed: of the run.
        nats: also compute the model's bound on `-log p(text)`, 16 calls of the model for a text.
        in_order: give records in the order of the prompts, for which some wait for at most 8 batches; False: as they
            are ready.
        enforced: whether a constraint holds; False: records say which samples it accepts, as they come.
        **settings: for the call of the pipeline, such as `num_inference_steps`, `temperature` or `use_chat_template`.

    Raises:
        ValueError: an argument out of range or unknown to the pipeline. While sampling: what `guide` and the pipeline
            raise, where it concerns every prompt.
        MemoryError: one sample alone does not fit, with what would help.

    Example:
        >>> from redge_guidance.pipelines import MaskedTextPipeline
        >>> from redge_guidance.rewards import LexicalReward
        >>> pipe = MaskedTextPipeline.from_pretrained("builtin:tatoeba-masked")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> reward = 15 * LexicalReward("music")
        >>> records = generate(pipe, ["Tom", "I [MASK] music."], reward, samples_per_prompt=2)
        >>> [(record.index, record.sample, record.text[:3]) for record in records][:2]
        [(0, 0, 'Tom'), (0, 1, 'Tom')]
    """
    samples_per_prompt = whole_number("samples_per_prompt", samples_per_prompt, 1)
    run = Run(pipe, reward, config, batch_size=batch_size, seed=seed, nats=nats, settings=settings, enforced=enforced)
    requests = requests_of(as_lines(prompts), samples_per_prompt, run.seed)
    return run.records(requests, in_order)


class Run:
    """A pipeline, a reward, a constraint and settings, and how batches of requests become records; see `generate`.

    Attributes:
        batch_size, seed: as given, plain integers.
        config: how the reward guides.
    """

    def __init__(
        self,
        pipe: Any,
        reward: Wanted | None,
        config: GuidanceConfig | None,
        *,
        batch_size: int,
        seed: int,
        nats: bool,
        settings: dict[str, Any],
        enforced: bool = True,
        competing: bool = False,
    ):
        self.batch_size, self.seed = whole_number("batch_size", batch_size, 1), check_seed(seed)
        self._pipe, self._nats = pipe, nats
        if reward is None and config is not None:
            raise ValueError("`config` says how a reward guides, and `reward` is None; pass a reward.")
        rewarding, constraint = parted(reward)
        self._reward = None if rewarding is None else as_reward(rewarding)
        self._steered: Any = self._reward  # what `guide` is given
        if constraint is not None and enforced:
            self._steered = constraint if self._reward is None else Constrained(self._reward, constraint)
        self.config = GuidanceConfig() if config is None else config
        self._sampler = Sampler(pipe, settings)
        self._judge = Judge(self._reward, self._sampler.is_chat, constraint, competing)
        self._halving = Halving(self.batch_size if self._sampler.together else 1)
        self._first, self._seen = True, dict[int, tuple[str | None, int]]()
        self._handle: GuidanceHandle | None = None
        with self.guiding():  # what `guide` has to say of the arguments it says now
            pass

    @property
    def makes_images(self) -> bool:
        return self._sampler.makes_images

    @property
    def trace(self) -> list[StepTrace]:
        """What guidance noted of the last batch, while it is guiding."""
        return [] if self._handle is None else list(self._handle.trace)

    def records(self, requests: Iterable[Request], in_order: bool = True) -> Iterator[Record]:
        """Of all requests, guided while the iterator is alive."""
        with self.guiding():
            for window in self.planned(requests):
                found = (record for batch in window for record in self.batch(batch))
                yield from sorted(found, key=lambda record: record.key) if in_order else found

    @contextmanager
    def guiding(self) -> Iterator[None]:
        """In this block the pipeline is guided."""
        if self._steered is None:
            yield
            return
        with guide(self._pipe, self._steered, self.config, seed=self.seed) as self._handle:
            try:
                yield
            finally:
                self._handle = None

    def batch(self, requests: Sequence[Request], wanted: Collection[Key] | None = None) -> list[Record]:
        """Of one batch, in its order; an entry that cannot be drawn gives a record that says why.

        Where none of the `wanted` ones can be drawn the others are left out.
        """
        if wanted is not None and len(wanted) < len(requests):
            self._first = False  # a sample of this batch was drawn before
        failed = {r.key: Record.failed(r, told) for r in requests if (told := self._look(r.line)[0]) is not None}
        good = [request for request in requests if request.key not in failed]
        if wanted is not None and set(wanted) <= set(failed):
            good = []
        done = self._halving(self._drawn, good)
        records = {record.key: record for record in [*failed.values(), *done]}
        found = [records[request.key] for request in requests if request.key in records]
        self._raise_if_all_failed(requests, found)
        return found

    def planned(self, requests: Iterable[Request]) -> Iterator[list[list[Request]]]:
        """Batches, some at a time; see `windows`."""
        return windows(requests, self.batch_size, lambda line: self._look(line)[1])

    def _look(self, line: Line) -> tuple[str | None, int]:
        """What is wrong with an entry, known before anything is drawn, and of which kind it is."""
        if line.number not in self._seen:
            found: tuple[str | None, int] = (line.error, 0)
            if line.error is None:
                try:
                    found = (None, self._sampler.kind(line))
                except ValueError as error:
                    found = (_line(error), 0)
            if len(self._seen) > _REMEMBERED:
                self._seen.clear()
            self._seen[line.number] = found
        return self._seen[line.number]

    def _drawn(self, requests: Sequence[Request]) -> list[Record]:
        """Records of requests that fit the memory; where a ValueError is raised, of each half, down to one."""
        try:
            return self._draw(requests)
        except ValueError as error:
            if len(requests) == 1:
                return [Record.failed(requests[0], _line(error))]
        half = len(requests) // 2
        return [*self._drawn(requests[:half]), *self._drawn(requests[half:])]

    def _draw(self, requests: Sequence[Request]) -> list[Record]:
        started, handle = time.perf_counter(), self._handle
        if handle is not None:
            handle.trace.clear()
        with columns(_fields(requests)):
            drawn = self._sampler.draw(requests)
            judged = self._judge(requests, drawn)
        bounds = [bound_of(self._pipe, r, d) if self._nats else None for r, d in zip(requests, drawn, strict=True)]
        seconds = (time.perf_counter() - started) / len(requests)
        guided, target = self._guided(len(requests)), None if handle is None else handle.trace.target
        self._first = False
        return [
            Record(
                index=request.line.number,
                sample=request.sample,
                prompt=request.line.prompt,
                fields=request.line.fields,
                text=one.text,
                answer=one.answer,
                image=_as_image(one),
                reward=judgement.reward,
                rewards=judgement.rewards,
                reached=judgement.reached,
                accepted=judgement.accepted,
                nats=bound,
                strength=figures.strength,
                target_reached=_reaches(target, judgement.aimed),
                kl=figures.kl,
                seed=request.seed,
                seconds=seconds,
            )
            for request, one, judgement, bound, figures in zip(requests, drawn, judged, bounds, guided, strict=True)
        ]

    def _guided(self, count: int) -> list[Guided]:
        if self._handle is None or not self._handle.trace:
            return [Guided()] * count
        return [guided_of(self._handle.trace, row) for row in range(count)]

    def _raise_if_all_failed(self, requests: Sequence[Request], records: Sequence[Record]) -> None:
        """What is wrong with everything that was tried so far is no matter of an entry."""
        errors = {record.error for record in records}
        if self._first and len(errors) == 1 and None not in errors and not any(r.line.error for r in requests):
            raise ValueError(errors.pop())


def _fields(requests: Sequence[Request]) -> dict[str, list[Any]]:
    """The other fields of the entries, as reward functions are told them; None where an entry has none of the name."""
    names = dict.fromkeys(name for request in requests for name in request.line.fields)
    return {name: [request.line.fields.get(name) for request in requests] for name in names}


def _reaches(target: float | None, reward: float | None) -> bool | None:
    """Whether a finished sample has its target, but for rounding; None where either is not known."""
    return None if target is None or reward is None else reward >= least_of(target)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _as_image(drawn: Drawn) -> Any:
    if drawn.pixels is None:
        return None
    from diffusers.image_processor import VaeImageProcessor

    return VaeImageProcessor(do_normalize=False).postprocess(drawn.pixels[None], "pil", [False])[0]
