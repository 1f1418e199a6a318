"""What `label`, `max_words --soft` and the name of a classifier stand for: ready-made rewards with their weights."""

from dataclasses import replace
from typing import Any

from redge_guidance.hub import loading, resolve
from redge_guidance.recipe import own_arguments
from redge_guidance.setups.forms import SOFTENED, place_of, soft_ones
from redge_guidance.setups.models import DEFAULT_MODEL
from redge_guidance.setups.options import Options
from redge_guidance.setups.rewards import READY_MADE, Entry
from redge_guidance.setups.schema import (
    CLASSIFIER_TEMPERATURE,
    FORM,
    LENGTH,
    WORD,
    names_of,
)

TEXT_REWARD, IMAGE_REWARD = "builtin:sentiment", "builtin:mnist-classifier"
TEXT_ONLY = (*names_of("constraint"), "nats")
IMAGE_ONLY = ("out", "class_labels")
_NAMES = ("label", "reward_temperature")


def check_kind(options: Options, images: bool) -> None:
    """A ValueError for a setting that is for texts where the model makes images, or the other way round."""
    for name in TEXT_ONLY if images else IMAGE_ONLY:
        if name in options:
            makes = "images" if images else "texts"
            raise ValueError(f"{options.spell(name)} cannot be used with {_model(options)}, which makes {makes}.")


def goals_given(options: Options, entries: list[Entry]) -> bool:
    """Whether anything says what to steer toward, beside constraints."""
    return bool(entries) or any(name in options for name in _NAMES) or bool(soft_ones(options))


def spelled_out(options: Options, entries: list[Entry], images: bool, takes_text: bool, consent: bool) -> list[Entry]:
    """The rewards that settings stand for, those with a name among them.

    Args:
        options: `label`, `want` and the like among them.
        entries: of the setting `reward`; one without a kind is a checkpoint.
        images, takes_text: what the model makes, and whether prompts are told to it.
        consent: whether code of a checkpoint may run.

    Raises:
        ValueError: none, or settings that do not go together.
    """
    named = [entry for entry in entries if entry.kind is None]
    if len(named) > 1:
        raise ValueError(
            f"{options.spell('reward')} must name one checkpoint at most, got {named[0].arguments['name']} and "
            f"{named[1].arguments['name']}; say what the others are, as in 'TextClassifierReward: {{name: ...}}'."
        )
    _check_temperature(options)
    check_kind(options, images)
    if named and not named[0].arguments["name"].strip():
        raise ValueError(f"{options.spell('reward')} must name a checkpoint or a ready-made reward, got ''.")
    found = _of_form(options)
    asked = bool(named) or "label" in options or "reward_temperature" in options
    if asked or (images and not entries):
        of_model = _of_images if images else _of_texts
        found.append(of_model(options, named[0] if named else None, takes_text, consent))
    kinds = [entry for entry in entries if entry.kind is not None]
    return [_judging(options, entry) for entry in (*found, *kinds)]


def no_goal(options: Options) -> ValueError:
    """What to raise where nothing says what to steer toward."""
    names = [options.spell(name) for name in ("label", "reward")]
    forms = [options.spell(name) for name in (*SOFTENED, "json_schema", "choices")]
    return ValueError(
        f"{' or '.join(names)} must say what to steer toward, or {', '.join(forms[:-1])} or {forms[-1]} what form "
        f"texts have, got none; the labels of {TEXT_REWARD} are positive, negative and neutral."
    )


def _check_temperature(options: Options) -> None:
    temperature = options.get("reward_temperature")
    if temperature is not None and not 0 < temperature < float("inf"):
        raise ValueError(f"{options.spell('reward_temperature')} must be a finite number > 0, got {temperature}.")


def _of_form(options: Options) -> list[Entry]:
    """The rewards that `soft` makes of words, lengths and a pattern."""
    found, soft = [], soft_ones(options)
    if "want" in soft or "ban" in soft:
        words = {"wanted": options.get("want"), "banned": options.get("ban")}
        given = {key: list(value) for key, value in words.items() if value}
        found.append(Entry("LexicalReward", given, WORD, place=place_of(options, "want", "ban")))
    if "min_words" in soft or "max_words" in soft:
        limits = {"minimum": options.get("min_words"), "maximum": options.get("max_words")}
        given = {key: value for key, value in limits.items() if value is not None}
        found.append(Entry("LengthReward", given, LENGTH, place=place_of(options, "min_words", "max_words")))
    if "regex" in soft:
        found.append(Entry("RegexReward", {"pattern": options.get("regex")}, FORM, place=place_of(options, "regex")))
    return found


def _judging(options: Options, entry: Entry) -> Entry:
    """The entry, which judges what `answer_only` says unless it says so itself."""
    if "answer_only" not in options or "answer_only" not in own_arguments(READY_MADE[entry.kind or ""]):
        return entry
    return replace(entry, arguments={"answer_only": options.get("answer_only"), **entry.arguments})


def _of_texts(options: Options, named: Entry | None, takes_text: bool, consent: bool) -> Entry:
    if named is None and "label" not in options:
        raise ValueError(
            f"{options.spell('reward_temperature')} needs {options.spell('label')}, got none; the labels of "
            f"{TEXT_REWARD} are positive, negative and neutral."
        )
    return _classifier("TextClassifierReward", options, named, TEXT_REWARD, 1.0)


def _of_images(options: Options, named: Entry | None, takes_text: bool, consent: bool) -> Entry:
    from transformers import AutoConfig

    name = IMAGE_REWARD if named is None else named.arguments["name"]
    with loading(name):
        config = AutoConfig.from_pretrained(resolve(name), trust_remote_code=consent)
    kinds = getattr(config, "architectures", None) or []
    prompts = options.get("prompt")
    if any(kind.endswith("ForImageClassification") for kind in kinds):
        if prompts and not takes_text:
            raise ValueError(
                f"{options.spell('prompt')} has no use: {_model(options)} is given no text, and {name} is a classifier."
            )
        return _classifier("ImageClassifierReward", options, named, IMAGE_REWARD, CLASSIFIER_TEMPERATURE)
    if not hasattr(config, "vision_config"):
        raise ValueError(
            f"{options.spell('reward')} must be an image classifier or a CLIP model, got {name}, {config.model_type}."
        )
    for option in ("label", "reward_temperature"):
        if option in options:
            raise ValueError(
                f"{options.spell(option)} is for a classifier, and {name} is {config.model_type}; use "
                f"{options.spell('prompt')}."
            )
    if not prompts and "input" not in options:
        raise ValueError(f"{options.spell('prompt')} must say what images are to show, for {name}, got none.")
    if not takes_text and len(prompts or ()) != 1:
        raise ValueError(
            f"{options.spell('prompt')} must be one text for {_model(options)}, which is not told it, got "
            f"{len(prompts or ())}."
        )
    arguments = {"name": name} | ({} if takes_text else {"target": prompts[0]})
    return _entry("CLIPReward", arguments, options, named)


def _classifier(kind: str, options: Options, named: Entry | None, default: str, temperature: float) -> Entry:
    arguments: dict[str, Any] = {"name": default if named is None else named.arguments["name"]}
    if "label" in options:
        arguments["label"] = options.get("label")
    temperature = options.get("reward_temperature", temperature)
    if temperature != 1:
        arguments["temperature"] = temperature
    return _entry(kind, arguments, options, named)


def _entry(kind: str, arguments: dict[str, Any], options: Options, named: Entry | None) -> Entry:
    trust = options.get("trust_remote_code") and named is not None and not named.in_file
    more = {"trust_remote_code": True} if trust else {}
    place = named.place if named is not None and named.in_file else options.places.get("label", "")
    return Entry(kind, {**arguments, **more}, place=place, in_file=named is not None and named.in_file)


def _model(options: Options) -> str:
    name: str = options.get("model", DEFAULT_MODEL)
    return name
