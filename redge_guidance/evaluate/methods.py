"""Ways to draw under a reward, by name: the bare sampler, best-of-n, particles, guidance, and any two together."""

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch

from redge_guidance.config import GuidanceConfig
from redge_guidance.estimators import ESTIMATORS
from redge_guidance.generation import generate
from redge_guidance.particles import ParticleConfig, best_of_n, search
from redge_guidance.setups.documents import read_value
from redge_guidance.setups.schema import MOST, nearest
from redge_guidance.strength import update_of
from redge_guidance.updates import UPDATES

_NAME = re.compile(r"(?P<kind>[a-z_]+(?:-[a-z_]+)*?)(?:-(?P<n>\d+))?(?:\[(?P<settings>.*)\])?", re.DOTALL)
_KINDS = ("unguided", "best-of", "fk", "guided", "guided-best-of", "guided-fk")
_SEVERAL = ("best-of", "fk", "guided-best-of", "guided-fk")
_OF_PARTICLES = [f.name for f in fields(ParticleConfig) if f.name != "num_particles"]
_SOFT = ("gumbel_softmax", "redge", "redge_cov")  # whose soft samples are no other estimator's
_OF_GUIDANCE = [f.name for f in fields(GuidanceConfig)]
_OURS = {name for draw in (generate, best_of_n, search) for name in inspect.signature(draw).parameters} - {"settings"}

_CHEAP = "guided-fk-4[particles: {intermediate: guidance}]"
_MAIN = ("unguided", "best-of-2", "best-of-8", "fk-4", "guided", "guided-best-of-4", "guided-fk-4", _CHEAP)
_STRENGTHS = tuple(f"guided[scale: {scale}]" for scale in (0.5, 1, 2, 4, 8, 16))
_BUDGETS = tuple(f"guided[scale: {scale}, kl_budget: 0.5]" for scale in (0.5, 1, 2, 4, 8, 16))


@dataclass(frozen=True)
class Method:
    """How samples are drawn.

    Attributes:
        name: as it was asked for.
        guidance: settings of `GuidanceConfig`; None: the reward does not guide.
        particles: settings of `ParticleConfig`, n left out; None: samples of a prompt do not compete as they grow.
        n: samples of a prompt, the best of which is taken; the number of particles.
        sampler: settings of the pipeline's call, over those of the task.
    """

    name: str
    guidance: GuidanceConfig | None = None
    particles: dict[str, Any] | None = None
    n: int = 1
    sampler: Mapping[str, Any] = field(default_factory=dict)

    def draw(
        self,
        pipe: Any,
        reward: Any,
        prompts: Sequence[Any],
        *,
        seed: int,
        batch_size: int,
        temperature: float,
        settings: dict[str, Any],
    ) -> list[Any]:
        """One sample a prompt, a text or pixels `(3, height, width)`; the best of n by the reward.

        Args:
            temperature: of particles, units of reward in a nat, unless the method names one.
        """
        how: dict[str, Any] = {"batch_size": batch_size, "seed": seed, **settings, **self.sampler}
        if self.particles is not None:
            config = self.config(temperature)
            return [_finished(one.best) for one in search(pipe, prompts, reward, config, self.guidance, **how)]
        if self.n > 1:
            return [_finished(one.best) for one in best_of_n(pipe, prompts, reward, self.n, self.guidance, **how)]
        wanted = None if self.guidance is None else reward
        return [_sample(record) for record in generate(pipe, prompts, wanted, self.guidance, **how)]

    def config(self, temperature: float) -> ParticleConfig:
        """Of its particles."""
        return ParticleConfig(num_particles=self.n, **{"temperature": temperature, **(self.particles or {})})

    def to_dict(self, temperature: float, reward: Any, images: bool = False) -> dict[str, Any]:
        """All settings as plain values, the update being that for `reward`, of a sampler that makes `images` or not."""
        guidance = None
        if self.guidance is not None:
            guidance = json.loads(replace(self.guidance, update=update_of(reward, self.guidance, images)).to_json())
        particles = None if self.particles is None else asdict(self.config(temperature))
        return {"guidance": guidance, "particles": particles, "n": self.n, "sampler": dict(self.sampler)}


def method(name: str) -> Method:
    """The method that a name says, with its settings in brackets, in YAML.

    `unguided`; `best-of-8`; `fk-8` (particles, as FK steering); `guided`; `guided-best-of-4`; `guided-fk-4` (particles
    that are guided); the name of an estimator, which is `guided[estimator: NAME]`. Settings are those of
    `GuidanceConfig`, of particles without guidance those of `ParticleConfig`; of particles with guidance the latter
    stand in `particles`. What is for the pipeline's call stands in `sampler`, as in `unguided[sampler: {temperature:
    0}]`.

    Raises:
        ValueError: another name, with the nearest one; no number where one is needed, or one where none is; an unknown
            setting or a value out of range.

    >>> method("guided-fk-4[scale: 2, particles: {temperature: 0.5}]").particles
    {'temperature': 0.5}
    """
    found = _NAME.fullmatch(name.strip())
    kind = "" if found is None else found["kind"]
    if "[" in name and not name.strip().endswith("]"):
        raise ValueError(f"the settings of `{name}` must end with `]`, which is missing.")
    if found is None or kind not in (*_KINDS, *ESTIMATORS):
        known = [*(f"{one}-8" if one in _SEVERAL else one for one in _KINDS), *ESTIMATORS]
        raise ValueError(f"there is no method `{name}`; {nearest(name, known)}")
    if (found["n"] is not None) != (kind in _SEVERAL):
        told = f"a number, as `{kind}-8`" if kind in _SEVERAL else f"no number, as `{kind}`"
        raise ValueError(f"the method `{kind}` has {told}, got `{name}`.")
    n = int(found["n"] or 1)
    if not 1 <= n <= MOST:
        raise ValueError(f"the method `{kind}` must have a number from 1 to {MOST:,}, got `{name[:80]}`.")
    settings = _settings(name, found["settings"])
    sampler = settings.pop("sampler", {})
    if not isinstance(sampler, dict):
        raise ValueError(f"`{name}`: `sampler` must be settings by name, got {sampler!r:.80}.")
    check_call(f"`{name}`: `sampler`", sampler)
    if kind in ESTIMATORS:
        if "estimator" in settings:
            raise ValueError(
                f"`{name}` names its estimator twice; take `guided` for that in brackets, or leave it out."
            )
        settings, kind = {"estimator": kind, **settings}, "guided"
    if kind in ("unguided", "best-of") and settings:
        raise ValueError(f"the method `{kind}` has no settings but `sampler`, got `{name}`.")
    particles = settings.pop("particles", None) if kind == "guided-fk" else settings if kind == "fk" else None
    if particles is None and kind.endswith("fk"):
        particles = {}
    guidance = _guidance(name, settings) if kind.startswith("guided") else None
    made = Method(name.strip(), guidance, particles, n, sampler)
    _check_particles(made)
    return made


def methods_of(names: Sequence[str]) -> list[Method]:
    """Methods by name, each once; `main`, `estimators` and `strengths` stand for several."""
    given = [name.strip() for name in ([names] if isinstance(names, str) else names)]
    spelled = [one for name in given for one in GROUPS.get(name, (name,))]
    return [method(name) for name in dict.fromkeys(spelled)]


def check_call(where: str, settings: Mapping[Any, Any]) -> None:
    """A ValueError for settings of a pipeline's call that are none of its own."""
    ours = next((name for name in settings if name in _OURS), None)
    if ours is not None:
        raise ValueError(
            f"{where} is for the pipeline's call, got `{ours}`, which `evaluate` says itself; leave it out."
        )


def _estimators() -> list[str]:
    """Every estimator with hard and, where it draws any of its own, soft samples, by every update rule.

    `entropy_mix` is EntRGi (arXiv 2602.05000), with weight 1 APS.
    """
    found = []
    for update in UPDATES:
        for name, kind in ESTIMATORS.items():
            more = ", num_draws: 32" if kind().needs == "values" else ""
            spelled = [name, f"{{{name}: {{hard: false}}}}"] if name in _SOFT else [name]
            spelled += ["{entropy_mix: {weight: 1}}"] if name == "entropy_mix" else []
            found += [f"guided[estimator: {one}, update: {update}{more}]" for one in spelled]
    return found


def _settings(name: str, text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    values = read_value("{" + text + "}", f"the settings of `{name}`")
    assert isinstance(values, dict)
    return values


def _guidance(name: str, settings: dict[str, Any]) -> GuidanceConfig:
    for key in settings:
        if key not in _OF_GUIDANCE:
            raise ValueError(f"`{name}`: guidance has no setting `{key}`; {nearest(key, _OF_GUIDANCE)}")
    values = dict(settings)
    for key in ("estimator", "update"):
        if isinstance(values.get(key), dict) and len(values[key]) == 1 and "name" not in values[key]:
            ((kind, more),) = values[key].items()
            if not isinstance(more, dict | None):
                raise ValueError(f"`{name}`: `{kind}` must have its settings by name, got {more!r:.80}.")
            values[key] = {"name": kind, **(more or {})}
    try:
        return GuidanceConfig.from_json(json.dumps(values))
    except ValueError as error:
        raise ValueError(f"`{name}`: {error}") from error


def _check_particles(made: Method) -> None:
    if made.particles is None:
        return
    if not isinstance(made.particles, dict):
        raise ValueError(f"`{made.name}`: `particles` must be settings by name, got {made.particles!r:.80}.")
    for key in made.particles:
        if key not in _OF_PARTICLES:
            raise ValueError(f"`{made.name}`: particles have no setting `{key}`; {nearest(key, _OF_PARTICLES)}")
    try:
        made.config(1.0)
    except ValueError as error:
        raise ValueError(f"`{made.name}`: {error}") from error


def _sample(record: Any) -> Any:
    if record.error is not None:
        raise ValueError(f"prompt {record.index}: {record.error}")
    return _finished(record.text if record.image is None else record.image)


def _finished(found: Any) -> Any:
    """A text or pixels, of a text, pixels or an image."""
    if isinstance(found, str | torch.Tensor):
        return found
    return torch.from_numpy(np.array(found)).permute(2, 0, 1).float() / 255


GROUPS: dict[str, tuple[str, ...]] = {
    "main": _MAIN,
    "estimators": tuple(_estimators()),
    "strengths": ("unguided", *_STRENGTHS, *_BUDGETS),
}
