"""A preference model as a reward: how good an answer is to a prompt."""

from collections.abc import Sequence
from typing import Any, ClassVar

import jinja2
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from redge_guidance.rewards.reading.framing import Frame
from redge_guidance.rewards.reading.reader import Reading
from redge_guidance.rewards.text.model_reward import ModelReward, outputs_of

Conversation = str | Sequence[dict[str, str]]

_ANSWER = "\ue000answer\ue001"  # private characters: in nobody's prompt


class TextPreferenceReward(ModelReward):
    """`r(x) = m(template(prompt, x))`, the scalar of a reward model (Bradley-Terry) for the answer x to a prompt.

    The model is shown the conversation in its own chat template, x being the assistant's last turn: the generated text
    without the prompt that the generator was given. Differences of r are log-odds of being preferred.

    Args:
        model: an `AutoModelForSequenceClassification` with one output, such as Skywork's.
        tokenizer: the model's, with a chat template.
        prompt: what is answered: the user's message, or a conversation `[{"role": ..., "content": ...}, ...]` that ends
            before the answer; or a list with one of these for every text of the batch.
        system: a system message in front.
        chat_template: instead of the tokenizer's.
        whole_text: show the model the text with its prompt, as for texts that are filled in.
        padding_side, max_length: as for `ModelReward`.

    Raises:
        ValueError: a model with several outputs, no chat template, or one that has not the roles or not the answer.
            When called: another number of prompts than of texts.
    """

    auto_class: ClassVar[Any] = AutoModelForSequenceClassification

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        prompt: Conversation | Sequence[Conversation],
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
        self._single = isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], dict))
        prompts: Any = [prompt] if self._single else prompt
        if not prompts:
            raise ValueError("`prompt` must be a message, a conversation, or a list of them, got an empty list.")
        self._frames = [self._frame(one, system, chat_template) for one in prompts]

    def value(self, reading: Reading) -> Tensor:
        return outputs_of(self.forward(reading))[:, 0]

    def frames(self, count: int, draws: int = 1) -> Sequence[Frame]:
        if self._single:
            return self._frames * count
        if len(self._frames) * draws != count:
            raise ValueError(
                f"`prompt` must be one prompt, or one for each of the {count // draws} texts of the batch, got "
                f"{len(self._frames)}."
            )
        return self._frames * draws

    def _frame(self, prompt: Conversation, system: str | None, template: str | None) -> Frame:
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]
        if system is not None:
            turns = [{"role": "system", "content": system}, *turns]
        rendered = self._render(turns, f" {_ANSWER} ", template)
        prefix, _, suffix = rendered.partition(_ANSWER)
        if _ANSWER not in rendered or _ANSWER in suffix:
            raise ValueError(
                "`chat_template` must write the assistant's last turn once, and does not; is it the template of a "
                "reward model?"
            )
        strips = not (prefix.endswith(" ") and suffix.startswith(" "))
        return Frame(prefix, suffix, False, True) if strips else Frame(prefix[:-1], suffix[1:], False, False)

    def _render(self, turns: list[dict[str, str]], answer: str, template: str | None) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                [*turns, {"role": "assistant", "content": answer}], tokenize=False, chat_template=template
            )
        except (jinja2.TemplateError, KeyError, ValueError) as error:
            roles = ", ".join(str(turn.get("role")) for turn in turns)
            raise ValueError(
                f"`prompt` cannot be written in the reward model's chat template: {error}. It has turns of {roles} and "
                "the assistant's answer; leave out what the template does not know, or pass `chat_template`."
            ) from error
        return text
