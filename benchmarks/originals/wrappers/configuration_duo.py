"""Stands in for the hub's config: the same fields with the same defaults."""

import transformers


class DUOConfig(transformers.PretrainedConfig):
    model_type = "DUO"

    def __init__(self, vocab_size=50258, model_length=1024, causal=False, hidden_dim=768, cond_dim=129, n_blocks=12,
                 n_heads=12, dropout=0.1, var_min=True, **kwargs):  # fmt: skip
        super().__init__(**kwargs)
        self.vocab_size, self.model_length, self.causal = vocab_size, model_length, causal
        self.hidden_dim, self.cond_dim, self.n_blocks, self.n_heads = hidden_dim, cond_dim, n_blocks, n_heads
        self.dropout, self.var_min = dropout, var_min
