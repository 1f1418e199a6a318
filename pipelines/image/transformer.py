"""The token transformer of Halton-MaskGIT: predicts every token of an image from those that are visible."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class MaskedImageTransformer(ModelMixin, ConfigMixin):
    r"""Bidirectional transformer over a square of image tokens, conditioned on a class (arXiv 2503.17076).

    Every layer is modulated by the embedding c of the class (adaptive layer normalisation, as DiT): with
    `(shift, scale, gate) x 2 = W silu(c) + b`,

        x <- x + gate * attention(norm(x) (1 + scale) + shift), then the same with a SwiGLU in the place of attention.

    Queries and keys are normalised over the whole width; the output layer is the token embedding. Register tokens
    stand behind those of the image and are dropped at the end.

    Args:
        sample_size: tokens a side; the model takes `sample_size**2` of them.
        codebook_size: K, ids of image tokens are below it; the id K stands for a hidden token.
        num_classes: C, ids of classes are below it; the id C stands for no class.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: as in transformers' configs.
        num_registers: register tokens.
        norm_eps: of the root mean square normalisations.

    Raises:
        ValueError: a width that the heads do not divide. When called: another number of tokens.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 16,
        codebook_size: int = 16384,
        num_classes: int = 1000,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 2048,
        num_registers: int = 1,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"`hidden_size` must be a multiple of `num_attention_heads`, got {hidden_size} and "
                f"{num_attention_heads}."
            )
        self.token_embedding = nn.Embedding(codebook_size + 1, hidden_size)
        self.position_embedding = nn.Embedding(sample_size**2, hidden_size)
        self.class_embedding = nn.Embedding(num_classes + 1, hidden_size)
        self.registers = nn.Parameter(torch.zeros(num_registers, hidden_size))
        self.layers = nn.ModuleList(
            _Layer(hidden_size, num_attention_heads, intermediate_size, norm_eps) for _ in range(num_hidden_layers)
        )
        self.norm = nn.RMSNorm(hidden_size, norm_eps)
        self.norm_bias = nn.Parameter(torch.zeros(hidden_size))
        self.modulation = nn.Linear(hidden_size, 2 * hidden_size)
        self.logit_bias = nn.Parameter(torch.zeros(codebook_size + 1))
        self.apply(_initialise)
        nn.init.normal_(self.registers, std=0.02)
        for layer in self.layers:  # every layer begins as the identity
            nn.init.zeros_(layer.modulation.weight)  # type: ignore[union-attr, arg-type]

    def forward(self, input_ids: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Logits of the clean tokens.

        Args:
            input_ids: `(batch, sample_size**2)` int64 in row-major order, in [0, K].
            class_labels: `(batch,)` int64 in [0, C]; None: no class.

        Returns:
            `(batch, sample_size**2, K)`.
        """
        length = self.config.sample_size**2
        if input_ids.ndim != 2 or input_ids.shape[1] != length:
            raise ValueError(f"`input_ids` must be (batch, {length}), got {tuple(input_ids.shape)}.")
        if class_labels is None:
            class_labels = input_ids.new_full(input_ids.shape[:1], self.config.num_classes)
        condition = nn.functional.silu(self.class_embedding(class_labels))[:, None]
        hidden = self.token_embedding(input_ids) + self.position_embedding.weight
        hidden = torch.cat([hidden, self.registers.expand(len(hidden), -1, -1)], dim=1)
        for layer in self.layers:
            hidden = layer(hidden, condition)
        shift, scale = self.modulation(condition).chunk(2, dim=-1)
        hidden = (self.norm(hidden[:, :length]) + self.norm_bias) * (1 + scale) + shift
        table = self.token_embedding.weight[:-1]  # the hidden token is not predicted
        return nn.functional.linear(hidden, table, self.logit_bias[:-1])


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, eps: float):
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.norm_1, self.norm_2 = nn.RMSNorm(width, eps), nn.RMSNorm(width, eps)
        self.norm_query_key = nn.RMSNorm(width, eps, elementwise_affine=False)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(condition).chunk(6, dim=-1)
        x = x + gate_1 * self.attention(self.norm_1(x) * (1 + scale_1) + shift_1)
        x_2 = self.norm_2(x) * (1 + scale_2) + shift_2
        return x + gate_2 * self.down(nn.functional.silu(self.gate(x_2)) * self.up(x_2))  # type: ignore[no-any-return]

    def attention(self, x: Tensor) -> Tensor:
        query, key = self.norm_query_key(self.query(x)), self.norm_query_key(self.key(x))
        by_head = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key, self.value(x)))
        mixed = nn.functional.scaled_dot_product_attention(*by_head)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
