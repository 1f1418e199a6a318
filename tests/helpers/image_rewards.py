"""Rewards of images on the real classes, tiny."""

import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from redge_guidance.rewards import CLIPReward, ImageClassifierReward
from tests.helpers.images import randomised, text_tokenizer

VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 8, "patch_size": 4}
TEXT = {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT |= {"max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
SIZE = {"height": 8, "width": 8}


def clip(kind=CLIPReward, **settings):
    model = randomised(CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8)))
    return kind(model, CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=SIZE), text_tokenizer(), **settings)


def siglip(**settings):
    model = randomised(SiglipModel(SiglipConfig(text_config=TEXT | {"projection_size": 16}, vision_config=VISION)))
    return CLIPReward(model, SiglipImageProcessor(size=SIZE), text_tokenizer(), **settings)


def classifier(label="cat", num_labels=3, **settings):
    names = {0: "cat", 1: "dog", 2: "cow"} if num_labels == 3 else {0: "score"}
    problem = settings.pop("problem_type", None)
    config = ViTConfig(**VISION, id2label=names, label2id={n: i for i, n in names.items()}, problem_type=problem)
    return ImageClassifierReward(
        randomised(ViTForImageClassification(config)), ViTImageProcessor(size=SIZE), label, **settings
    )


def images(count=3, size=8, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def pixel_values(reward, pixels):
    return (pixels - reward.transform.mean) / reward.transform.deviation
