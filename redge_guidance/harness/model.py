"""The model `redge` of lm-evaluation-harness."""

import json
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from redge_guidance.attach import guide
from redge_guidance.config import GuidanceConfig
from redge_guidance.harness.loading import load_setup
from redge_guidance.harness.options import SAMPLING, Options
from redge_guidance.harness.processes import Processes
from redge_guidance.harness.requests import Sampling, batches, check_call, sampling_of
from redge_guidance.harness.texts import Words, answers, cut, generator_of
from redge_guidance.pipelines.text.prompts import Encoded
from redge_guidance.text import end_token_id, text_mask

Pair = tuple[list[int], list[int]]


@register_model("redge")
class RedgeLM(TemplateLM):
    """A text pipeline of ours, guided or not, as lm-evaluation-harness calls a model.

    `generate_until` draws texts by the pipeline, under the reward where there is one, and cuts them as the task says.
    `loglikelihood` is minus the bound of `pipe.nll`, a lower bound on `log p(continuation | context)` by Monte Carlo,
    of the model itself: a reward has no part in it. Every request has generators of its own, so that no result depends
    on the batch, on the order, or on the number of processes.

    Args:
        pretrained: as in `Options`.
        pipe: a text pipeline in memory, instead of `pretrained`.
        guided_by: a reward in memory, instead of `reward`.
        config: of guidance.
        **options: as in `Options`, also under LLaDA's and Dream's names.

    Raises:
        ValueError: as `Options.of` and `load_setup`.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        pipe: Any = None,
        guided_by: Any = None,
        config: GuidanceConfig | None = None,
        **options: Any,
    ):
        super().__init__()
        self.options = Options.of({"pretrained": pretrained} | options)
        self._processes = Processes.of_environment()
        self._rank, self._world_size = self._processes.rank, self._processes.number
        found = load_setup(self.options, pipe, guided_by, config)
        check_call(found.pipe, self.options.given(SAMPLING))
        self.pipe, self.reward, self.config = found.pipe, found.reward, found.config
        self.words = Words(self.pipe, self.options.max_length)
        self.tokenizer = self.pipe.tokenizer
        self.batch_size = self.options.most_at_once()
        self._device = self.pipe.device
        self._rendered = False  # whether contexts come out of a chat template
        self._warned: set[str] = set()

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations of contexts, each up to the first of its strings `until`."""
        work = [(request, sampling_of(request.args[1], self.options, self.pipe)) for request in requests]
        for name in sorted({name for _, how in work for name in how.ignored}):
            self._warn(f"`{name}`, which a task asks for, is no setting of {type(self.pipe).__name__}, and is ignored")
        prompts = [self._context(request.args[0], how) for request, how in work]
        seeds = list(self._seeds([(request, request.args[0]) for request in requests]))
        texts = [""] * len(work)
        kinds = [json.dumps(how.call, sort_keys=True) for _, how in work]
        guided = nullcontext() if self.reward is None else guide(self.pipe, self.reward, self.config, seed=self._seed)
        with guided:

            def draw(rows: Sequence[int]) -> None:
                found = self._draw([prompts[k] for k in rows], work[rows[0]][1].call, [seeds[k] for k in rows])
                for k, text in zip(rows, found, strict=True):
                    texts[k] = cut(text, work[k][1].until)
                    self.cache_hook.add_partial("generate_until", work[k][0].args, texts[k])

            batches(kinds, [len(prompt.ids) for prompt in prompts], self.batch_size, draw, not disable_tqdm)
        return texts

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """`(log-probability, whether it is the greedy continuation)` of `(context, continuation)`, in nats."""
        pairs = [self._pair(*request.args) for request in requests]
        values = self._scores(requests, pairs, disable_tqdm)
        greedy = self._are_greedy(requests, pairs, disable_tqdm)
        found = list(zip(values, greedy, strict=True))
        for request, one in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, one)
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, nats; of one longer than the model the sum over windows, see `Words`."""
        pairs: list[Pair] = [([], self.words.ids(request.args[0])) for request in requests]
        values = self._scores(requests, pairs, disable_tqdm)
        for request, value in zip(requests, values, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return values

    @property
    def _seed(self) -> int:
        return self.options.seed

    def _context(self, text: str, how: Sampling) -> Encoded:
        size = getattr(self.pipe.config, "block_size", None) or 1
        room = how.call["gen_length"] + size - 1
        if self.words.longest is not None and room + len(self.words.start) >= self.words.longest:
            raise ValueError(
                f"`gen_length` must leave room for a context in the {self.words.longest} tokens of the model, got "
                f"{how.call['gen_length']}; set a smaller one in `model_args`."
            )
        if not self.words.fits(text, room, self._rendered):
            self._warn("contexts are too long and lose their beginning; lower `gen_length` or the number of examples")
        return self.words.context(text, room, self._rendered)

    def _draw(self, prompts: list[Encoded], call: dict[str, Any], seeds: list[Any]) -> list[str]:
        """Texts that follow the prompts."""
        generators = [generator_of(self._seed, self.device, *seed) for seed in seeds]
        sequences = self.pipe(prompts, generator=generators, **call).sequences
        canvas = self.pipe.canvas(prompts, call["gen_length"])
        text = text_mask(sequences, self.tokenizer, canvas.attention_mask, canvas.given, self.pipe.ends)
        written = (canvas.prompt & canvas.given).int() + 2 * (text & canvas.free).int()
        return answers(sequences, written, self.tokenizer)

    def _pair(self, context: str, continuation: str) -> Pair:
        """Ids of both, of the whole text where tokens do not lie across."""
        if not context:
            return [], self.words.ids(continuation)
        before, after = self._encode_pair(context, continuation)
        return before, after

    def _scores(self, requests: list[Any], pairs: list[Pair], quiet: bool) -> list[float]:
        if self.reward is not None:
            self._warn("log-probabilities are those of the model itself; the reward has no part in them")
        start = [] if self._rendered else self.words.start
        parts = [(k, *window) for k, pair in enumerate(pairs) for window in self.words.windows(*pair)]
        seeds = list(self._seeds([(requests[k], [before, ids]) for k, before, ids in parts]))
        values = [0.0] * len(pairs)

        def score(rows: Sequence[int]) -> None:
            found = self.pipe.nll(
                [Encoded("", parts[n][2]) for n in rows],
                self.options.num_corruptions,
                self.batch_size,
                [generator_of(self._seed, self.device, *seeds[n]) for n in rows],
                [Encoded("", [*start, *parts[n][1]], len(start)) for n in rows],
                self.options.guidance_scale or 1.0,
            )
            for n, nll in zip(rows, found.tolist(), strict=True):
                values[parts[n][0]] -= nll

        shapes = [f"{len(before)} {len(ids)}" for _, before, ids in parts]
        batches(shapes, [len(before) + len(ids) for _, before, ids in parts], self.batch_size, score, not quiet)
        return values

    def _are_greedy(self, requests: list[Any], pairs: list[Pair], quiet: bool) -> list[bool]:
        """Whether the pipeline, at temperature 0 and without reward, writes just these tokens, one a step."""
        found = [False] * len(pairs)
        if not self.options.is_check_greedy:
            self._warn("`is_check_greedy` is False: no continuation counts as the greedy one, accuracies by it are 0")
            return found
        start = [] if self._rendered else self.words.start
        windows = [list(self.words.windows(*pair)) for pair in pairs]
        whole = [k for k, parts in enumerate(windows) if len(parts) == 1 and parts[0][1]]
        call: dict[str, Any] = {"temperature": 0.0} | self.options.given(("block_length", "guidance_scale"))
        seeds = list(self._seeds([(requests[k], "greedy") for k in range(len(pairs))]))

        def decode(rows: Sequence[int]) -> None:
            prompts = [Encoded("", [*start, *windows[whole[n]][0][0]], len(start)) for n in rows]
            length = len(windows[whole[rows[0]]][0][1])
            generators = [generator_of(self._seed, self.device, *seeds[whole[n]]) for n in rows]
            sequences = self.pipe(prompts, gen_length=length, generator=generators, **call).sequences
            free = self.pipe.canvas(prompts, length).free
            for n, row, new in zip(rows, sequences, free, strict=True):
                found[whole[n]] = row[new].tolist()[:length] == windows[whole[n]][0][1]

        sizes = [len(windows[k][0][1]) for k in whole]
        batches([str(size) for size in sizes], sizes, self.batch_size, decode, not quiet)
        return found

    def _seeds(self, requests: Sequence[tuple[Any, Any]]) -> Iterator[tuple[Any, ...]]:
        """What each is seeded by: its task, its document and its text, and how often it was asked before."""
        seen: Counter[str] = Counter()
        for request, text in requests:
            key = (request.task_name, request.doc_id, request.idx, text)
            name = json.dumps(key, default=str)
            yield (*key, seen[name])
            seen[name] += 1

    def _warn(self, what: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(what, stacklevel=3)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self.words.ids(string)

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        raise NotImplementedError("`loglikelihood` does the whole work")

    @property
    def eot_token_id(self) -> int:
        end: Any = end_token_id(self.tokenizer)
        return int(end)

    @property
    def max_length(self) -> int | None:
        return self.words.longest

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages in the chat template of the tokenizer; contexts are then taken as they are."""
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise ValueError("`apply_chat_template` needs a chat template, and the tokenizer has none; leave it out.")
        self._rendered = True
        more = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        text: str = self.tokenizer.apply_chat_template(chat_history, tokenize=False, **more)
        return text

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._processes.all_gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        return self._processes.gather_object(obj, dst)

    def barrier(self) -> None:
        self._processes.barrier()
