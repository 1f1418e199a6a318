"""A preference model as a reward: how good an answer is to a prompt."""

import functools
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import jinja2
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from redge_guidance.chats import Prompt, as_messages, is_conversation, key_of
from redge_guidance.rewards.reading.cache import Recent
from redge_guidance.rewards.reading.framing import Frame
from redge_guidance.rewards.reading.reading import Reading
from redge_guidance.rewards.text.model_reward import TextModelReward, outputs_of

_ANSWER = "\ue000answer\ue001"  # private characters: in nobody's prompt
_PROBES = ("Yes, it is.", ' \n Is <it> so? & "why" \n ')


class TextPreferenceReward(TextModelReward):
    """`r(x) = m(template(prompt, x))`, the scalar of a reward model (Bradley-Terry) for the answer x to a prompt.

    The model is shown the conversation in its own chat template, x being the assistant's last turn: the generated text
    without the prompt in front. Differences of r are log-odds of being preferred.

    Args:
        model: an `AutoModelForSequenceClassification` with one output, such as Skywork's.
        tokenizer: the model's, with a chat template.
        prompt: what is answered: the user's message, or a conversation `[{"role": ..., "content": ...}, ...]` that ends
            before the answer; or a list with one of these for every text of the batch. None: the prompts of the
            pipeline, or those that `score` is told.
        system: a system message in front.
        chat_template: instead of the tokenizer's.
        whole_text: show the model the text with its prompt, as for texts that are filled in.
        padding_side, max_length: as for `TextModelReward`.

    Raises:
        ValueError: a model with several outputs, no chat template, or one that has not the roles or not the answer.
            When called: no prompts at all, or another number of prompts than of texts.
    """

    auto_class: ClassVar[Any] = AutoModelForSequenceClassification
    of_tokens: ClassVar[bool | None] = False

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        prompt: Prompt | Sequence[Prompt] | None = None,
        *,
        system: str | None = None,
        chat_template: str | None = None,
        whole_text: bool = False,
        padding_side: str | None = None,
        max_length: int | None = None,
    ):
        super().__init__(model, tokenizer, padding_side, max_length)
        if model.config.num_labels != 1:
            raise ValueError(
                f"`model` must have one output, got {model.config.num_labels}; a classifier with labels is for "
                "TextClassifierReward."
            )
        if chat_template is None and not getattr(tokenizer, "chat_template", None):
            raise ValueError("`tokenizer` must have a chat template, got none; pass `chat_template`.")
        self.answer_only = not whole_text
        self._system, self._template = system, chat_template
        told: Any = prompt
        self._single = isinstance(told, str) or is_conversation(told)
        prompts: Any = [told] if self._single else told
        if prompts is not None and not len(prompts):
            raise ValueError("`prompt` must be a message, a conversation, or a list of them, got an empty list.")
        self._frames = None if prompts is None else [self._frame(one) for one in prompts]
        self.whole_batch = self._frames is not None and not self._single
        self._of_prompts: Recent[Hashable, Frame] = Recent()
        if prompts is None:
            self._frame("Hello.")  # a template that does not serve is an error now

    def value(self, reading: Reading) -> Tensor:
        return outputs_of(self.forward(reading))[:, 0]

    def frames(self, count: int, draws: int = 1, prompts: Sequence[Prompt] | None = None) -> Sequence[Frame]:
        if self._frames is None:
            return self._frames_of(prompts)
        if self._single:
            return self._frames * count
        if len(self._frames) * draws != count:
            raise ValueError(
                f"`prompt` must be one prompt, or one for each of the {count // draws} texts of the batch, got "
                f"{len(self._frames)}."
            )
        return self._frames * draws

    def _frames_of(self, prompts: Sequence[Prompt] | None) -> Sequence[Frame]:
        if prompts is None:
            raise ValueError(
                "`prompt` is None and there are no prompts to the texts; make the reward with `prompt=`, or let "
                "`score` or the pipeline know the `prompts`."
            )
        keys = [key_of(prompt) for prompt in prompts]
        known = dict(zip(keys, prompts, strict=True))
        frames = {key: self._of_prompts.get(key) or self._frame(prompt) for key, prompt in known.items()}
        self._of_prompts.update(frames)
        return [frames[key] for key in keys]

    def _frame(self, prompt: Prompt) -> Frame:
        turns = as_messages(prompt)
        if turns and turns[-1].get("role") == "assistant":
            raise ValueError(
                "`prompt` must end before the answer, got a conversation whose last turn is the assistant's."
            )
        if self._system is not None:
            turns = [{"role": "system", "content": self._system}, *turns]
        rendered = self._render(turns, _ANSWER)
        prefix, _, suffix = rendered.partition(_ANSWER)
        if _ANSWER not in rendered or _ANSWER in suffix:
            raise ValueError(
                "`chat_template` must write the assistant's last turn once, and does not; is it the template of a "
                "reward model?"
            )
        frame = Frame(prefix, suffix, special_tokens=False, template=functools.partial(self._render, turns))
        for probe in _PROBES:
            if not frame.write(probe).shows(probe):
                raise ValueError(
                    f"`chat_template` must write the assistant's last turn as it is, white space around it aside, and "
                    f"writes {frame.write(probe).framed!r} for {probe!r}; pass one that does."
                )
        return frame

    def _render(self, turns: list[dict[str, Any]], answer: str) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                [*turns, {"role": "assistant", "content": answer}], tokenize=False, chat_template=self._template
            )
        except (jinja2.TemplateError, KeyError, ValueError) as error:
            roles = ", ".join(str(turn.get("role")) for turn in turns)
            raise ValueError(
                f"`prompt` cannot be written in the reward model's chat template: {error}. It has turns of {roles} and "
                "the assistant's answer; leave out what the template does not know, or pass `chat_template`."
            ) from error
        return text
