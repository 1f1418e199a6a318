"""The pipelines of this package beside what the authors' code gave: one row of a table for every comparison."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from settings import GREEDY, NotComparedError
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from redge_guidance import GuidanceConfig, guide
from redge_guidance.pipelines import TextPipeline
from redge_guidance.pipelines.text.families import FAMILIES

Case = dict[str, Any]
LIMIT_LOGITS = 1e-5  # largest difference over the root mean square of the authors' logits
LIMIT_LAW = 1e-4  # smallest p-value of all positions, times their number
LIMIT_BOUND = 4.0  # difference in standard errors of both estimates
ROWS = 4096  # draws of one step
GIVEN_TOKENIZER = ("mdlm", "udlm", "duo", "bd3lm", "sedd")  # checkpoints without one
TARGETS = torch.arange(20, 40)  # tokens that the reward of the guided rows asks for
_TWO_BOUNDS = (
    "a model that is told the time: `nll` hides a number of tokens and tells it their share, the authors hide each "
    "with the probability that they tell it; both bound the text's probability, by 43.0 and 40.0 nats by enumeration"
)
_POSTERIORS = "our guidance_scale mixes predictions, their gamma the posteriors of a step"
KNOWN = {("mdlm-time", "bound"): _TWO_BOUNDS, ("udlm-classes", "law"): _POSTERIORS}


@dataclass
class Row:
    """One line: what was compared, how large the difference is, whether it is within its limit."""

    checkpoint: str
    check: str
    what: str
    settings: dict[str, Any]
    agrees: bool | None = None
    value: Any = None
    why: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(name: str, folder: Path, cases: list[Case] | str, load: Callable[[], Any]) -> list[Row]:
    """All rows of one checkpoint; `load` gives the pipeline."""
    rows = [plain_transformers(name, folder)]
    if isinstance(cases, str):
        return [*rows, Row(name, "reference", "", {}, None, None, f"the authors' code did not run: {cases}")]
    loads = Row(name, "loads", "TextPipeline.from_pretrained", {})
    rows.append(loads)
    try:
        pipe = load()
        pipe.set_progress_bar_config(disable=True)
        loads.agrees, loads.value = True, type(pipe.model).__name__
    except Exception as error:  # whatever is wrong belongs in the table
        loads.agrees, loads.why = False, _line(error)
        whats = [(case["kind"], case["what"], case["settings"]) for case in cases]
        return rows + [Row(name, *case, None, None, "the checkpoint does not load") for case in whats]
    for case in cases:
        row = Row(name, case["kind"], case["what"], case["settings"])
        rows.append(row)
        try:
            row.agrees, row.value = CHECKS[case["kind"]](pipe, name, case)
            row.why = "" if row.agrees else KNOWN.get((name, row.check), "")
        except NotComparedError as reason:
            row.why = str(reason)
        except Exception as error:  # as above
            row.agrees, row.why = False, _line(error)
    return rows + guided(name, pipe)


def _line(error: Exception) -> str:
    """Type and first line of an error, files without their folders."""
    first = (str(error).strip().splitlines() or [""])[0]
    return re.sub(r"(/[^\s/'\"()]+)+/", "", f"{type(error).__name__}: {first}")[:300]


def load_pipeline(name: str, folder: Path) -> Any:
    """The pipeline as a user gets it."""
    given: dict[str, Any] = {}
    if name.startswith(GIVEN_TOKENIZER):
        given["tokenizer"] = folder.parent / "tokenizer"
    if name == "fast-dllm-v2":  # known by its id in the large vocabulary, which is not that of the small one
        added = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
        given["mask_token_id"] = next(int(i) for i, token in added.items() if token["content"] == "|<MASK>|")
    return TextPipeline.from_pretrained(folder, trust_remote_code=True, **given)


def plain_transformers(name: str, folder: Path) -> Row:
    """What the auto classes of the installed transformers make of the checkpoint; no limit, only what happens."""
    row = Row(name, "plain transformers", "from_pretrained of the auto class", {})
    own = json.loads((folder / "config.json").read_text()).get("auto_map")
    if own is None:
        row.why = "no auto class: the hub has no code"
        return row
    kinds = (AutoModelForCausalLM, AutoModelForMaskedLM, AutoModel)
    kind = next(kind for kind in kinds if kind.__name__ in own)
    try:
        model = kind.from_pretrained(folder, trust_remote_code=True)
        row.value = f"{type(model).__name__} loads"
    except Exception as error:  # this is what the row is about
        row.value = _line(error)
    return row


# ------------------------------------------------------------------------------------------------------------- logits
def logits_agree(pipe: Any, name: str, case: Case) -> tuple[bool, float]:
    """Largest difference at the masked positions (of uniform diffusion at all), relative to the authors' logits."""
    inputs, theirs = case["inputs"], case["expected"].float()
    label = case["settings"].get("cond")
    more = {} if label is None else {"cond": torch.full((len(theirs),), label)}
    ours = pipe._logits(inputs["ids"], inputs["attention_mask"].bool(), inputs.get("alpha", 1.0), more).float()
    mask_id = pipe.tokenizer.mask_token_id if pipe.corruption == "masked" else None
    where = inputs["attention_mask"].bool() if mask_id is None else inputs["ids"] == mask_id
    ours, theirs = ours[where], theirs[where]
    if mask_id is not None:
        kept = torch.arange(theirs.shape[-1]) != mask_id
        ours, theirs = ours[:, : len(kept)][:, kept], theirs[:, kept]
    if case["settings"].get("normalised"):
        ours, theirs = ours.log_softmax(-1), theirs.log_softmax(-1)
    value = ((ours - theirs).abs().max() / theirs.square().mean().sqrt()).item()
    return value <= LIMIT_LOGITS, value


# ------------------------------------------------------------------------------------------------------------- greedy
def greedy_agrees(pipe: Any, name: str, case: Case) -> tuple[bool, str]:
    """New tokens of the authors' sampler and ours, text by text."""
    settings, inputs, theirs = case["settings"], case["inputs"], case["expected"]
    family = name if name in GREEDY else name.partition("-")[0]
    how: dict[str, Any] = {"temperature": 0.0, "use_chat_template": inputs.get("chat", False)}
    order, call = GREEDY[family](pipe, settings, inputs)
    before = pipe.scheduler
    pipe.scheduler = type(before).from_config(before.config, **order)
    try:
        ours = pipe(inputs["prompts"], **(how | call)).sequences
    finally:
        pipe.scheduler = before
    new = settings.get("gen_length") or settings.get("max_new_tokens") or theirs.shape[-1]
    mask_id = pipe.tokenizer.mask_token_id
    equal = []
    for own, other in zip(ours, theirs, strict=True):
        if family in (
            "sdar",
            "llada2",
            "bd3lm",
            "fast-dllm-v2",
        ):  # not padded; blocks may go on to their end, or stop early
            width = min(len(own), len(other))
            own, other = own[:width], other[:width]
            own, other = own[other != mask_id], other[other != mask_id]
        else:
            own, other = own[-new:], other[-new:]
        equal.append(torch.equal(own, other))
    value = f"{sum(equal)} of {len(equal)} texts equal"
    if not all(equal):
        wrong = equal.index(False)
        value += f"; e.g. {ours[wrong].tolist()} for {theirs[wrong].tolist()}"
    return all(equal), value


# ---------------------------------------------------------------------------------------------------------------- law
def law_agrees(pipe: Any, name: str, case: Case) -> tuple[bool, dict[str, float]]:
    """Draws of one step from a given state against its law, by chi-squared: the smallest p of all positions.

    The state is put into `ROWS` texts by the callback of the step before; p is times the number of positions.
    """
    settings, inputs, law = case["settings"], case["inputs"], case["expected"][0].double()
    state, step, steps = inputs["ids"], inputs["step"], inputs["steps"]
    if (law < 0).any():
        raise NotComparedError("the step's weights are negative: untrained scores are far from a distribution")
    order, call = _step_settings(settings)
    length = state.shape[1]
    blocks = length // settings["block_size"] if "block_size" in settings else 1
    at = (blocks - 1) * steps + step
    seen: list[Tensor] = []

    def callback(pipe: Any, done: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if done == at:
            seen.append(tensors["sample"].clone())
        return {"sample": state.expand(ROWS, -1).clone()} if done == at - 1 else {}

    before = pipe.scheduler
    pipe.scheduler = type(before).from_config(before.config, **order)
    try:
        pipe(
            [""] * ROWS, gen_length=length, num_inference_steps=steps * blocks, callback_on_step_end=callback,
            generator=torch.Generator().manual_seed(0), temperature=1.0, **call,
        )  # fmt: skip
    finally:
        pipe.scheduler = before
    drawn = seen[0]
    counts = torch.stack([torch.bincount(column, minlength=law.shape[-1]) for column in drawn.T]).double()
    smallest = min(_p_value(n, p) for n, p in zip(counts, law, strict=True))
    distance = (counts / ROWS - law).abs().sum(-1).max().item() / 2
    value = {"p": min(1.0, smallest * length), "total_variation": distance}
    return value["p"] >= LIMIT_LAW, value


def _p_value(counts: Tensor, law: Tensor) -> float:
    """Of Pearson's chi-squared; categories expected less than five times are counted together."""
    expected = law * counts.sum()
    rare = expected < 5
    if counts[law <= 1e-9].sum() > 0:
        return 0.0
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    kept = expected > 1e-6
    counts, expected = counts[kept], expected[kept]
    if len(counts) < 2:
        return 1.0
    statistic = ((counts - expected).square() / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2, dtype=torch.double), statistic / 2).item()


def _step_settings(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the scheduler, and of the call, for a step of the authors."""
    if "kappa" in settings:
        return {"psi": "pure-pc" if settings["kappa"] == 0 else f"constant-{settings['kappa']}"}, {}
    if "gamma" in settings:
        return {}, {"class_labels": settings["cond"], "guidance_scale": settings["gamma"]}
    if "noise_removal" in settings:
        return {}, {"noise_removal": settings["noise_removal"]}
    return {}, {}


# -------------------------------------------------------------------------------------------------------------- bound
def bound_agrees(pipe: Any, name: str, case: Case) -> tuple[bool, dict[str, float]]:
    """`nll` against the authors' estimate, in standard errors of both."""
    inputs, (theirs, their_error) = case["inputs"], case["expected"].tolist()
    if name.startswith("sedd"):
        raise NotComparedError("the score entropy of weights that no training has brought near a distribution")
    length = len(inputs["ids"])
    before = pipe.config.length
    pipe.register_to_config(length=length)
    given: dict[str, Any] = {}
    if inputs.get("prompt"):
        given["prompts"] = inputs["prompt"]
    generator = torch.Generator().manual_seed(0)
    estimates = pipe.nll([inputs["text"]] * 32, num_corruptions=1024, batch_size=512, generator=generator, **given)
    pipe.register_to_config(length=before)
    ours, error = estimates.mean().item(), estimates.std().item() / math.sqrt(len(estimates))
    value = {"ours": ours, "theirs": theirs, "errors": (ours - theirs) / math.hypot(error, their_error)}
    return abs(value["errors"]) <= LIMIT_BOUND, value


CHECKS: dict[str, Callable[[Any, str, Case], tuple[bool, Any]]] = {
    "logits": logits_agree,
    "greedy": greedy_agrees,
    "law": law_agrees,
    "bound": bound_agrees,
}


# ------------------------------------------------------------------------------------------------------------- guided
def guided(name: str, pipe: Any) -> list[Row]:
    """Scale 0 changes nothing, a reward rises, and what is removed leaves nothing."""
    size = len(pipe.tokenizer) + 64

    def wanted(tokens: Any) -> Tensor:
        table = torch.zeros(size, 1)
        table[TARGETS] = 1.0
        return (tokens.embed(table)[..., 0] * tokens.attention_mask).sum(-1)

    def draw() -> Tensor:
        settings = {"gen_length": 8, "num_inference_steps": 8, "temperature": 1.0}
        return pipe(["the cat"] * 32, generator=torch.Generator().manual_seed(0), **settings).sequences

    rows = [Row(name, "guided", what, {}) for what in ("scale 0 gives the same tokens", "reward rises", "removal")]
    try:
        bare = draw()
        with guide(pipe, wanted, GuidanceConfig(scale=0.0)):
            rows[0].agrees = torch.equal(draw(), bare)
        with guide(pipe, wanted, GuidanceConfig(scale=5.0)):
            moved = draw()
        counts = [torch.isin(tokens, TARGETS).double().sum(-1).mean().item() for tokens in (bare, moved)]
        rows[1].agrees, rows[1].value = counts[1] > counts[0], {"bare": counts[0], "guided": counts[1]}
        rows[2].agrees = torch.equal(draw(), bare)
    except Exception as error:  # belongs in the table
        for row in rows:
            if row.agrees is None:
                row.agrees, row.why = False, _line(error)
    return rows


def from_memory(model: Any, folder: Path, family: str) -> Any:
    """A pipeline around a model that the authors' own code loaded (SEDD, whose code is not on the hub)."""
    assert family in FAMILIES
    if not hasattr(model, "device"):  # which pipelines of diffusers ask of their modules
        model.device, model.dtype = torch.device("cpu"), torch.float32
    tokenizer = AutoTokenizer.from_pretrained(folder.parent / "tokenizer")
    return TextPipeline.from_model(model, tokenizer, family, mask_token_id=len(tokenizer))
