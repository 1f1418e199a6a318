"""`redge-guidance generate` with a model of texts."""

from collections.abc import Sequence

from redge_guidance.cli.common import Made, Run, aim, as_json, draw, running
from redge_guidance.cli.terminal import PROGRAM, remark
from redge_guidance.setups.options import Options
from redge_guidance.setups.setup import Setup


def generate(setup: Setup, options: Options) -> Made:
    """Texts, and a comparison where there is a baseline."""
    prompts, compares = options.get("prompt", [""]), bool(options.get("baseline"))
    nats = bool(options.get("nats", compares))
    with running(setup):
        runs = [draw(setup, prompts, options, guided=False, nats=nats, enforced=False)] if compares else []
        runs.append(draw(setup, prompts, options, nats=nats))
    if runs[-1].rejected:
        remark(PROGRAM, rejected(runs[-1].rejected, len(runs[-1].records)))
    files = {"json": as_json(runs)} if "json" in options else {}
    return Made(_report(setup, runs), files, [record for run in runs for record in run.failed])


def rejected(count: int, of: int) -> str:
    """What is said of finished texts that are not as the constraint wants them."""
    return f"{count} of {of} texts are not as the constraint wants them; `accepted` says which"


def _report(setup: Setup, runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return "\n".join(record.text or "" for record in runs[0].records)
    lines = []
    for name, run in zip(("unguided", "guided"), runs, strict=True):
        lines += [f"{name}:", *(f"  {record.text}" for record in run.records), ""]
    lines += aim(setup)
    formed = setup.constraint is not None
    head = f"{'accepted':>10}" if formed else ""
    lines.append(f"{'':10}{'reward':>9}{'on target':>12}{head}{'nats/token':>12}{'distinct':>10}{'seconds':>9}")
    for name, run in zip(("unguided", "guided"), runs, strict=True):
        texts = [record.text or "" for record in run.records]
        distinct = f"{len(set(texts)) / max(1, len(texts)):.0%}"
        nats = f"{_nats_per_token(setup, run):.2f}"
        share = f"{run.accepted:>10}" if formed else ""
        reward = f"{run.reward:9.2f}" if run.is_rewarded else f"{'-':>9}"
        lines.append(f"{name:10}{reward}{run.hits:>12}{share}{nats:>12}{distinct:>10}{run.seconds:9.1f}")
    return "\n".join(lines)


def _nats_per_token(setup: Setup, run: Run) -> float:
    """Of all texts with the ends that they have; nan where the pipeline has no bound."""
    known = [
        (record.nats, record.text) for record in run.records if record.nats is not None and record.text is not None
    ]
    if not known:
        return float("nan")
    ids = setup.pipe.tokenizer([text for _, text in known], add_special_tokens=False).input_ids
    return sum(nats for nats, _ in known) / sum(len(row) + 1 for row in ids)
