"""Files of a checkpoint: random weights, tokenizers trained on the spot."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

LINES = [
    "the cat sat on the mat and the dog sat on the cat",
    "my brother likes music and my sister likes the sea",
    "one day the rain will stop and we will go home again",
    "she said that he had read the red book in the morning",
]


def fill(module: torch.nn.Module, seed: int = 0) -> None:
    """Random weights in the place of the initial ones, so large that logits differ clearly."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            scale = 0.5 if "embed" in name or "wte" in name else 0.08 if "adaLN" in name else 0.25
            parameter.data = scale * noise
        else:
            parameter.data = 0.2 * noise + name.endswith("weight")  # vectors called weight belong to norms


def trained(special: list[str], size: int = 90) -> Tokenizer:
    """A byte-level tokenizer of a few lines of text; `special` tokens get the last ids, in order."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = ["Ġ", "Ċ", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?_"]
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_special_tokens(special)
    return tokenizer


def write_fast_tokenizer(folder: Path, special: list[str], **settings: object) -> Tokenizer:
    tokenizer = trained(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **settings}
    write_json(folder / "tokenizer_config.json", config)
    return tokenizer


def write_slow_tokenizer(folder: Path, special: list[str], settings: dict) -> Tokenizer:
    """vocab.json and merges.txt, as Qwen's tokenizers want them, with `settings` for the rest."""
    tokenizer = trained(special)
    model = json.loads(tokenizer.to_str())["model"]
    write_json(folder / "vocab.json", model["vocab"])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    decoder = {
        str(tokenizer.token_to_id(token)): {"content": token, "special": True, "lstrip": False, "normalized": False,
                                            "rstrip": False, "single_word": False}
        for token in special
    }  # fmt: skip
    write_json(folder / "tokenizer_config.json", settings | {"added_tokens_decoder": decoder})
    return tokenizer


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def copy(folder: Path, *files: Path) -> None:
    for file in files:
        shutil.copy(file, folder / file.name)


def write_weights(folder: Path, reference: str, likely: Sequence[int] = (), **settings: object) -> None:
    """The weights of the class that `reference` ("file.Class") names, random, in model.safetensors.

    Rows of the head of the `likely` tokens are larger, so that they are often the first choice.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True, **settings)
    model = get_class_from_dynamic_module(reference, folder)(config)
    fill(model)
    if likely:
        model.get_output_embeddings().weight.data[list(likely)] *= 2.5
    state = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
