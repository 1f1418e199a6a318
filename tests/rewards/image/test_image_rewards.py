"""Rewards of images on the real classes, tiny."""

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from redge_guidance import GuidanceConfig, guide
from redge_guidance.rewards import AestheticReward, CLIPReward, ImageClassifierReward, ImagePreferenceReward
from tests.helpers.image_rewards import SIZE, VISION, classifier, clip, images, pixel_values, siglip
from tests.helpers.images import randomised, tiny_amused, tiny_image_pipeline

# ---- CLIP and what is built on it ----


@pytest.mark.parametrize("make", [clip, siglip])
def test_cosines_are_those_of_the_model(make):
    reward, pixels, prompts = make(), images(), ["a b", "c", "a b"]
    settings = {"padding": "max_length", "max_length": 8} if make is siglip else {"padding": True}
    ids = reward.tokenizer(prompts, return_tensors="pt", **settings)
    more = {} if make is siglip else {"attention_mask": ids.attention_mask}
    output = reward.model(input_ids=ids.input_ids, pixel_values=pixel_values(reward, pixels), **more)
    expected = (output.image_embeds * output.text_embeds).sum(-1)
    torch.testing.assert_close(reward.score(pixels, prompts), expected)
    assert expected.std() > 1e-3
    torch.testing.assert_close(make(target="c").score(pixels), make().score(pixels, ["c"] * 3))
    per_image = make(target=prompts).score(pixels)
    torch.testing.assert_close(per_image, expected)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_every_image_keeps_its_own_target_or_prompt(batch_size):
    pixels, targets = images(3), ["a b", "c", "d"]
    expected = torch.cat([clip(target=t).score(image[None]) for t, image in zip(targets, pixels, strict=True)])
    assert expected.std() > 1e-3
    torch.testing.assert_close(clip(target=targets).score(pixels, batch_size=batch_size), expected)
    torch.testing.assert_close(clip().score(pixels, targets, batch_size), expected)
    for other in (4, 6):  # of six nobody can tell which two are of one target
        with pytest.raises(ValueError, match=f"got 3 targets for {other} images. Repeat them in the order"):
            clip(target=targets).score(images(other), batch_size=3)


def test_an_image_as_target():
    pixels = (255 * images(1)[0]).round() / 255
    picture = Image.fromarray((255 * pixels).to(torch.uint8).permute(1, 2, 0).numpy())
    for target in (pixels, picture):
        scores = clip(target=target).score(torch.stack([pixels, 1 - pixels]))
        torch.testing.assert_close(scores[0], torch.tensor(1.0))
        assert scores[1] < 0.99
    assert clip(target=[pixels, "a"]).score(images(2)).shape == (2,)


def test_preferences_are_the_logits_of_the_model():
    reward, pixels = clip(ImagePreferenceReward), images(2)
    ids = reward.tokenizer(["a b", "c"], return_tensors="pt", padding=True)
    output = reward.model(
        input_ids=ids.input_ids, attention_mask=ids.attention_mask, pixel_values=pixel_values(reward, pixels)
    )
    torch.testing.assert_close(reward.score(pixels, ["a b", "c"]), output.logits_per_image.diagonal())
    torch.testing.assert_close(
        clip(ImagePreferenceReward, prompt="c").score(pixels, ["a", "a"]), output.logits_per_image[:, 1]
    )


@pytest.mark.parametrize("vision_only", [False, True])
def test_an_aesthetic_head_is_its_layers_on_the_unit_embedding(vision_only, tmp_path):
    torch.manual_seed(0)
    weights = {"layers.0.weight": torch.randn(4, 8), "layers.0.bias": torch.randn(4)}
    weights |= {"layers.10.weight": torch.randn(1, 3), "layers.2.weight": torch.randn(3, 4)}  # 10 after 2
    save_file(weights, tmp_path / "head.safetensors")
    processor = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=SIZE)
    if vision_only:
        model = randomised(CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, projection_dim=8)))
    else:
        model = clip().model
    reward, pixels = AestheticReward(model, processor, tmp_path / "head.safetensors"), images()
    if vision_only:
        embeddings = model(pixel_values=pixel_values(reward, pixels)).image_embeds
    else:
        ids = torch.ones(1, 2, dtype=torch.long)
        embeddings = model(input_ids=ids, pixel_values=pixel_values(reward, pixels)).image_embeds
    unit = embeddings / embeddings.norm(dim=-1, keepdim=True)
    hidden = unit @ weights["layers.0.weight"].T + weights["layers.0.bias"]
    expected = hidden @ weights["layers.2.weight"].T @ weights["layers.10.weight"].T
    torch.testing.assert_close(reward.score(pixels), expected[:, 0])


def test_bad_heads(tmp_path):
    model, processor = clip().model, CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=SIZE)
    torch.save({}, tmp_path / "head.pth")
    with pytest.raises(ValueError, match="`head` must be a file of safetensors, got .*; a pickle is not read"):
        AestheticReward(model, processor, tmp_path / "head.pth")
    save_file({"a.0.weight": torch.ones(4, 8), "a.1.weight": torch.ones(1, 3)}, tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match=r"down to one output, got \[\(8, 4\), \(3, 1\)\]"):
        AestheticReward(model, processor, tmp_path / "head.safetensors")


# ---- classifiers ----


def test_classifiers_give_log_probabilities_margins_and_outputs():
    pixels = images()
    logits = classifier().model(pixel_values=pixel_values(classifier(), pixels)).logits
    torch.testing.assert_close(classifier("dog").score(pixels), logits.log_softmax(-1)[:, 1])
    torch.testing.assert_close(classifier(2, temperature=2.0).score(pixels), (logits / 2).log_softmax(-1)[:, 2])
    torch.testing.assert_close(classifier("cat", against="cow").score(pixels), logits[:, 0] - logits[:, 2])
    several = classifier("cat", problem_type="multi_label_classification")
    torch.testing.assert_close(several.score(pixels), logits.sigmoid().log()[:, 0])
    one = classifier(None, num_labels=1)
    torch.testing.assert_close(one.score(pixels), one.model(pixel_values=pixel_values(one, pixels)).logits[:, 0])
    assert classifier().predict(pixels) == [("cat", "dog", "cow")[i] for i in logits.argmax(-1)]
    assert classifier("DOG").label_name == "dog"


def test_which_images_reach_the_label():
    pixels = images(6)
    for name in ("cat", "dog", "cow"):
        reward = classifier(name)
        assert reward.reached(pixels) == [found == name for found in reward.predict(pixels, batch_size=4)]
    assert classifier(None, num_labels=1).reached(pixels) is None
    several = classifier("cat", problem_type="multi_label_classification")
    assert several.reached(pixels) == (several.score(pixels).exp() > 0.5).tolist()
    assert clip(target="a").reached(pixels) is None


@pytest.mark.parametrize("make", [lambda: clip(target="a b"), lambda: siglip(target="c"), lambda: classifier()])
@pytest.mark.parametrize("size", [8, 12])
def test_the_gradient_is_the_slope(make, size):
    reward = make()
    reward.model.double()
    reward.transform.mean, reward.transform.deviation = (
        x.double() for x in (reward.transform.mean, reward.transform.deviation)
    )
    torch.manual_seed(0)
    pixels = (0.25 + 0.5 * images(2, size).double()).requires_grad_()
    direction = torch.randn(pixels.shape, dtype=torch.float64)
    (grad,) = torch.autograd.grad(reward.of_pixels(pixels).sum(), pixels)
    with torch.no_grad():
        ahead, behind = (reward.of_pixels(pixels + h * direction).double().sum() for h in (1e-3, -1e-3))
    torch.testing.assert_close((grad * direction).sum(), (ahead - behind) / 2e-3, rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}])
def test_a_device_map_and_a_dtype(tmp_path, device_map):
    reward, pixels = classifier("cow"), images()
    reward.model.save_pretrained(tmp_path)
    reward.processor.save_pretrained(tmp_path)
    loaded = ImageClassifierReward.from_pretrained(tmp_path, "cow", device_map=device_map)
    torch.testing.assert_close(loaded.score(pixels), reward.score(pixels))
    half = ImageClassifierReward.from_pretrained(tmp_path, "cow", dtype=torch.bfloat16, device_map=device_map)
    assert half.model.dtype == torch.bfloat16
    assert half.score(pixels).dtype == torch.float32


def test_saved_and_loaded(tmp_path):
    reward, pixels = classifier("cow"), images()
    reward.model.save_pretrained(tmp_path / "classifier")
    reward.processor.save_pretrained(tmp_path / "classifier")
    loaded = ImageClassifierReward.from_pretrained(tmp_path / "classifier", "cow")
    torch.testing.assert_close(loaded.score(pixels), reward.score(pixels))
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    reward = clip(target="a b")
    for part in (reward.model, reward.processor, reward.tokenizer):
        part.save_pretrained(tmp_path / "clip")
    loaded = CLIPReward.from_pretrained(tmp_path / "clip", "a b", dtype=torch.float32)
    torch.testing.assert_close(loaded.score(pixels), reward.score(pixels))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: classifier("bird"), r"`label` must be one of cat \(0\), dog \(1\), cow \(2\), got 'bird'"),
        (lambda: classifier("cat", against=0), "`against` must be another label"),
        (lambda: classifier(temperature=0.0), "`temperature` must be > 0"),
        (lambda: clip().score(images()), "`target` is None and there are no prompts .* `target=`, .* `prompts`"),
        (
            lambda: clip(ImagePreferenceReward).score(images()),
            "`prompt` is None and there are no prompts .* `prompt=`, .* `prompts`",
        ),
        (lambda: clip(target=["a", "b"]).score(images(3)), "got 2 targets for 3 images"),
        (lambda: clip(target=3), "`target` must be a text or an image, got int"),
        (lambda: clip().score(images(), ["a"]), "`prompts` must be one a sample, 3, got 1"),
        (lambda: classifier().score(images(), ["a"]), "`prompts` must be one a sample, 3, got 1"),
        (lambda: clip(target=["a"] * 3).score(images(), ["a"]), "`prompts` must be one a sample, 3, got 1"),
        (
            lambda: clip(target="a").of_pixels(images()[0]),
            r"`pixels` must be floating point \(batch, 3, height, width\)",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_targets_of_a_batch_with_several_images_of_a_prompt():
    """`MaskedImagePipeline` has them side by side, aMUSEd one batch after the other: targets are one an image."""
    for make in (tiny_image_pipeline, tiny_amused):
        pipe = make()
        few = {"num_inference_steps": 2, "num_images_per_prompt": 2, "generator": torch.Generator().manual_seed(0)}
        call = (
            {"class_labels": [0, 1]} if make is tiny_image_pipeline else {"prompt": ["a", "b"], "height": 8, "width": 8}
        )
        config = GuidanceConfig(num_draws=2)
        with (
            guide(pipe, clip(target=["a", "b"]), config),
            pytest.raises(ValueError, match="got 2 targets for 4 images"),
        ):
            pipe(**call, **few)
        with guide(pipe, clip(target=["a", "a", "b", "b"]), config) as handle:
            pipe(**call, **few)
        assert len(handle.trace) > 0
