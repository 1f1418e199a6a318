"""LLaDA's and Dream's public samplers, guided as functions of a model and by one call in them, beside our pipelines.

The samplers are their authors' own code, read from clones of the public repositories (`--llada`: ML-GSAI/LLaDA,
generate.py; `--dllm`: ZHZisZZ/dllm, Dream's generation_utils.py), run on the embedded model of texts. No line of that
code is part of this repository. Compared are the tokens of greedy sampling, most confident first.

    python benchmarks/loops.py --llada LLaDA --dllm dllm
"""

import argparse
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from report import environment, save
from torch import Tensor

from redge_guidance import GuidanceConfig, LogitsGuidance, guide
from redge_guidance.pipelines import MaskedDiffusionScheduler, TextPipeline
from redge_guidance.pipelines.text.prompts import Encoded
from redge_guidance.rewards import TextClassifierReward

CONFIG = GuidanceConfig(scale=8.0, estimator="soft", num_draws=1)  # no noise: the samplers draw other numbers than ours
PROMPTS, NEW = ["Tom is", "I like the", "She has never", "Where", "The music was", "We"], 12


class Sampled(torch.nn.Module):
    """A model as the samplers call it; `shift`: with logits of the next token. Reserved tokens are never likely."""

    def __init__(self, pipe: Any, shift: bool, through: Any = None):
        super().__init__()
        self.inner, self.shift, self.through, self.device = pipe.model, shift, through, torch.device("cpu")
        self.suppress = pipe._without_suppressed

    def forward(self, input_ids: Tensor, attention_mask: Any = None, tok_idx: Any = None) -> Any:
        logits = self.suppress(self.inner(input_ids=input_ids).logits).clamp(min=-1e4)
        if self.through is not None:
            logits = self.through(logits, input_ids)
        return SimpleNamespace(logits=torch.cat([logits[:, 1:], logits[:, -1:]], 1) if self.shift else logits)


def module(file: Path) -> dict[str, Any]:
    """Names of a file of the authors."""
    names: dict[str, Any] = {"__name__": file.stem}
    exec(compile(file.read_text(), file.name, "exec"), names)
    return names


def cases(llada: Path, dllm: Path) -> list[tuple[str, str, dict[str, Any]]]:
    blocks = {"steps": 12, "block_length": 4}
    return [
        ("llada", "greedy, one block", {"steps": 12, "block_length": 12}),
        ("llada", "greedy, blocks of 4", blocks),
        ("llada", "greedy, two tokens a step", {"steps": 6, "block_length": 12}),
        ("llada", "greedy, cfg_scale 1.5", {"steps": 12, "block_length": 12, "cfg_scale": 1.5}),
        ("llada", "greedy, blocks of 4, cfg_scale 1.5", blocks | {"cfg_scale": 1.5}),
        *(("dream", f"greedy, {alg}", {"steps": 12, "alg": alg}) for alg in ("maskgit_plus", "entropy", "topk_margin")),
    ]


@torch.no_grad()  # as Dream's `diffusion_generate` is, which does no more than read settings before `_sample`
def run(names: dict[str, Any], family: str, model: Any, ids: Tensor, mask: int, how: dict[str, Any]) -> Tensor:
    if family == "llada":
        attention_mask = torch.ones_like(ids)
        return names["generate"](model, ids, attention_mask, gen_length=NEW, temperature=0.0, mask_id=mask, **how)
    config = {"output_history": False, "return_dict": False, "max_length": ids.shape[1] + NEW, "mask_token_id": mask}
    config |= {"eps": 1e-3, "alg_temp": None, "temperature": 0.0, "top_p": None, "top_k": None} | how
    hooks = (lambda step, x, logits: x, lambda step, x, logits: logits)
    return names["DreamGenerationMixin"]._sample(model, ids, None, SimpleNamespace(**config), *hooks)


def ours(pipe: Any, family: str, prompt: str, how: dict[str, Any]) -> Tensor:
    order = {"unmasking_order": "confidence" if family == "llada" else how["alg"]}
    if family == "dream":
        order |= {"eps": 1e-3, "counting": "share_down"}
    pipe.scheduler = MaskedDiffusionScheduler(**order)
    settings = {"num_inference_steps": how["steps"], "block_length": how.get("block_length")}
    scale = 1 + how.get("cfg_scale", 0.0)
    return pipe(prompt, gen_length=NEW, temperature=0.0, guidance_scale=scale, **settings).sequences


def compare(
    pipe: Any, reward: Any, names: dict[str, Any], family: str, what: str, how: dict[str, Any]
) -> dict[str, Any]:
    tokenizer, mask, shift = pipe.tokenizer, pipe.tokenizer.mask_token_id, family == "dream"
    scale = how.get("cfg_scale")
    mixed = {"classifier_free": "doubled", "guidance_scale": 1 + scale} if scale else {"classifier_free": None}
    loop = {"tokenizer": tokenizer, "num_steps": how["steps"], "block_length": how.get("block_length")}
    row: dict[str, Any] = {"sampler": family, "what": what, "settings": how, "texts": len(PROMPTS)}
    equal = dict.fromkeys(("bare", "forward", "function"), 0)
    moved = 0
    for text in PROMPTS:
        ids = pipe.canvas([text], NEW).ids[:, :-NEW]
        prompt = Encoded(text, ids[0].tolist())  # its start token hidden with it, as LLaDA's sampler hides it
        bare = ours(pipe, family, prompt, how)
        equal["bare"] += torch.equal(run(names, family, Sampled(pipe, shift), ids, mask, how), bare)
        with guide(pipe, reward, CONFIG):
            guided = ours(pipe, family, prompt, how)
        moved += not torch.equal(bare, guided)
        model = Sampled(pipe, shift).eval()
        with guide(model, reward, CONFIG, **loop, **mixed, shift_logits=shift):
            equal["forward"] += torch.equal(run(names, family, model, ids, mask, how), guided)
        if not scale:  # the function guides a mix, which these samplers do not hand out
            function = LogitsGuidance(reward, CONFIG, **loop)
            through = Sampled(pipe, shift, function)
            equal["function"] += torch.equal(run(names, family, through, ids, mask, how), guided)
    row |= {"equal to ours": equal if not scale else equal | {"function": None}, "moved by guidance": moved}
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llada", type=Path, required=True)
    parser.add_argument("--dllm", type=Path, required=True)
    parser.add_argument("--output", default="benchmarks/results/loops.json")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pipe = TextPipeline.from_pretrained("builtin:tatoeba-masked")
    pipe.set_progress_bar_config(disable=True)
    reward = TextClassifierReward.from_pretrained("builtin:sentiment", label="positive")
    dream = args.dllm / "dllm/pipelines/dream/models/generation_utils.py"
    names = {"llada": module(args.llada / "generate.py"), "dream": module(dream)}
    rows = [
        compare(pipe, reward, names[family], family, what, how) for family, what, how in cases(args.llada, args.dllm)
    ]
    public = {"LLaDA": "b7e6c35", "dllm": "ca17675"}
    save(args.output, environment("transformers", "diffusers") | {"seed": 0, "public": public, "rows": rows})


if __name__ == "__main__":
    main()
