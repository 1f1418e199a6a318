"""A config without defaults for what its model reads."""

import transformers


class TimedConfig(transformers.PretrainedConfig):
    model_type = "mdlm"

    def __init__(self, vocab_size=12, model_length=16, hidden_dim=16, time_conditioning=True, **kwargs):
        super().__init__(**kwargs)
        self.vocab_size = vocab_size
        self.model_length = model_length
        self.hidden_dim = hidden_dim
        self.time_conditioning = time_conditioning
