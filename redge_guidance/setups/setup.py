"""A set-up: pipeline, reward, settings of guidance and of the call, loaded from a file and saved to one."""

import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redge_guidance.config import GuidanceConfig
from redge_guidance.constraints.constraint import Constrained, Constraint, parted
from redge_guidance.reward import Reward
from redge_guidance.setups import constraints, documents
from redge_guidance.setups.forms import check_forms, constraints_said, forms_given
from redge_guidance.setups.models import call_settings, load_pipe, makes_images, pipeline_class, settings_of
from redge_guidance.setups.options import Options, checked, of_document
from redge_guidance.setups.rewards import Entry, entries_of, make, read_entries
from redge_guidance.setups.schema import OPTIONS, nearest
from redge_guidance.setups.shorthand import check_kind, goals_given, spelled_out


@dataclass(frozen=True)
class Setup:
    """What a file of settings stands for, loaded.

    Attributes:
        pipe: the pipeline.
        reward: what it is steered toward, a reward, a constraint, or `reward & constraint`; None where the file names
            nothing.
        config: how.
        settings: for the call of the pipeline, such as `{"num_inference_steps": 16}`.
        run: what else the file says about a run: prompts, seed, samples of a prompt, files.
        resolved: all of it as `save` writes it, without defaults.
    """

    pipe: Any
    reward: Reward | Constraint | Constrained | None
    config: GuidanceConfig
    settings: dict[str, Any]
    run: dict[str, Any]
    resolved: dict[str, Any]

    @property
    def constraint(self) -> Constraint | None:
        """What all texts are to be like; None where the file says nothing of it."""
        return parted(self.reward)[1]


def load(file: str | os.PathLike[str], *, trust_remote_code: bool = False, device: str | None = None) -> Setup:
    """Load the set-up that a YAML file names: one that `save` wrote, `--save-config` wrote, or somebody typed.

    The names are those of the command line. Classes are ready-made rewards, constraints and known pipelines, by name;
    nothing else in a file is run. Paths are relative to the current folder.

    Args:
        file: of YAML.
        trust_remote_code: agree that Python code runs that comes with a checkpoint, for those whose `trust_remote_code`
            is true in the file.
        device: instead of the file's.

    Raises:
        ValueError: with file and line: no YAML, something there twice, an unknown name with the nearest one that is
            known, a value of another kind, code that is not trusted, or what a reward or pipeline does not take.
        OSError: the file, or a checkpoint, cannot be read.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "setup.yaml"
        >>> _ = file.write_text("reward: [LengthReward: {maximum: 4}]\\nscale: 8\\nnum_inference_steps: 8\\n")
        >>> setup = load(file)
        >>> setup.reward.name, setup.config.scale, setup.settings
        ('LengthReward', 8, {'num_inference_steps': 8})
    """
    options = read_options(file)
    if device is not None:
        options = Options({"device": device}).over(options)
    return assemble(options, trust_remote_code)


def save(
    file: str | os.PathLike[str], pipe: Any, reward: Any = None, config: GuidanceConfig | None = None, **settings: Any
) -> None:
    """Write a set-up that `load` loads again: names, arguments and numbers, no weights and no pickle.

    What is at its default is left out. Where models lie is written as it was named; secrets, such as a token of a hub,
    are not.

    Args:
        file: is replaced as a whole.
        pipe: loaded by `from_pretrained`.
        reward: a ready-made one, made with plain values or by `from_pretrained`, a weighted sum of these, a constraint
            or an intersection of several, or `reward & constraint`.
        config: of guidance; None: the defaults.
        **settings: for the call of the pipeline, or of a run (`prompt`, `seed`, `samples_per_prompt`), by the names of
            the command line.

    Raises:
        ValueError: something that no file holds, named, with what to do instead; an unknown setting.
        OSError: the file cannot be written.
    """
    values = settings_of(pipe)
    rewarding, constraint = parted(reward)
    if rewarding is not None:
        values["reward"] = entries_of(rewarding, values.get("device", "cpu"), values.get("dtype", "float32"))
    if constraint is not None:
        values["constraints"] = constraints.constraints_of(constraint)
    values |= plain_config(GuidanceConfig() if config is None else config)
    groups = ("call", "run", "report")
    known = [name for name, option in OPTIONS.items() if option.group in groups]
    for name, value in settings.items():
        if name not in known:
            raise ValueError(f"there is no setting `{name}` of a call or a run; {nearest(name, known)}")
        if value is not None:
            values[name] = checked(OPTIONS[name], list(value) if isinstance(value, tuple) else value)
    write_file(file, documents.write(values))


def read_options(file: str | os.PathLike[str]) -> Options:
    """The settings of a file, checked one by one. Errors as of `load`."""
    return options_of(read_document(file))


def read_document(file: str | os.PathLike[str]) -> documents.Document:
    """What a file says, in YAML. Errors as of `load`."""
    name = os.fspath(file)
    try:
        text = Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} must be text in UTF-8: {error}.") from error
    except OSError as error:
        raise type(error)(f"{name} cannot be read: {error.strerror or error}.") from error
    return documents.read(text, name)


def options_of(document: documents.Document) -> Options:
    """Its settings, checked one by one. Errors as of `load`."""
    options = of_document(document)
    if "reward" in options:  # its names are checked before anything is loaded
        place = lambda *path: document.place("reward", *path)  # noqa: E731
        entries = read_entries(options.get("reward"), place, in_file=True)
        options = Options({**options.values, "reward": entries}, options.places)
    if "constraints" in options:
        at = lambda *path: document.place("constraints", *path)  # noqa: E731
        found = constraints.read_entries(options.get("constraints"), at)
        options = Options({**options.values, "constraints": found}, options.places)
    return options


def assemble(options: Options, consent: bool) -> Setup:
    """Load what settings name.

    Args:
        options: checked; `reward` and `constraints` are lists of `Entry`.
        consent: whether the caller agrees that code of checkpoints runs, for those that ask for it.

    Raises:
        ValueError, OSError: as of `load`.
    """
    config = config_of(options)
    check_forms(options)
    with _called(options.spell("model")):
        kind = pipeline_class(options)
    images = makes_images(kind)
    constraint, forms = None, list[constraints.Entry]()
    if forms_given(options):  # before anything is loaded
        check_kind(options, images)
        forms = constraints_said(options)
        constraint = constraints.make(forms)
    with _called(options.spell("model")):
        pipe = load_pipe(options, kind, consent)
    settings = call_settings(pipe, options)
    entries: list[Entry] = options.get("reward", [])
    reward: Reward | None = None
    if goals_given(options, entries):
        takes_text = not images or getattr(pipe, "tokenizer", None) is not None
        with _called(options.spell("reward")):
            entries = spelled_out(options, entries, images, takes_text, consent)
            device = options.get("device", "cpu")
            reward = make(entries, device, options.get("dtype", "float32"), consent)
    run = options.of("run", "report")
    resolved = _resolved(options, entries, forms, config)
    if constraint is not None:
        return Setup(pipe, constraint if reward is None else reward & constraint, config, settings, run, resolved)
    return Setup(pipe, reward, config, settings, run, resolved)


def model_makes_images(options: Options) -> bool:
    """Whether the model that settings name makes images. Errors as of `load`."""
    with _called(options.spell("model")):
        return makes_images(pipeline_class(options))


def config_of(options: Options) -> GuidanceConfig:
    """The settings of guidance; a ValueError that says where the wrong one stands."""
    values = options.of("guidance")
    for name in ("estimator", "update"):
        value = values.get(name)
        if isinstance(value, dict) and len(value) == 1 and "name" not in value:
            ((kind, settings),) = value.items()
            if not isinstance(settings, dict | None):
                raise ValueError(
                    f"{options.spell(name)}: `{kind}` must have its settings by name, got {settings!r:.80}."
                )
            values[name] = {"name": kind, **(settings or {})}
        elif name in values and not isinstance(value, str | dict):
            raise ValueError(f"{options.spell(name)} must be a name, or a name with settings, got {value!r:.80}.")
    try:
        return GuidanceConfig.from_json(json.dumps(values))
    except (ValueError, TypeError) as error:
        named = next((name for name in values if f"`{name}`" in str(error)), None)
        place = options.places.get(named or "")
        raise ValueError(f"{place}: {error}" if place else f"{error}") from error


def plain_config(config: GuidanceConfig) -> dict[str, Any]:
    """What differs from the defaults, `estimator` and `update` as a name, or a name with its settings."""
    values, default = json.loads(config.to_json()), json.loads(GuidanceConfig().to_json())
    differing = {name: value for name, value in values.items() if value != default[name]}
    found: dict[str, Any] = {name: math.inf if value == "inf" else value for name, value in differing.items()}
    for name in ("estimator", "update"):
        if name in found:
            settings = dict(found[name])
            kind = settings.pop("name")
            usual = json.loads(GuidanceConfig(**{name: kind, "num_draws": 2}).to_json())[name]
            changed = {key: value for key, value in settings.items() if value != usual[key]}
            found[name] = {kind: changed} if changed else kind
    return found


def write_file(file: str | os.PathLike[str], text: str) -> None:
    """Replace a file as a whole, or leave it as it was."""
    place = Path(file)
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=place.parent, prefix=".redge-", delete=False
        ) as part:
            part.write(text)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(part.name, place.stat().st_mode & 0o777 if place.exists() else 0o666 & ~umask)
        os.replace(part.name, place)
    except OSError as error:
        if "part" in locals():
            Path(part.name).unlink(missing_ok=True)
        raise type(error)(f"{place} cannot be written: {error.strerror or error}.") from error


def _resolved(
    options: Options, entries: list[Entry], forms: list[constraints.Entry], config: GuidanceConfig
) -> dict[str, Any]:
    """All that was given, rewards and constraints by their names, nothing at its default."""
    values = dict(options.of("model"))
    if entries:
        values["reward"] = [_plain_entry(entry) for entry in entries]
    if forms:
        values["constraints"] = [entry.to_dict() for entry in forms]
    values |= plain_config(config) | options.of("call", "run", "report")
    return values


def _plain_entry(entry: Entry) -> Any:
    more: Mapping[str, Any] = {"weight": entry.weight} if entry.weight != 1 else {}
    more = {**more, "term": entry.term} if entry.term is not None else more
    return {entry.kind: {**entry.arguments, **more}}


@contextmanager
def _called(spelled: str) -> Iterator[None]:
    """Errors about the argument `name` are about a setting here."""
    try:
        yield
    except ValueError as error:
        found = re.match(r"(?:\w+: )?`name` (.*)", str(error), re.DOTALL)
        if found is None:
            raise
        raise ValueError(f"{spelled} {found.group(1)}") from error
