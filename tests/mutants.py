"""Plant mistakes all over the tree, one at a time, and say which of them the tests do not see: `make mutants`.

Each mistake is an exact replacement in one file, in a copy of the checkout; the tests of its room run first, all others
only where those saw nothing. `python tests/mutants.py 3 7` plants those alone, `--quick` leaves the second round out.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
MOST_SURVIVORS = 2
TIMEOUT = 900  # seconds for one round


class Mutant(NamedTuple):
    """`old` stands once in `file` and becomes `new`; `tests` are those of its room."""

    file: str
    old: str
    new: str
    tests: str


ROOM = "tests/redge_guidance/test_"
ATTACH = f"{ROOM}attachment.py"
STEPS = f"{ROOM}denoising_steps.py {ROOM}callable_steps.py {ROOM}following.py {ROOM}precision.py"
SETTINGS = f"{ROOM}windows.py {ROOM}settings.py {ROOM}image_temperature.py {ROOM}guidance.py"
TOKENS = f"{ROOM}tokens.py tests/pipelines/test_given_text.py"
FIGURES = f"{ROOM}trace_figures.py {ROOM}shrinkage.py {ROOM}reserved.py"
RANDOM = f"{ROOM}randomness.py {ROOM}rows_alone.py"
KINDS = f"{ROOM}images.py {ROOM}relaxed_devices.py {ROOM}reward.py tests/rewards/test_kinds.py"
PHRASES = "tests/rewards/text/test_phrases.py"
HALTON = "tests/pipelines/test_halton_sampler.py"
PUBLISHED = "tests/published"
FAMILY = "tests/pipelines/test_families.py"
UNIFIED = f"{ROOM}amused_step.py"
PIPES = f"tests/pipelines/test_drawing.py {ROOM}classifier_free.py tests/pipelines/test_masked_scheduler.py"

READING = "tests/rewards/reading/test_kinds_of_models.py tests/rewards/reading/test_any_cut.py"
FLUENCY = "tests/rewards/text/test_model_rewards.py"

CONSENT = f"{ROOM}consent.py"
OUTPUTS = f"{ROOM}cli_outputs.py"

MUTANTS = [
    # how models are read
    Mutant("rewards/reading/shown.py", "if threading.get_ident() != thread:", "if False:", READING),
    Mutant("rewards/reading/reader.py", "if mine == theirs]", "if True]", READING),
    Mutant("redge_guidance/positions.py", "else module.padding_idx + 1", "else module.padding_idx", READING),
    Mutant("rewards/text/fluency.py", "counted = reading.text | reading.end", "counted = reading.text", FLUENCY),
    Mutant("rewards/reading/carried.py", "self._firsts[self._end] = after", "pass", FLUENCY),
    # faults, and code without consent
    Mutant("redge_guidance/hub.py", "module.TIME_OUT_REMOTE_CODE = 0", "pass", CONSENT),
    Mutant(
        "redge_guidance/remote/parts.py",
        '    check_loaded(f"{folder}", model, found)\n',
        "",
        "tests/rewards/test_loading.py",
    ),
    Mutant("redge_guidance/cli/files.py", "os.chmod(name, stat.S_IMODE(before.st_mode))", "pass", OUTPUTS),
    Mutant("redge_guidance/cli/files.py", "stat.S_ISREG(found.st_mode)", "True", OUTPUTS),
    Mutant("redge_guidance/cli/files.py", "os.replace(kept[place], place)", "pass", OUTPUTS),
    Mutant(
        "redge_guidance/cli/terminal.py", 'text.encode(encoding, "backslashreplace")', "text.encode(encoding)", OUTPUTS
    ),
    Mutant(
        "rewards/reading/cache.py",
        " or told != _sum(values, offsets)",
        "",
        "tests/rewards/reading/test_alignment.py",
    ),
    # loading what is published
    Mutant(
        "redge_guidance/remote/views.py",
        '{"default": default_rope} | ROPE_INIT_FUNCTIONS',
        "ROPE_INIT_FUNCTIONS",
        PUBLISHED,
    ),
    Mutant("redge_guidance/remote/loading.py", "include_buffers=False", "include_buffers=True", PUBLISHED),
    Mutant(
        "redge_guidance/remote/legacy.py",
        "(all_submodels) if isinstance(keys, dict) else {}",
        "(all_submodels)",
        PUBLISHED,
    ),
    Mutant(
        "redge_guidance/remote/legacy.py",
        "for name in kwargs.keys() - vars(self)",
        "for name in set() - vars(self)",
        PUBLISHED,
    ),
    Mutant("redge_guidance/remote/weights.py", "if name not in known:", "if False:", PUBLISHED),
    Mutant(
        "pipelines/text/calling.py",
        "positions[start:].expand(len(ids), -1)",
        "positions[: ids.shape[1]].expand(len(ids), -1)",
        PUBLISHED,
    ),
    Mutant("pipelines/text/masked.py", "late_tokens=late_tokens,", "", PUBLISHED),
    Mutant(
        "pipelines/text/families.py", "mask_token_id=mask_token_id, told=True", "mask_token_id=mask_token_id", FAMILY
    ),
    # between a pipeline and its scheduler
    Mutant(
        "redge_guidance/hosts/attachment.py",
        'if name == "scheduler" and attachment.uses_scheduler and',
        "if False and",
        ATTACH,
    ),
    Mutant("redge_guidance/hosts/attachment.py", "bound.arguments[name] = elsewhere(callback)", "pass", ATTACH),
    Mutant(
        "redge_guidance/hosts/attachment.py",
        "        self.__class__ = kind\n        self.__init__",
        "        kind.__init__",
        ATTACH,
    ),
    Mutant(
        "redge_guidance/hosts/attachment.py",
        "if not self._busy.acquire(blocking=False):",
        "if self._busy.acquire(blocking=False) is None:",
        ATTACH,
    ),
    Mutant("redge_guidance/hosts/seam.py", "top._below, top._before = self._below, self._before", "pass", ATTACH),
    Mutant("redge_guidance/hosts/seam.py", "if self._before is None:", "if True:", ATTACH),
    # hosts
    Mutant(
        "redge_guidance/hosts/base.py",
        "if self.is_drawing():\n                heard",
        "if True:\n                heard",
        ATTACH,
    ),
    Mutant(
        "redge_guidance/hosts/base.py",
        "output[step.free[:, -output.shape[1] :]] =",
        "output[step.free[:, : output.shape[1]]] =",
        STEPS,
    ),
    Mutant(
        "redge_guidance/hosts/masked_text.py", "attention_mask=text & (free | ~hidden)", "attention_mask=text", STEPS
    ),
    Mutant(
        "redge_guidance/hosts/masked_text.py",
        "(drawing.steps_before + round(progress * len(timesteps))) / drawing.num_steps",
        "progress",
        STEPS,
    ),
    Mutant(
        "redge_guidance/hosts/masked_text.py",
        'temperature=float(arguments.get("temperature") or 1.0)',
        "temperature=1.0",
        STEPS,
    ),
    Mutant("redge_guidance/hosts/uniform_text.py", "given=drawing.canvas.given", "given=None", STEPS),
    Mutant("redge_guidance/hosts/llada2.py", "in_block(free & ~in_prompt, length)", "in_block(free, length)", STEPS),
    Mutant(
        "redge_guidance/hosts/llada2.py", "length - block_length + int(in_prompt.sum())", "length - block_length", STEPS
    ),
    Mutant(
        "redge_guidance/hosts/diffusion_gemma.py",
        "uncommitted: Tensor = ~committed",
        "uncommitted = committed | True",
        STEPS,
    ),
    Mutant("redge_guidance/hosts/diffusion_gemma.py", "(len(self._pieces) - 1) * steps", "0 * steps", STEPS),
    Mutant("redge_guidance/hosts/diffusion_gemma.py", "self._cache.reorder_cache(rows)", "pass", STEPS),
    Mutant(
        "redge_guidance/hosts/amused.py",
        "list(texts) * (batch // max(len(texts), 1))",
        "[t for t in texts for _ in range(batch // len(texts))]",
        f"{STEPS} {KINDS}",
    ),
    Mutant("redge_guidance/hosts/amused.py", "if self._is_last and not is_image", "if False", UNIFIED),
    Mutant(
        "redge_guidance/hosts/amused.py",
        'arguments["model_output"].copy_(keeping_the_first(output, arguments["model_output"].dtype))',
        "pass",
        UNIFIED,
    ),
    Mutant("redge_guidance/hosts/amused.py", "step.logits.copy_(step.logits[rows])", "pass", UNIFIED),
    Mutant("redge_guidance/hosts/amused.py", ", width=width)", ")", UNIFIED),
    Mutant(
        "redge_guidance/hosts/masked_image.py",
        'temperature=float(arguments.get("temperature") or 1.0)',
        "temperature=1.0",
        SETTINGS,
    ),
    Mutant("redge_guidance/hosts/callables.py", "temperature=self._temperature or 1.0", "temperature=1.0", STEPS),
    # one guided step
    Mutant("redge_guidance/guidance.py", "self._index += 1", "self._index += 0", SETTINGS),
    Mutant("redge_guidance/guidance.py", "step.progress < config.stop", "step.progress <= config.stop", SETTINGS),
    Mutant("redge_guidance/randomness.py", 'f"|{seed}|{index}"', 'f"|{index}"', RANDOM),
    Mutant(
        "redge_guidance/draws.py",
        "list(step.prompts) * draws",
        "[p for p in step.prompts for _ in range(draws)]",
        f"{SETTINGS} {KINDS}",
    ),
    Mutant(
        "redge_guidance/draws.py",
        "step.attention_mask.repeat(draws, 1)",
        "torch.ones_like(ids).bool()",
        f"{ROOM}hosts.py {ROOM}callables.py",
    ),
    Mutant(
        "redge_guidance/estimators/categorical.py",
        "_perturbed(logits, noise).argmax(-1, keepdim=True)",
        "soft.argmax(-1, keepdim=True)",
        f"{ROOM}estimators.py",
    ),
    Mutant(
        "redge_guidance/estimators/sampling.py",
        "return torch.rand(0, device=logits.device) if",
        "return None if",
        f"{ROOM}estimators.py",
    ),
    Mutant(
        "redge_guidance/updates.py",
        "softshrink(slope / unit, 1.0)",
        "softshrink(slope / unit, 0.0)",
        f"{ROOM}updates.py",
    ),
    Mutant("redge_guidance/gradients.py", "resolution=1 / self._count", "resolution=0.0", FIGURES),
    Mutant(
        "redge_guidance/gradients.py",
        "rewards.detach().float().view(count, -1).mean(0)",
        "rewards.detach().float().view(-1, count).mean(-1)",
        FIGURES,
    ),
    Mutant("redge_guidance/prediction.py", ".index_fill_(-1, self._reserved, -torch.inf)", "", FIGURES),
    Mutant(
        "redge_guidance/trace.py",
        "self._by_sequence(kl, free), torch",
        "self._by_sequence(entropy, free), torch",
        FIGURES,
    ),
    Mutant(
        "redge_guidance/guidance.py",
        "config.kl_budget * step.free.sum(-1).to(log_q.dtype)",
        "config.kl_budget * step.free.sum().to(log_q.dtype).expand(len(step.free))",
        SETTINGS,
    ),
    Mutant("redge_guidance/attach.py", "replace(step.images, chunk_size=self._chunk_size)", "step.images", KINDS),
    Mutant(
        "redge_guidance/text.py", "- known_token_ids(tokenizer)) | special", "- known_token_ids(tokenizer))", FIGURES
    ),
    Mutant(
        "redge_guidance/text.py",
        "set(range(vocabulary)) - known",
        "set(range(len(tokenizer), vocabulary)) - known",
        TOKENS,
    ),
    Mutant("redge_guidance/text.py", "return free & _has_later(written)", "return free & False", TOKENS),
    Mutant("redge_guidance/draws.py", "given, step.ends),", "given),", TOKENS),
    Mutant("redge_guidance/samples/tokens.py", '"attention_mask", "given")', '"attention_mask")', KINDS),
    Mutant("redge_guidance/evaluation.py", "if found not in (None, modality):", "if False:", KINDS),
    # pipelines
    Mutant(
        "pipelines/text/masked.py",
        "without = sample.masked_fill(",
        "without = canvas.ids.masked_fill(",
        PIPES + " tests/redge_guidance",
    ),
    Mutant(
        "pipelines/image/masked.py",
        "self._logits(sample, nothing)",
        "self._logits(canvas.ids, nothing)",
        PIPES,
    ),
    Mutant(
        "pipelines/scheduler.py", "hidden = (sample == mask_token_id) & free", "hidden = sample == mask_token_id", PIPES
    ),
    Mutant(
        "pipelines/uniform_scheduler.py",
        "where_drawn(draw, logits[row, where][None], sample[row, where][None], source)",
        "draw(logits[row, where][None], sample[row, where][None], generator[0])",
        RANDOM,
    ),
    Mutant("pipelines/scheduler.py", "total = free.sum(-1", "total = torch.ones_like(free).sum(-1", HALTON),
    Mutant("pipelines/scheduler.py", "noise_level = 1 - step / (steps - 1)", "noise_level = t", HALTON),
    Mutant(
        "pipelines/schedules.py",
        "conditional.isneginf() | unconditional.isneginf()",
        "conditional.isneginf()",
        f"{ROOM}classifier_free.py",
    ),
    Mutant("pipelines/schedules.py", ".clamp(min=step + 1)", ".clamp(min=1)", HALTON),
    Mutant("pipelines/image/order.py", "torch.arange(1, rows", "torch.arange(0, rows", HALTON),
    Mutant("pipelines/image/order.py", 'roll=config.get("roll", False)', "roll=False", HALTON),
    Mutant("pipelines/image/masked.py", "nothing), scales[step])", "nothing), scales[-1])", HALTON),
    Mutant("redge_guidance/hosts/masked_image.py", "ranks.copy_(ranks[rows])", "pass", f"{ROOM}following.py"),
    Mutant(
        "pipelines/sampling.py",
        "drawn = [torch.rand(n, generator=g, device=g.device) for n, g in zip(counts, generator, strict=True)]",
        "drawn = [torch.rand(free.shape[1], generator=g)[:n] for n, g in zip(counts, generator, strict=True)]",
        RANDOM,
    ),
    Mutant(
        "pipelines/text/prompts.py",
        "written.append([False] * len(start) + [not hole",
        "written.append([True] * len(start) + [not hole",
        f"{PIPES} tests/pipelines/test_families.py tests/pipelines/test_masked_text.py",
    ),
    Mutant("pipelines/text/masked.py", "suppress_tokens, canvas.unending)", "suppress_tokens)", TOKENS),
    Mutant("pipelines/text/uniform.py", "(logits, unending=canvas.unending)", "(logits)", TOKENS),
    Mutant("pipelines/text/prompts.py", "if pad in (None, mask_id) else pad", "if pad is None else pad", TOKENS),
    Mutant("pipelines/drawing.py", "reversed(_DRAWINGS.get()) if pipe is self", "reversed(_DRAWINGS.get())", PIPES),
    # rewards
    Mutant(
        "redge_guidance/reward.py", "total = total + term.weight * value", "total = total + value", f"{ROOM}reward.py"
    ),
    # goals
    Mutant("rewards/text/lexical.py", "[place * (1 - e) * w", "[place * w", PHRASES),
    Mutant("rewards/text/lexical.py", "pull = _Upward.apply(self._pull(", "pull = (self._pull(", PHRASES),
    Mutant(
        "rewards/text/spellings.py", "masked_fill(~(inside & to_write)", "masked_fill(~(inside | to_write)", PHRASES
    ),
    Mutant("redge_guidance/goals.py", " or _reached(self._terms[name], *self._last[name])", "", f"{ROOM}goals.py"),
    Mutant("redge_guidance/goals.py", "and value.requires_grad:", "and False:", f"{ROOM}goals.py"),
    Mutant(
        "rewards/text/lexical.py",
        ".exp().repeat(sample.draws, 1, 1)",
        ".exp().repeat_interleave(sample.draws, 0)",
        PHRASES,
    ),
    Mutant("rewards/text/spellings.py", "*logs[0].shape[1:]).mean(0)", "*logs[0].shape[1:])[0]", PHRASES),
    Mutant(
        "redge_guidance/goals.py",
        "value.detach().view(count, -1)",
        "value.detach().view(-1, count).T",
        f"{ROOM}goals.py",
    ),
    Mutant("rewards/text/length.py", " or named != self._ends", "", TOKENS),
    Mutant("pipelines/confidence.py", 'logits if order == "confidence" else kept', "kept", PIPES),
    Mutant("rewards/labels.py", "found = by_name or [", "found = [", "tests/rewards/test_labels.py"),
    Mutant(
        "redge_guidance/hosts/seam.py",
        "with _PUTTING:\n            self._before",
        "if True:\n            self._before",
        ATTACH,
    ),
]


def run(folder: Path, tests: str) -> bool:
    """Whether the tests pass."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests.split()]
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in (0, 1, 2):
        sys.exit(f"the tests did not run: {done.stdout.decode()[-2000:]}{done.stderr.decode()[-2000:]}")
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("numbers", nargs="*", type=int, help="of mutants, from 0; not given: all")
    parser.add_argument("--quick", action="store_true", help="run the tests of the room only")
    args = parser.parse_args()
    survivors = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "checkout"
        ignored = shutil.ignore_patterns(".git", ".venv", "build", "__pycache__", ".*_cache", "*.egg-info")
        shutil.copytree(ROOT, folder, symlinks=True, ignore=ignored)
        for number in args.numbers or range(len(MUTANTS)):
            mutant, started = MUTANTS[number], time.perf_counter()
            file = folder / mutant.file
            source = file.read_text(encoding="utf-8")
            if source.count(mutant.old) != 1:
                sys.exit(f"mutant {number}: {mutant.old!r} stands {source.count(mutant.old)} times in {mutant.file}")
            file.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
            seen = not run(folder, mutant.tests) or not (args.quick or run(folder, "tests"))
            file.write_text(source, encoding="utf-8")
            survivors += [] if seen else [number]
            seconds = time.perf_counter() - started
            shown = f"{mutant.file}: {mutant.old.strip()[:60]!r}"
            print(f"{number:3} {'seen' if seen else 'SURVIVED'} {seconds:6.0f} s  {shown}", flush=True)
    print(f"{len(args.numbers or MUTANTS)} planted, {len(survivors)} survived: {survivors}")
    return int(len(survivors) > MOST_SURVIVORS)


if __name__ == "__main__":
    sys.exit(main())
