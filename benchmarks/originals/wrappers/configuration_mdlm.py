"""Stands in for the hub's file of this name: the same fields with the same defaults."""

import transformers


class MDLMConfig(transformers.PretrainedConfig):
    model_type = "mdlm"

    def __init__(self, vocab_size=50258, model_length=1024, hidden_dim=768, cond_dim=129, n_blocks=12, n_heads=12,
                 dropout=0.1, time_conditioning=False, **kwargs):  # fmt: skip
        super().__init__(**kwargs)
        self.vocab_size, self.model_length = vocab_size, model_length
        self.hidden_dim, self.cond_dim, self.n_blocks, self.n_heads = hidden_dim, cond_dim, n_blocks, n_heads
        self.dropout, self.time_conditioning = dropout, time_conditioning
