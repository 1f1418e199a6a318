"""Base classes and functions that version 4 of transformers had, for code that was written for it."""

import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache

REMOTE = "redge_guidance_remote_"  # how the name of a package of a checkpoint's code begins


class LegacyConfig(PretrainedConfig):
    """A config with the fields that every config had in transformers 4, and whatever else the file says.

    Version 5 leaves out fields of decoding, `use_cache` among them, and has no defaults for those below.
    """

    torchscript = False
    use_bfloat16 = False
    tie_word_embeddings = True
    is_decoder = False
    add_cross_attention = False
    cross_attention_hidden_size = None
    tie_encoder_decoder = False
    pruned_heads: ClassVar[dict[int, list[int]]] = {}
    finetuning_task = None
    task_specific_params = None
    tokenizer_class = None
    prefix = None
    bos_token_id = None
    pad_token_id = None
    eos_token_id = None
    sep_token_id = None
    decoder_start_token_id = None
    use_cache = False

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        for name in kwargs.keys() - vars(self).keys() - {"torch_dtype", "attn_implementation", "name_or_path"}:
            if not isinstance(getattr(type(self), name, None), property):
                setattr(self, name, kwargs[name])

    @property
    def use_return_dict(self) -> bool:
        return bool(self.return_dict) and not self.torchscript


class LegacyModel(PreTrainedModel):
    """A model class of transformers 4: weights tied by a list of names or by hand, `post_init` called or not.

    Its weights are loaded after it was built, so nothing is initialised at random.
    """

    all_tied_weights_keys: ClassVar[dict[str, str]] = {}  # where a class does not call `post_init`

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        own = vars(cls).get("tie_weights")
        if own is not None and not inspect.signature(own).parameters.keys() - {"self"}:
            setattr(cls, "tie_weights", lambda self, *args, **kwargs: own(self))  # noqa: B010

    def init_weights(self) -> None:
        """Nothing: the weights come from a file."""

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """`{tied weight: its source}`; empty where the class has a list, and ties by `tie_weights`."""
        keys = self._tied_weights_keys
        return super().get_expanded_tied_weights_keys(all_submodels) if isinstance(keys, dict) else {}

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """As version 4 did: the output embedding is the input embedding where the config says so."""
        if isinstance(self._tied_weights_keys, dict):
            super().tie_weights(*args, **kwargs)
            return
        if not getattr(self.config, "tie_word_embeddings", True) or "get_output_embeddings" not in _methods(self):
            return
        output = self.get_output_embeddings()
        if output is not None:
            output.weight = self.get_input_embeddings().weight


def _methods(model: PreTrainedModel) -> set[str]:
    """Names that the classes of the checkpoint define themselves."""
    return {name for kind in type(model).__mro__ if kind.__module__.startswith(REMOTE) for name in vars(kind)}


class LegacyCache(DynamicCache):
    """Keys and values of what was read, which code of transformers 4 takes by index."""

    def __len__(self) -> int:
        return sum(layer.get_seq_length() > 0 for layer in self.layers)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        layer: Any = self.layers[index]
        return layer.keys, layer.values

    def get_usable_length(self, new_seq_length: int, layer_idx: int = 0) -> int:
        """Tokens that were read; nothing is ever dropped to make room."""
        return int(self.get_seq_length(layer_idx))

    @property
    def key_cache(self) -> list[Tensor]:
        """Keys by layer."""
        return [self[index][0] for index in range(len(self))]

    @property
    def value_cache(self) -> list[Tensor]:
        """Values by layer."""
        return [self[index][1] for index in range(len(self))]

    @property
    def seen_tokens(self) -> int:
        """Tokens that were read."""
        return int(self.get_seq_length())


def default_rope(
    config: Any = None, device: Any = None, seq_len: int | None = None, **kwargs: Any
) -> tuple[Tensor, float]:
    """Frequencies `theta^(-2i / d)` `(d / 2,)` of rotary embeddings, and 1, the scale of the attention.

    Args:
        config: has `rope_theta`, and `head_dim` or the sizes that give it; None: `base` and `dim` are given.
        device: of the frequencies.
        seq_len: not used.
        **kwargs: `base` and `dim` where there is no config.
    """
    if config is None:
        base, dim = kwargs["base"], kwargs["dim"]
    else:
        parameters = getattr(config, "rope_parameters", None) or {}
        base = getattr(config, "rope_theta", None) or parameters.get("rope_theta") or 10_000.0
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        dim = int(size * getattr(config, "partial_rotary_factor", 1.0))
    powers = torch.arange(0, dim, 2, dtype=torch.int64).to(device=device, dtype=torch.float) / dim
    return 1.0 / (base**powers), 1.0
