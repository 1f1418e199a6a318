"""What `label`, `want`, `max_words` and the name of a classifier stand for: ready-made rewards with their weights."""

from typing import Any

from redge_guidance.hub import loading, resolve
from redge_guidance.setups.models import DEFAULT_MODEL
from redge_guidance.setups.options import Options
from redge_guidance.setups.rewards import Entry
from redge_guidance.setups.schema import (
    CLASSIFIER_SCALE,
    CLASSIFIER_TEMPERATURE,
    CLIP_SCALE,
    LENGTH,
    WORD,
)

TEXT_REWARD, IMAGE_REWARD = "builtin:sentiment", "builtin:mnist-classifier"
_WORDS = ("want", "ban", "min_words", "max_words")
TEXT_ONLY = (*_WORDS, "nats")
IMAGE_ONLY = ("out", "class_labels")
_NAMES = ("label", "reward_temperature", *_WORDS)


def check_kind(options: Options, images: bool) -> None:
    """A ValueError for a setting that is for texts where the model makes images, or the other way round."""
    for name in TEXT_ONLY if images else IMAGE_ONLY:
        if name in options:
            makes = "images" if images else "texts"
            raise ValueError(f"{options.spell(name)} cannot be used with {_model(options)}, which makes {makes}.")


def goals_given(options: Options, entries: list[Entry]) -> bool:
    """Whether anything says what to steer toward."""
    return bool(entries) or any(name in options for name in _NAMES)


def spelled_out(
    options: Options, entries: list[Entry], images: bool, takes_text: bool, consent: bool
) -> tuple[list[Entry], float | None]:
    """The rewards that settings stand for, those with a name among them, and the scale that goes with them.

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
    _check(options)
    check_kind(options, images)
    if named and not named[0].arguments["name"].strip():
        raise ValueError(f"{options.spell('reward')} must name a checkpoint or a ready-made reward, got ''.")
    found = _of_words(options)
    asked = bool(named) or "label" in options or "reward_temperature" in options
    scale = None
    if asked or (images and not entries):
        of_model = _of_images if images else _of_texts
        entry, scale = of_model(options, named[0] if named else None, takes_text, consent)
        found.append(entry)
    kinds = [entry for entry in entries if entry.kind is not None]
    return [*found, *kinds], None if kinds else scale


def no_goal(options: Options) -> ValueError:
    """What to raise where nothing says what to steer toward."""
    names = [options.spell(name) for name in ("label", "want", "ban", "min_words", "max_words", "reward")]
    return ValueError(
        f"{', '.join(names[:-1])} or {names[-1]} must say what to steer toward, got none; the labels of {TEXT_REWARD} "
        "are positive, negative and neutral."
    )


def _check(options: Options) -> None:
    low, high = options.get("min_words"), options.get("max_words")
    if high is not None and (low or 0) > high:
        raise ValueError(f"{options.spell('min_words')} must be <= {options.spell('max_words')}, got {low} and {high}.")
    temperature = options.get("reward_temperature")
    if temperature is not None and not 0 < temperature < float("inf"):
        raise ValueError(f"{options.spell('reward_temperature')} must be a finite number > 0, got {temperature}.")


def _of_words(options: Options) -> list[Entry]:
    found = []
    if "want" in options or "ban" in options:
        words = {"wanted": options.get("want"), "banned": options.get("ban")}
        given = {key: list(value) for key, value in words.items() if value}
        found.append(Entry("LexicalReward", given, WORD, place=_place(options, "want", "ban")))
    if "min_words" in options or "max_words" in options:
        limits = {"minimum": options.get("min_words"), "maximum": options.get("max_words")}
        given = {key: value for key, value in limits.items() if value is not None}
        found.append(Entry("LengthReward", given, LENGTH, place=_place(options, "min_words", "max_words")))
    return found


def _place(options: Options, *names: str) -> str:
    return next((options.places[name] for name in names if name in options.places), "")


def _of_texts(options: Options, named: Entry | None, takes_text: bool, consent: bool) -> tuple[Entry, float | None]:
    if named is None and "label" not in options:
        raise ValueError(
            f"{options.spell('reward_temperature')} needs {options.spell('label')}, got none; the labels of "
            f"{TEXT_REWARD} are positive, negative and neutral."
        )
    return _classifier("TextClassifierReward", options, named, TEXT_REWARD, 1.0), None


def _of_images(options: Options, named: Entry | None, takes_text: bool, consent: bool) -> tuple[Entry, float | None]:
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
        entry = _classifier("ImageClassifierReward", options, named, IMAGE_REWARD, CLASSIFIER_TEMPERATURE)
        return entry, CLASSIFIER_SCALE
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
    return _entry("CLIPReward", arguments, options, named), CLIP_SCALE


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
