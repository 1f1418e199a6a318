"""A pipeline as something that draws a batch of requests, by the arguments of its call."""

import difflib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from redge_guidance.chats import is_conversation
from redge_guidance.generation.requests import Line, Prompt, Request

_TAKEN = ("prompt", "class_labels", "messages", "generator", "num_images_per_prompt", "return_dict", "output_type")


@dataclass(frozen=True)
class Drawn:
    """What a pipeline made of one request: a text and its answer, or pixels `(3, height, width)` in [0, 1].

    Attributes:
        whole: whether the text has the prompt, if there was one; some pipelines give the answer alone.
    """

    text: str | None = None
    answer: str | None = None
    pixels: Tensor | None = None
    whole: bool = True


class Sampler:
    """Draws requests with a pipeline, each with a generator of its own, seeded with the request's seed.

    It is on the CPU where the call takes a list of generators, as those do that move what they draw; else it is on the
    device of the pipeline: some schedulers of diffusers draw there and nowhere else.

    Args:
        pipe: its call takes `prompt`, or `class_labels`, and `generator`, and gives `texts` or `images`.
        settings: further arguments of its call.

    Raises:
        ValueError: an argument that the pipeline's call does not have, or that is said for each sample here.

    Attributes:
        together: whether the call takes a list of generators, so that a sample does not depend on its batch. Where it
            does not, requests are drawn one at a time.
    """

    def __init__(self, pipe: Any, settings: dict[str, Any]):
        try:
            self._parameters = dict(inspect.signature(pipe.__call__).parameters)
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"`pipe` must be a pipeline, got {type(pipe).__name__}, which cannot be called."
            ) from error
        if not {"prompt", "class_labels"} & set(self._parameters):
            raise ValueError(f"`pipe` must be called with `prompt` or `class_labels`, got {type(pipe).__name__}.")
        _check_names(settings, self._parameters, type(pipe).__name__)
        self.pipe, self.settings = pipe, settings
        generators = self._parameters.get("generator")
        annotated = "" if generators is None else str(generators.annotation)
        self.together = "Generator" in annotated and "[" in annotated

    @property
    def makes_images(self) -> bool:
        return "output_type" in self._parameters and "num_images_per_prompt" in self._parameters

    @property
    def takes_text(self) -> bool:
        """Whether prompts are texts; else they are classes."""
        if "class_labels" not in self._parameters or "prompt" not in self._parameters:
            return "prompt" in self._parameters
        return getattr(self.pipe, "tokenizer", None) is not None

    @property
    def is_chat(self) -> bool:
        """Whether prompts that are strings are put into the chat template."""
        asked = self._parameters.get("use_chat_template")
        usual = "messages" in self._parameters if asked is None else asked.default
        told = bool(self.settings.get("use_chat_template", usual))
        if "messages" not in self._parameters:
            return told
        # diffusers' pipelines: by default, where there is a template
        parts = (getattr(self.pipe, name, None) for name in ("tokenizer", "processor"))
        return told and any(getattr(part, "chat_template", None) for part in parts)

    def kind(self, line: Line) -> int:
        """Entries of one kind can be drawn by one call: images of any class, or texts that take as many steps.

        Raises:
            ValueError: this entry alone could not be drawn, as far as that is known before.
        """
        prompt = line.prompt
        if is_conversation(prompt) and "messages" not in self._parameters and not self.takes_text:
            raise ValueError("a list of messages is for models of texts")
        if not self.takes_text:
            if prompt in (None, ""):
                return 1
            _as_class(prompt)
        lay_out = getattr(self.pipe, "canvas", None)
        if lay_out is None:
            return 0
        known = inspect.signature(lay_out).parameters
        settings = {name: value for name, value in self.settings.items() if name in known}
        if self.settings.get("stride_length") is not None:
            settings["any_length"] = True
        free = int(lay_out([_text_or_chat(prompt)], **settings).free.sum())
        return free if self.settings.get("num_inference_steps") is None else 0

    def draw(self, requests: Sequence[Request]) -> list[Drawn]:
        """One sample a request, in their order, by one call of the pipeline."""
        prompts = [request.line.prompt for request in requests]
        device = torch.device("cpu") if self.together else _device_of(self.pipe)
        generators = [torch.Generator(device).manual_seed(request.seed) for request in requests]
        arguments = {**self.settings, **self._prompts(prompts)}
        if "generator" in self._parameters:
            arguments["generator"] = generators if self.together else generators[0]
        if self.makes_images:
            arguments["output_type"] = "pt"
        output = self.pipe(**arguments)
        images, texts = getattr(output, "images", None), getattr(output, "texts", None)
        if texts is not None:
            answers = getattr(output, "answers", None)
            if answers is None:
                return [
                    Drawn(text, text, whole=prompt in (None, "")) for text, prompt in zip(texts, prompts, strict=True)
                ]
            return [Drawn(text, answer) for text, answer in zip(texts, answers, strict=True)]
        if images is None:
            raise ValueError(f"`pipe` must give `texts` or `images`, got {type(output).__name__}.")
        return [Drawn(pixels=pixels.float().cpu()) for pixels in images]

    def _prompts(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        if not self.takes_text:
            if prompts[0] in (None, ""):
                return {"class_labels": None, "num_images_per_prompt": len(prompts)}
            return {"class_labels": [_as_class(prompt) for prompt in prompts]}
        if "messages" in self._parameters and is_conversation(prompts[0]):
            return {"messages": prompts[0]}
        texts = [_text_or_chat(prompt) for prompt in prompts]
        if "messages" in self._parameters and not self.together:
            return {"prompt": texts[0]}
        return {"prompt": texts}


def _device_of(pipe: Any) -> torch.device:
    """Where a pipeline computes; the CPU where it does not say."""
    found = (getattr(pipe, name, None) for name in ("_execution_device", "device"))
    return next((device for device in found if isinstance(device, torch.device)), torch.device("cpu"))


def _text_or_chat(prompt: Prompt) -> Any:
    return prompt if isinstance(prompt, list) else "" if prompt is None else str(prompt)


def _as_class(prompt: Prompt) -> int:
    try:
        return int(str(prompt))
    except ValueError as error:
        raise ValueError(f"`prompt` must be the number of a class for this model, got {prompt!r:.60}.") from error


def _check_names(settings: dict[str, Any], known: dict[str, Any], pipeline: str) -> None:
    for name in settings:
        if name in _TAKEN:
            hint = "; pass `seed`" if name == "generator" else ""
            raise ValueError(f"`{name}` cannot be passed to the pipeline here, every sample is given its own{hint}.")
        if name not in known and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
            near = difflib.get_close_matches(name, [other for other in known if other not in _TAKEN], 1)
            hint = (
                f"; did you mean `{near[0]}`?"
                if near
                else f"; it has {', '.join(k for k in known if k not in _TAKEN)}."
            )
            raise ValueError(f"`{name}` is no argument of {pipeline}{hint}")
