"""Ready-made rewards by name and arguments: read from a file, made, and written again."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redge_guidance import rewards
from redge_guidance.checks import as_real
from redge_guidance.evaluation import name_of
from redge_guidance.recipe import Recipe, Unwritable, own_arguments, recipe_of
from redge_guidance.reward import Reward, RewardSum, Term
from redge_guidance.setups.devices import own_device
from redge_guidance.setups.schema import nearest

READY_MADE: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        rewards.AestheticReward,
        rewards.AllDifferentReward,
        rewards.CLIPReward,
        rewards.FluencyReward,
        rewards.ImageClassifierReward,
        rewards.ImagePreferenceReward,
        rewards.LengthReward,
        rewards.LexicalReward,
        rewards.RegexReward,
        rewards.SentenceSimilarityReward,
        rewards.TextClassifierReward,
        rewards.TextPreferenceReward,
    )
}
_LOADING = ("name", "revision", "cache_dir", "device", "dtype", "device_map", "trust_remote_code", "model_kwargs")
_OURS = ("weight", "term")  # of a term of a sum, beside the arguments of its reward


@dataclass(frozen=True)
class Entry:
    """A reward as a file names it.

    Attributes:
        kind: a name of `READY_MADE`; None: whatever the checkpoint `arguments["name"]` is made for.
        arguments: of its `from_pretrained` or its constructor.
        weight: in the sum.
        term: what the trace calls it; None: its own name.
        place: where it was said, for errors.
        in_file: whether a file said so, so that whoever reads it has to consent to code of a checkpoint.
    """

    kind: str | None
    arguments: dict[str, Any]
    weight: float = 1.0
    term: str | None = None
    place: str = ""
    in_file: bool = False


def read_entries(value: Any, place: Callable[..., str], in_file: bool) -> list[Entry]:
    """Rewards as they stand in a file, or on the command line: names, or mappings of a name to arguments.

    Args:
        value: one, or a list.
        place: says of the path to a value where it stands.
        in_file: as in `Entry`.

    Raises:
        ValueError: an unknown reward or argument, with the nearest one that is known; no mapping; no number as weight.
    """
    found = []
    for i, one in enumerate(value if isinstance(value, list) else [value]):
        path = (i,) if isinstance(value, list) else ()
        if isinstance(one, str):
            one = {one: None} if one in READY_MADE else one
        if isinstance(one, str):
            found.append(Entry(None, {"name": one}, place=place(*path), in_file=in_file))
        elif isinstance(one, dict):
            found += [_entry(kind, told, place(*path, kind), in_file) for kind, told in one.items()]
        else:
            raise ValueError(f"{place(*path)}: a reward must be `Name: {{argument: value}}`, got {one!r:.80}.")
    return found


def make(entries: Sequence[Entry], device: Any, dtype: str, trust_remote_code: bool) -> Reward:
    """The reward, or the weighted sum of several.

    Args:
        entries: at least one, each of a kind.
        device, dtype: of models whose entry does not say it.
        trust_remote_code: whether the caller agrees that code of checkpoints runs whose entries ask for it.

    Raises:
        ValueError, OSError: with the place of the entry; as the reward raises it, or code that only the file trusts.
    """
    made = [_made(entry, device, dtype, trust_remote_code) for entry in entries]
    if len(made) == 1 and entries[0].weight == 1 and entries[0].term is None:
        first: Reward = made[0]
        return first
    terms = zip(entries, made, strict=True)
    return RewardSum([Term(entry.weight, reward, entry.term or name_of(reward)) for entry, reward in terms])


def entries_of(reward: Any, device: str, dtype: str) -> list[dict[str, Any]]:
    """What `read_entries` reads as a reward of equal values.

    Args:
        reward: a ready-made one, or a sum of these.
        device, dtype: of the set-up, which are not written again.

    Raises:
        ValueError: a term that is no ready-made reward, or has an argument that no file holds, with what to do.
    """
    terms = reward.terms if type(reward) is RewardSum else [Term(1.0, reward, name_of(reward))]
    return [
        _written(term, {"device": device, "dtype": dtype}, [t.name for t in terms[:i]]) for i, term in enumerate(terms)
    ]


def arguments_of(kind: Any) -> tuple[str, ...]:
    """Names of the arguments by which a file makes a ready-made reward."""
    return (*own_arguments(kind), *(_LOADING if hasattr(kind, "from_pretrained") else ()))


def _entry(kind: str, told: Any, place: str, in_file: bool) -> Entry:
    if kind not in READY_MADE:
        raise ValueError(f"{place}: there is no ready-made reward `{kind}`; {nearest(kind, list(READY_MADE))}")
    told = {} if told is None else told
    if not isinstance(told, dict):
        raise ValueError(f"{place}: `{kind}` must have its arguments by name, {{argument: value}}, got {told!r:.80}.")
    known = (*arguments_of(READY_MADE[kind]), *_OURS)
    for name in told:
        if name == "token":
            raise ValueError(f"{place}: `token` must not stand in a file; log in at the hub by `hf auth login`.")
        if name not in known:
            raise ValueError(f"{place}: `{kind}` has no argument `{name}`; {nearest(name, known)}")
    arguments = {key: value for key, value in told.items() if key not in _OURS}
    weight, term = told.get("weight", 1.0), told.get("term")
    if as_real(weight) is None or not abs(weight) < float("inf"):
        raise ValueError(f"{place}: `weight` of `{kind}` must be a finite number, got {weight!r:.80}.")
    if not isinstance(term, str | None):
        raise ValueError(f"{place}: `term` of `{kind}` must be a text, got {term!r:.80}.")
    return Entry(kind, arguments, float(weight), term, place, in_file)


def _made(entry: Entry, device: Any, dtype: str, consent: bool) -> Any:
    import torch

    kind, arguments = READY_MADE[entry.kind or ""], dict(entry.arguments)
    told = f"{entry.place}: " if entry.place else ""
    if arguments.get("trust_remote_code") and not consent:
        raise ValueError(
            f"{told}`trust_remote_code` asks to run code that comes with `{arguments.get('name')}`; read it, and pass "
            "`trust_remote_code=True` too."
        )
    make = kind
    if hasattr(kind, "from_pretrained"):
        make = kind.from_pretrained
        arguments = {"device": device, "dtype": dtype} | arguments
        if isinstance(arguments["device"], str):
            arguments["device"] = own_device(arguments["device"])
        found = getattr(torch, str(arguments["dtype"]), None)
        if not isinstance(found, torch.dtype):
            raise ValueError(f"{told}`dtype` must be one of torch, such as float32, got {arguments['dtype']!r:.80}.")
        arguments["dtype"] = found
    lacking = [p.name for p in inspect.signature(kind.__init__).parameters.values() if p.default is p.empty]
    needed = [*(("name",) if make is not kind else ()), *(name for name in lacking if name in own_arguments(kind))]
    for name in needed:
        if name not in arguments:
            raise ValueError(f"{told}`{entry.kind}` needs the argument `{name}`.")
    try:
        return make(**arguments)
    except MemoryError:
        raise
    except Exception as error:  # whatever an argument of a wrong type leads to
        known = "" if isinstance(error, ValueError | OSError | RuntimeError) else f"{type(error).__name__}: "
        error_kind = OSError if isinstance(error, OSError) else ValueError
        raise error_kind(f"{told}{entry.kind}: {known}{error}") from error


def _written(term: Term, shared: dict[str, str], before: list[str]) -> dict[str, Any]:
    reward: Any = term.reward
    recipe, name = recipe_of(reward), type(reward).__name__
    if READY_MADE.get(name) is not type(reward):
        what = f"a {name}" if isinstance(reward, Reward) else name_of(reward)
        raise ValueError(
            f"`reward` {term.name!r} is {what}, and only ready-made rewards can be written to a file "
            f"({', '.join(sorted(READY_MADE))}); leave it out, and add it after loading."
        )
    if recipe is None or (hasattr(type(reward), "from_pretrained") and not recipe.loaded):
        raise ValueError(
            f"`reward` {term.name!r} was made from a model in memory, which no file names; save model and processors "
            f"by `save_pretrained(folder)`, and make it by `{name}.from_pretrained(folder, ...)`."
        )
    arguments = _plain_arguments(recipe, term.name, type(reward))
    for key, value in shared.items():
        default = {"device": "cpu", "dtype": "float32"}[key]
        if recipe.loaded and arguments.get(key, default) == value:
            arguments.pop(key, None)
        elif recipe.loaded:
            arguments.setdefault(key, default)
    if term.weight != 1:
        arguments["weight"] = term.weight
    own = name_of(reward)
    if term.name not in (own, *(f"{own}_{k}" for k in range(2, len(before) + 2))):
        arguments["term"] = term.name
    return {name: arguments}


def _plain_arguments(recipe: Recipe, what: str, kind: Any) -> dict[str, Any]:
    """Those that differ from their defaults; a ValueError for one that no file holds."""
    defaults = {p.name: p.default for p in inspect.signature(kind.__init__).parameters.values()}
    if recipe.loaded:
        defaults |= {p.name: p.default for p in inspect.signature(kind.from_pretrained).parameters.values()}
        defaults |= {"device_map": None, "model_kwargs": None, "trust_remote_code": False}
    found = {}
    for name, value in recipe.arguments.items():
        if name == "token":
            continue  # a secret
        lost = unwritable(value)
        if lost is not None:
            raise ValueError(
                f"`{name}` of `reward` {what!r} is {lost}, which no file holds; make the reward with texts, numbers, "
                "and lists or dicts of these, or with the name of a checkpoint."
            )
        if name not in defaults or type(value) is not type(defaults[name]) or value != defaults[name]:
            found[name] = value
    return found


def unwritable(value: Any) -> str | None:
    """What there is in an argument of a recipe that no file holds, in words; None: nothing."""
    if isinstance(value, Unwritable):
        return value.what
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((lost for one in inner if (lost := unwritable(one)) is not None), None)
