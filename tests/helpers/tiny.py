"""The real classes, tiny."""

import functools
import inspect

import pytest
import torch
import transformers
from diffusers import BlockRefinementScheduler, DiffusionGemmaPipeline, DiscreteDDIMScheduler, LLaDA2Pipeline
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from redge_guidance.pipelines import MaskedDiffusionScheduler, MaskedTextPipeline, UniformTextPipeline
from redge_guidance.rewards import TextClassifierReward

WORDS = ["[PAD]", "[EOS]", "[MASK]", "a", "b", "c", "d", "e"]


def word_tokenizer(words=WORDS):
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="[EOS]", mask_token="[MASK]", padding_side="left"
    )


def tiny_config(**kwargs):
    return ModernBertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        global_attn_every_n_layers=1,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        cls_token_id=None,
        sep_token_id=None,
        initializer_range=0.5,
        attn_implementation="eager",
        **kwargs,
    )


def tiny_pipeline(length=6, **scheduler):
    torch.manual_seed(0)
    model = ModernBertForMaskedLM(tiny_config()).eval()
    for parameter in model.parameters():  # here and not by the class, whose ways differ from version to version
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    pipe = MaskedTextPipeline(model, word_tokenizer(), MaskedDiffusionScheduler(**scheduler), length=length)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_uniform(length=6, prediction_type="leave_one_out", **scheduler):
    """Around the same model, which then denoises."""
    pipe = UniformTextPipeline(
        tiny_pipeline().model,
        word_tokenizer(),
        DiscreteDDIMScheduler(**scheduler),
        length=length,
        num_inference_steps=4,
        prediction_type=prediction_type,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@functools.cache
def _trained_classifier():
    """Learns whether a text has more a's than b's; guidance needs a reward whose gradient means something."""
    torch.manual_seed(1)
    labels = {0: "bad", 1: "good"}
    config = tiny_config(num_labels=2, classifier_pooling="mean", id2label=labels, label2id={"bad": 0, "good": 1})
    config.initializer_range = 0.1
    model = ModernBertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        ids = torch.randint(1, len(WORDS), (64, 8)).clamp(min=3)
        target = ((ids == 3).sum(-1) > (ids == 4).sum(-1)).long()
        torch.nn.functional.cross_entropy(model(input_ids=ids).logits, target).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def tiny_reward(label="good"):
    return TextClassifierReward(_trained_classifier(), word_tokenizer(), label)


def tiny_llada2(**scheduler):
    """diffusers' LLaDA2Pipeline around the tiny masked language model."""
    pipe = LLaDA2Pipeline(tiny_pipeline().model, BlockRefinementScheduler(**scheduler), word_tokenizer())
    pipe.set_progress_bar_config(disable=True)
    return pipe


CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }} [EOS] {% endfor %}{% if add_generation_prompt %}a{% endif %}"
)


def gemma_pipeline_draws(model):
    """Whether the mask of the model is called as diffusers 0.40 to 0.42 call it."""
    mask = model.model.decoder.create_diffusion_decoder_attention_mask
    return "past_key_values" in inspect.signature(mask).parameters


def tiny_gemma(scheduler):
    """diffusers' DiffusionGemmaPipeline around the real class: one layer of each attention, four experts.

    With a scheduler of None for its model alone.
    """
    if not hasattr(transformers, "DiffusionGemmaForBlockDiffusion"):
        pytest.skip(f"transformers {transformers.__version__} has no DiffusionGemma")
    torch.manual_seed(0)
    text = transformers.DiffusionGemmaTextConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        global_head_dim=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=16,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision |= {"num_key_value_heads": 1, "head_dim": 16, "position_embedding_size": 8}
    config = transformers.DiffusionGemmaConfig(
        text_config=text, vision_config={"model_type": "gemma4_vision", **vision}, canvas_length=4
    )
    tokenizer = word_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    model = transformers.DiffusionGemmaForBlockDiffusion(config)
    if scheduler is not None and not gemma_pipeline_draws(model):
        pytest.skip(f"diffusers' DiffusionGemmaPipeline cannot draw with transformers {transformers.__version__}")
    pipe = DiffusionGemmaPipeline(model.eval(), scheduler, tokenizer)
    pipe.set_progress_bar_config(disable=True)
    return pipe
