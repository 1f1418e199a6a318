"""Models of other libraries as rewards: those of sentence-transformers, and pipelines of transformers."""

import warnings
from typing import Any

import torch

from redge_guidance.rewards.black_box import BlackBoxReward
from redge_guidance.rewards.text.classifier import TextClassifierReward
from redge_guidance.rewards.text.pairs import PairReward
from redge_guidance.rewards.text.similarity import SentenceSimilarityReward


def reward_of(model: Any) -> Any:
    """The reward that a model of another library is; `model` itself where it is not known.

    A CrossEncoder becomes a `PairReward`, a SentenceTransformer the similarity of answer and prompt, a pipeline for
    text classification a `TextClassifierReward`. What cannot be read so that there is a gradient becomes a
    `BlackBoxReward`, with a warning that says why.

    Raises:
        ValueError: a model that says too little: a classifier with several labels, one without its tokenizer.
    """
    kinds = {kind.__name__ for kind in type(model).__mro__}
    if "CrossEncoder" in kinds:
        return _of_cross_encoder(model)
    if "SentenceTransformer" in kinds:
        return _of_sentence_transformer(model)
    if "TextClassificationPipeline" in kinds:
        return TextClassifierReward.from_pipeline(model)
    if "Pipeline" in kinds:
        raise ValueError(
            f"`reward` must judge texts, got a {type(model).__name__}; of transformers' pipelines that is the one for "
            "text-classification. Make a function of another one a `BlackBoxReward`."
        )
    if isinstance(model, torch.nn.Module) and not _judges_itself(model):
        raise ValueError(_without_tokenizer(model))
    return model


def _judges_itself(model: Any) -> bool:
    """Whether somebody has written a `score(pixels, prompts)` or the like into a class of their own."""
    score = getattr(model, "score", None)
    own = not type(model).__module__.startswith(("transformers.", "peft."))
    return own and (score is None or not isinstance(score, torch.nn.Module))


def _without_tokenizer(model: Any) -> str:
    inner = getattr(model, "get_base_model", lambda: model)()
    kind, labels = type(inner).__name__, getattr(getattr(inner, "config", None), "num_labels", 1)
    fitting = {
        "SequenceClassification": "TextClassifierReward(model, tokenizer, label=...)",
        "ImageClassification": "ImageClassifierReward(model, processor, label=...)",
        "CausalLM": "FluencyReward(model, tokenizer)",
        "MaskedLM": "FluencyReward(model, tokenizer)",
        "CLIP": "CLIPReward(model, processor, tokenizer)",
        "Siglip": "CLIPReward(model, processor, tokenizer)",
    }
    found = next((how for sign, how in fitting.items() if sign in kind), "one of `redge_guidance.rewards`")
    if "SequenceClassification" in kind and labels == 1:
        found = "TextPreferenceReward(model, tokenizer) of chats, or TextClassifierReward(model, tokenizer) of texts"
    return (
        f"`reward` must be a model with what prepares its input, got {type(model).__name__} alone; make it a reward: "
        f"{found}."
    )


def _of_cross_encoder(model: Any) -> Any:
    if model.num_labels != 1:
        raise ValueError(
            f"`reward` must be a CrossEncoder with one score, got one with {model.num_labels} labels; make a function "
            "of `predict` that says which one counts."
        )

    def predict(answers: list[str], prompts: list[str]) -> Any:
        pairs = list(zip(prompts, answers, strict=True))
        return model.predict(pairs, show_progress_bar=False, convert_to_numpy=True)

    try:
        return PairReward.from_cross_encoder(model)
    except ValueError as error:
        return _without_gradient(model, predict, error)


def _of_sentence_transformer(model: Any) -> Any:
    def similarity(answers: list[str], prompts: list[str]) -> Any:
        told = {"show_progress_bar": False, "convert_to_tensor": True}
        return model.similarity_pairwise(model.encode(prompts, **told), model.encode(answers, **told)).cpu()

    try:
        return SentenceSimilarityReward(model)
    except ValueError as error:
        return _without_gradient(model, similarity, error)


def _without_gradient(model: Any, function: Any, error: ValueError) -> BlackBoxReward:
    name = type(model).__name__
    warnings.warn(
        f"`reward` {name} is asked for values alone, since it cannot be differentiated: {error} Take `num_draws` of 32 "
        "or more.",
        stacklevel=4,
    )
    reward = BlackBoxReward(function, batched=True, takes_prompt=True, answer_only=True, name=name)
    reward.modality = "text"
    return reward
