"""Tasks of one's own, in a file."""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from redge_guidance.checks import as_real
from redge_guidance.constraints.constraint import parted
from redge_guidance.evaluate.wanted import Goal, Task
from redge_guidance.reward import Reward
from redge_guidance.setups.rewards import make, read_entries
from redge_guidance.setups.schema import OPTIONS, nearest
from redge_guidance.setups.setup import assemble, model_makes_images, options_of, read_document
from redge_guidance.terms import terms_of

_OWN = ("gold", "gold_at_least", "particle_temperature")


def task_of(file: str | os.PathLike[str], trust_remote_code: bool = False) -> Task:
    """The task of a YAML file: a set-up as `redge_guidance.load` reads it, with a judge.

    Beside the settings of a set-up the file says `gold`, rewards as `reward` has them, which judge finished samples and
    are never optimised; `gold_at_least`, what they are to be worth, without which samples are as the rewards themselves
    want them; and, if it likes, `particle_temperature`, units of reward in a nat.

        model: builtin:tatoeba-masked
        reward: [TextClassifierReward: {name: builtin:sentiment, label: negative}]
        gold: [LexicalReward: {wanted: sad}]
        prompt: ["", "Tom"]

    Raises:
        ValueError: as `load`; no `reward` or no `gold`, a judge without yes or no and no `gold_at_least`, or a number
            that is none.
        OSError: the file, or a checkpoint, cannot be read.
    """
    document = read_document(file)
    own = {name: document.values[name] for name in _OWN if name in document.values}
    rest = replace(document, values={name: value for name, value in document.values.items() if name not in _OWN})
    for name in rest.values:
        if name not in OPTIONS:
            told = nearest(name.replace("-", "_"), [*_OWN, *sorted(OPTIONS)])
            raise ValueError(f"{document.place(name)}: there is no setting `{name}`; {told}")
    options = options_of(rest)
    for name in ("gold_at_least", "particle_temperature"):
        number = as_real(own.get(name, 1.0))
        if number is None or number != number or (name == "particle_temperature" and not 0 < number < float("inf")):
            told = "a finite number > 0" if name == "particle_temperature" else "a number"
            raise ValueError(f"{document.place(name)}: `{name}` must be {told}, got {own[name]!r:.80}.")
    if "gold" not in own:
        raise ValueError(f"{document.source}: `gold` must say what judges the samples, rewards as `reward` has them.")
    if own["gold"] in ([], {}, ""):
        raise ValueError(f"{document.place('gold')}: `gold` must be rewards, at least one, got none.")
    entries = read_entries(own["gold"], lambda *path: document.place("gold", *path), in_file=True)
    unnamed = next((entry for entry in entries if entry.kind is None), None)
    if unnamed is not None:
        raise ValueError(
            f"{unnamed.place}: `gold` must say what reward {unnamed.arguments['name']} is, as in "
            "`TextClassifierReward: {name: ...}`."
        )
    if options.get("prompt") == []:
        raise ValueError(f"{document.place('prompt')}: `prompt` must be a text or texts, at least one, got none.")
    setup = assemble(options, trust_remote_code)
    if parted(setup.reward)[0] is None:
        raise ValueError(f"{document.source}: `reward` must say what is optimised.")
    gold = make(entries, options.get("device", "cpu"), options.get("dtype", "float32"), trust_remote_code)
    modality = "image" if model_makes_images(options) else "text"
    for term in terms_of(gold):
        found = getattr(term.reward, "modality", None)
        if found not in (None, modality):
            raise ValueError(
                f"{document.place('gold')}: `gold` must judge what the model makes, {modality}s, got {term.name}, "
                f"which is for {found}s."
            )
    left_out = sorted(name for name in options.of("guidance", "run", "report") if name != "prompt")
    if left_out:
        warnings.warn(
            f"{document.source}: {', '.join(left_out)} are of a single run, and left out: methods say how guidance "
            "works, and the plan how much is drawn.",
            stacklevel=2,
        )
    goal = Goal(setup.reward, _judging(gold, own.get("gold_at_least"), document.source), setup.run.get("prompt", [""]))
    setup.pipe.set_progress_bar_config(disable=True)
    judged = f"{gold.name}" + (f" at least {own['gold_at_least']}" if "gold_at_least" in own else "")
    temperature = float(own.get("particle_temperature", 1.0))
    return Task(
        Path(file).stem, judged, setup.pipe, [goal], temperature, setup.settings, made_from=dict(document.values)
    )


def _judging(gold: Reward, least: float | None, source: str) -> Callable[[Sequence[Any]], list[float]]:
    def judge(samples: Sequence[Any]) -> list[float]:
        shown: Any = torch.stack(list(samples)) if isinstance(samples[0], torch.Tensor) else list(samples)
        if least is not None:
            return [float(value >= least) for value in gold.score(shown).tolist()]
        found = gold.reached(shown)
        if found is None:
            raise ValueError(f"{source}: `gold_at_least` must say what {gold.name} is to be worth; add it.")
        return [float(one) for one in found]

    return judge
