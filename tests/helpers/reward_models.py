"""The real model classes, tiny, for any tokenizer."""

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from redge_guidance import RelaxedTokens


def bert(kind, tokenizer, **config):
    """`kind` is a class of BERT's; random weights, not too small."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(
        vocab_size=len(tokenizer), initializer_range=0.3, max_position_embeddings=128, **sizes, **config
    )
    return kind(config).eval()


def llama(kind, tokenizer, **config):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"vocab_size": len(tokenizer), "initializer_range": 0.3, "max_position_embeddings": 256}
    return kind(LlamaConfig(**sizes, pad_token_id=tokenizer.pad_token_id, **config)).eval()


def classifier(tokenizer, **config):
    return bert(BertForSequenceClassification, tokenizer, **config)


def encoder(tokenizer):
    return bert(BertModel, tokenizer)


def masked_lm(tokenizer):
    return bert(BertForMaskedLM, tokenizer)


def causal_lm(tokenizer):
    return llama(LlamaForCausalLM, tokenizer)


def reward_model(tokenizer):
    return llama(LlamaForSequenceClassification, tokenizer, num_labels=1)


class Linear(torch.nn.Module):
    """A classifier that is linear in its embeddings: one output, their sum times a vector."""

    def __init__(self, tokenizer, dim=8):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = torch.nn.Embedding(len(tokenizer), dim), torch.randn(dim)
        self.config = BertConfig(num_labels=1)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, attention_mask):
        embeddings = self.embedding(input_ids) * attention_mask[..., None]
        return SequenceClassifierOutput(logits=(embeddings.sum(1) @ self.head)[:, None])


def relaxed(tokenizer, texts, prompts=None, draws=1, length=None):
    """Texts as a sampler has them: prompt, generated tokens, an end, more ends; hard one-hot weights that take grad."""
    fronts = [""] * len(texts) if prompts is None else prompts
    before = [tokenizer(front, add_special_tokens=False).input_ids for front in fronts]
    rows = [p + tokenizer(text, add_special_tokens=False).input_ids for p, text in zip(before, texts, strict=True)]
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    length = length or max(map(len, rows)) + 1
    ids = torch.tensor([row + [end] * (length - len(row)) for row in rows])
    prompt_lengths = torch.tensor([len(p) for p in before])
    given = torch.arange(length) < prompt_lengths[:, None]
    weights = torch.nn.functional.one_hot(ids[~given], len(tokenizer)).float().requires_grad_()
    return RelaxedTokens(ids, ~given, weights, tokenizer=tokenizer, given=given, draws=draws, prompts=prompts)
