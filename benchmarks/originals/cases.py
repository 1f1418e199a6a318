"""What the cases of all families share: inputs, loading by the authors' own code, and the form of a case."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

Case = dict[str, Any]
PROMPTS = ["the cat", "my brother likes", "she"]
CHAT = "one day the"
TEXTS = ["the cat sat", "my sea"]
ALPHAS = [0.125, 0.5, 0.875]  # share of tokens that are left
STEPS, STEP = 8, 4  # the law is that of the fifth step of eight, from t = 1/2 to 3/8


def case(kind: str, what: str, inputs: dict[str, Any], expected: Any, **settings: Any) -> Case:
    return {"kind": kind, "what": what, "settings": settings, "inputs": inputs, "expected": expected}


def pretrained(folder: Path, **settings: Any) -> Any:
    """The authors' class by the authors' own loading."""
    own = json.loads((folder / "config.json").read_text())["auto_map"]
    kinds = (AutoModelForCausalLM, AutoModelForMaskedLM, AutoModel)
    kind = next(kind for kind in kinds if kind.__name__ in own)
    return kind.from_pretrained(folder, trust_remote_code=True, **settings).eval()


def tokenizer_of(folder: Path) -> Any:
    own = folder if (folder / "tokenizer_config.json").is_file() else folder.parent / "tokenizer"
    return AutoTokenizer.from_pretrained(own, trust_remote_code=True)


def rows(mask_id: int, length: int = 12, first: int = 1) -> tuple[Tensor, Tensor]:
    """Ids `(5, length)` with masks in them, two rows padded on the left (id 0), and their attention mask."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 85, (5, length), generator=generator)
    hidden = torch.rand(ids.shape, generator=generator) < torch.tensor([0.2, 0.5, 0.9, 0.5, 0.5])[:, None]
    attention_mask = torch.arange(length) >= torch.tensor([0, 0, 0, 3, 5])[:, None]
    start = attention_mask.int().argmax(-1, keepdim=True)
    hidden &= torch.arange(length) >= start + first
    return ids.masked_fill(hidden, mask_id).masked_fill(~attention_mask, 0), attention_mask


def row_by_row(call: Callable[[Tensor], Tensor], ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Logits of a model that takes no attention mask: every row without its padding, zeros there."""
    parts = [call(row[mask][None])[0] for row, mask in zip(ids, attention_mask, strict=True)]
    pad = torch.nn.functional.pad
    return torch.stack(
        [pad(part, (0, 0, len(mask) - len(part), 0)) for part, mask in zip(parts, attention_mask, strict=True)]
    )


def encoded(tokenizer: Any, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids padded on the left, and their attention mask."""
    tokenizer.padding_side = "left"
    batch = tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]


def mean_and_error(estimates: Tensor) -> Tensor:
    """`(2,)`, the mean and its standard error."""
    return torch.stack([estimates.mean(), estimates.std() / math.sqrt(len(estimates))])


def sigma_of(alpha: float, count: int) -> Tensor:
    return torch.full((count,), -math.log(alpha))


def dit(module: Any, folder: Path, **config: Any) -> Any:
    """The authors' training class with the weights of the checkpoint."""
    own = json.loads((folder / "config.json").read_text())
    model = {"hidden_size": own["hidden_dim"], "scale_by_sigma": True, "length": own["model_length"]}
    model |= {key: own[key] for key in ("cond_dim", "n_blocks", "n_heads", "dropout")}
    made = module.dit.DIT({"model": model, **config}, vocab_size=own["vocab_size"])
    state = load_file(folder / "model.safetensors")
    made.load_state_dict({name.removeprefix("backbone."): tensor for name, tensor in state.items()})
    return made.eval(), own


def state_of(mask_id: int | None, vocabulary: int) -> Tensor:
    """One text `(1, 8)` in the middle of its diffusion."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(vocabulary - 1, (1, 8), generator=generator)
    return ids if mask_id is None else ids.masked_fill(torch.tensor([[0, 1, 1, 0, 1, 1, 0, 1]]).bool(), mask_id)
