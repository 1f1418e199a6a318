import functools
import inspect

import pytest
import torch
from PIL import Image

from redge_guidance.pipelines import MaskedDiffusionScheduler, MaskedImagePipeline, MaskedImageTransformer
from redge_guidance.pipelines.image.completion import ImageCompletion
from redge_guidance.pipelines.image.conditions import embed_texts
from tests.helpers.images import (
    CODES,
    SIDE,
    randomised,
    text_tokenizer,
    tiny_image_pipeline,
    tiny_text_encoder,
    tiny_transformer,
    tiny_uvit,
    tiny_vqvae,
)

ORDERS = ["ancestral", "random", "left_to_right", "confidence", "remasking"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def steps_of(pipe):
    """What `scheduler.step` is called with, in a list."""
    calls, original = [], pipe.scheduler.step

    @functools.wraps(original)
    def step(*args, **kwargs):
        calls.append(inspect.signature(original).bind(*args, **kwargs).arguments)
        return original(*args, **kwargs)

    pipe.scheduler.step = step
    return calls


# ---- sampling ----


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("takes_text", [False, True])
def test_every_order_fills_the_canvas_with_codes(order, takes_text):
    pipe = tiny_image_pipeline(takes_text, unmasking_order=order, schedule="cosine")
    given = {"prompt": ["a", "b c"]} if takes_text else {"class_labels": [0, 2]}
    output = pipe(**given, generator=seeded(), output_type="pt")
    assert output.tokens.shape == (2, SIDE**2)
    assert ((output.tokens >= 0) & (output.tokens < CODES)).all()
    assert output.images.shape == (2, 3, 8, 8)
    again = pipe(**given, generator=seeded(), output_type="pt", return_dict=False)
    assert torch.equal(again[0], output.images)
    assert not torch.equal(pipe(**given, generator=seeded(1)).tokens, output.tokens)


def test_the_samples_of_one_step_follow_the_transformer():
    pipe = tiny_image_pipeline()
    with torch.no_grad():
        logits = pipe.transformer(torch.full((1, SIDE**2), CODES), torch.tensor([1]))[0]
    count = 4000
    tokens = pipe(
        1, num_images_per_prompt=count, num_inference_steps=1, temperature=2.0, generator=seeded(), output_type="latent"
    )
    frequency = torch.nn.functional.one_hot(tokens.tokens, CODES).float().mean(0)
    expected = (logits / 2).softmax(-1)
    # Standard error of a frequency is at most 0.5 / sqrt(4000) = 0.008.
    torch.testing.assert_close(frequency, expected, atol=5 * 0.008, rtol=0)
    assert expected.std() > 0.03


@pytest.mark.parametrize("takes_text", [False, True])
def test_classifier_free_guidance_mixes_with_and_without(takes_text):
    pipe = tiny_image_pipeline(takes_text)
    given = {"prompt": ["a b"]} if takes_text else {"class_labels": [2]}
    nothing = {"prompt": [""]} if takes_text else {"class_labels": None}
    found = []
    for settings in ({**given}, {**nothing}, {**given, "guidance_scale": 3.0}):
        calls = steps_of(pipe)
        pipe(**settings, num_inference_steps=1, generator=seeded(), output_type="latent")
        found.append(calls[0]["model_output"].clone())
        del pipe.scheduler.step
    conditional, unconditional, mixed = found
    torch.testing.assert_close(mixed, unconditional + 3.0 * (conditional - unconditional))
    assert (conditional - unconditional).abs().max() > 1e-3


def test_a_negative_prompt_takes_the_place_of_nothing():
    pipe = tiny_image_pipeline(takes_text=True)
    settings = {"prompt": "a b", "guidance_scale": 3.0, "output_type": "latent"}
    plain, empty, other = (
        pipe(**settings, negative_prompt=text, generator=seeded()).tokens for text in (None, "", "c d")
    )
    assert torch.equal(plain, empty)
    assert not torch.equal(plain, other)


def test_callbacks_see_and_change_the_sample():
    pipe, seen = tiny_image_pipeline(), []

    def callback(pipe, step, t, tensors):
        seen.append((step, set(tensors)))
        return {"sample": torch.zeros_like(tensors["sample"])}

    names = ["sample", "logits"]
    output = pipe(0, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names, output_type="latent")
    assert seen == [(i, set(names)) for i in range(4)]
    assert not output.tokens.any()


# ---- pixels ----


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("do_normalize", [True, False])
def test_pixels_are_those_of_the_vq_model_and_tokens_its_nearest_codes(channels, do_normalize):
    vqvae = tiny_vqvae(channels)
    pipe = MaskedImagePipeline(tiny_transformer(), vqvae, MaskedDiffusionScheduler(), do_normalize=do_normalize)
    tokens = torch.randint(CODES, (2, SIDE**2), generator=seeded())
    latents = vqvae.quantize.get_codebook_entry(tokens.flatten(), (2, SIDE, SIDE, 4))
    decoded = vqvae.decode(latents, force_not_quantize=True).sample
    expected = (decoded / 2 + 0.5 if do_normalize else decoded).clamp(0, 1).expand(-1, 3, -1, -1)
    torch.testing.assert_close(pipe.decode(tokens), expected)
    pixels = torch.rand(2, 1, 8, 8, generator=seeded()).expand(-1, 3, -1, -1)
    inputs = pixels[:, :channels] * 2 - 1 if do_normalize else pixels[:, :channels]
    nearest = vqvae.quantize(vqvae.encode(inputs).latents)[2][2]
    assert torch.equal(pipe.encode(pixels), nearest.view(2, -1))
    assert len(nearest.unique()) > 3


def test_output_types():
    pipe = tiny_image_pipeline()
    settings = {"class_labels": [1], "num_images_per_prompt": 2}
    pixels = pipe(**settings, generator=seeded(), output_type="pt").images
    arrays = pipe(**settings, generator=seeded(), output_type="np").images
    pictures = pipe(**settings, generator=seeded()).images
    torch.testing.assert_close(torch.from_numpy(arrays).permute(0, 3, 1, 2), pixels)
    assert [type(picture) for picture in pictures] == [Image.Image] * 2
    torch.testing.assert_close(torch.from_numpy(arrays[0]), as_tensor(pictures[0]), atol=0.5 / 255, rtol=0)


def as_tensor(picture):
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(8, 8, 3).float() / 255


# ---- completing an image ----


@pytest.mark.parametrize("order", ["confidence", "remasking"])
def test_a_given_region_stays(order):
    pipe = tiny_image_pipeline(unmasking_order=order)
    image, mask = torch.rand(3, 8, 8, generator=seeded()), torch.zeros(8, 8)
    mask[2:5, 3:7] = 1  # touches rows 1 and 2, columns 1 to 3 of the tokens
    output = pipe(num_images_per_prompt=3, image=image, mask_image=mask, generator=seeded(), output_type="pt")
    given = pipe.encode(image[None]).view(SIDE, SIDE)
    drawn = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    drawn[1:3, 1:4] = True
    tokens = output.tokens.view(3, SIDE, SIDE)
    assert torch.equal(ImageCompletion.read(image, mask, 8, torch.device("cpu")).cells(SIDE).view(SIDE, SIDE), drawn)
    assert torch.equal(tokens[:, ~drawn], given[~drawn].expand(3, -1))
    assert (tokens[:, drawn] != given[drawn]).any()
    outside = (mask == 0).expand(3, 3, -1, -1)
    assert torch.equal(output.images[outside], image.expand(3, -1, -1, -1)[outside])
    torch.testing.assert_close(output.images[~outside], pipe.decode(output.tokens)[~outside])


def test_pictures_to_complete_may_be_pil():
    pipe = tiny_image_pipeline()
    array = (255 * torch.rand(8, 8, 3, generator=seeded())).to(torch.uint8)
    mask = Image.new("L", (8, 8), 0)
    mask.paste(255, (4, 0, 8, 8))
    output = pipe(image=Image.fromarray(array.numpy()), mask_image=mask, generator=seeded(), output_type="pt")
    torch.testing.assert_close(output.images[0, :, :, :4], array.permute(2, 0, 1)[:, :, :4] / 255)


def test_given_tokens_stay():
    pipe = tiny_image_pipeline(unmasking_order="ancestral")
    tokens = torch.full((SIDE**2,), pipe.mask_token_id)
    tokens[3:9] = torch.arange(6)
    found = pipe(num_images_per_prompt=2, tokens=tokens, generator=seeded(), output_type="latent").tokens
    assert torch.equal(found[:, 3:9], torch.arange(6).expand(2, -1))
    assert (found < CODES).all()


# ---- saving and loading ----


@pytest.mark.parametrize("takes_text", [False, True])
def test_saved_and_loaded(takes_text, tmp_path):
    pipe = tiny_image_pipeline(takes_text, unmasking_order="confidence")
    pipe.save_pretrained(tmp_path)
    loaded = MaskedImagePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    given = {"prompt": "a b"} if takes_text else {"class_labels": 1}
    outputs = [p(**given, generator=seeded(), output_type="pt") for p in (pipe, loaded)]
    assert torch.equal(outputs[0].images, outputs[1].images)
    assert loaded.config.num_inference_steps == 4
    assert loaded.mask_token_id == (CODES + 2 if takes_text else CODES)


# ---- bad input ----


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: parts(vqvae=tiny_vqvae(num_vq_embeddings=9)), "one codebook, got 9 codes and a transformer for 12"),
        (lambda: parts(mask_token_id=3), "`mask_token_id` must lie outside the codebook of 12 codes, got 3"),
        (lambda: parts(transformer=tiny_uvit()), "`tokenizer` and `text_encoder` must be given"),
        (lambda: MaskedImageTransformer(hidden_size=10, num_attention_heads=3), "multiple of `num_attention_heads`"),
        (lambda: MaskedImagePipeline.from_pretrained("builtin:cat"), "`builtin:cat` is not an embedded checkpoint"),
    ],
)
def test_parts_that_do_not_fit(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def parts(transformer=None, vqvae=None, **settings):
    transformer = tiny_transformer() if transformer is None else transformer
    vqvae = tiny_vqvae() if vqvae is None else vqvae
    return MaskedImagePipeline(transformer, vqvae, MaskedDiffusionScheduler(), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_labels": 3}, r"`class_labels` must lie in \[0, 3\), got 3"),
        ({"class_labels": [0, -1]}, r"`class_labels` must lie in \[0, 3\), got -1"),
        ({"class_labels": []}, r"`class_labels` must lie in \[0, 3\), got none"),
        ({"prompt": "a"}, "`prompt` is for a transformer that is given a text"),
        ({"num_images_per_prompt": 0}, "`num_images_per_prompt` must be >= 1, got 0"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be >= 1, got 0"),
        ({"temperature": -1.0}, "`temperature` must be >= 0, got -1.0"),
        ({"top_p": 0.0}, r"`top_p` must lie in \(0, 1\], got 0.0"),
        ({"image": torch.rand(3, 8, 8)}, "`image` and `mask_image` must be given together"),
        ({"image": torch.rand(3, 9, 8), "mask_image": torch.zeros(8, 8)}, "`image` must be 8 x 8 pixels, got 8 x 9"),
        ({"image": torch.rand(3, 8, 8), "mask_image": torch.zeros(4, 4)}, "`mask_image` must be 8 x 8 pixels, got 4"),
        ({"image": 2 * torch.ones(3, 8, 8), "mask_image": torch.zeros(8, 8)}, r"values in \[0, 1\], got 2 to 2"),
        ({"image": "cat.png", "mask_image": torch.zeros(8, 8)}, "`image` must be a PIL image or a tensor, got str"),
        ({"tokens": torch.zeros(1, 5).long()}, r"`tokens` must be \(batch, 16\)"),
        ({"tokens": torch.full((16,), 14)}, "`tokens` must be ids of the 12 codes, or 12 where to draw one"),
        ({"callback_on_step_end_tensor_inputs": ["pixels"]}, "`callback_on_step_end_tensor_inputs` must be of"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_image_pipeline()(**settings)


def test_a_class_for_a_model_of_texts():
    with pytest.raises(ValueError, match="`class_labels` are for a transformer with classes"):
        tiny_image_pipeline(takes_text=True)(1)


# ---- the transformer ----


def test_the_transformer_is_its_formula():
    model = randomised(tiny_transformer(num_registers=2), seed=3)
    for parameter in model.parameters():  # norms too
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=seeded(4))
    model.double()
    ids, labels = torch.randint(CODES + 1, (3, SIDE**2), generator=seeded()), torch.tensor([0, 2, 3])
    state = model.state_dict()

    def norm(x, weight=1.0):
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    def affine(name, x):
        return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0.0)

    def silu(x):
        return x * x.sigmoid()

    condition = silu(state["class_embedding.weight"][labels])[:, None]
    x = state["token_embedding.weight"][ids] + state["position_embedding.weight"]
    x = torch.cat([x, state["registers"].expand(3, -1, -1)], 1)
    for layer in ("layers.0", "layers.1"):
        modulation = affine(f"{layer}.modulation", condition).chunk(6, -1)
        h = norm(x, state[f"{layer}.norm_1.weight"]) * (1 + modulation[1]) + modulation[0]
        query, key, value = (affine(f"{layer}.{name}", h) for name in ("query", "key", "value"))
        heads = []
        for head in (slice(0, 8), slice(8, 16)):
            scores = norm(query)[..., head] @ norm(key)[..., head].transpose(1, 2) / 8**0.5
            heads.append(scores.softmax(-1) @ value[..., head])
        x = x + modulation[2] * affine(f"{layer}.out", torch.cat(heads, -1))
        h = norm(x, state[f"{layer}.norm_2.weight"]) * (1 + modulation[4]) + modulation[3]
        x = x + modulation[5] * affine(f"{layer}.down", silu(affine(f"{layer}.gate", h)) * affine(f"{layer}.up", h))
    shift, scale = affine("modulation", condition).chunk(2, -1)
    x = (norm(x[:, : SIDE**2], state["norm.weight"]) + state["norm_bias"]) * (1 + scale) + shift
    expected = (x @ state["token_embedding.weight"].T + state["logit_bias"])[..., :CODES]
    torch.testing.assert_close(model(ids, labels), expected)
    torch.testing.assert_close(model(ids), model(ids, torch.full((3,), 3)))  # no class
    with pytest.raises(ValueError, match=r"`input_ids` must be \(batch, 16\), got \(3, 4\)"):
        model(ids[:, :4])


def test_text_models_have_their_parts():
    pipe = tiny_image_pipeline(takes_text=True)
    embedded = embed_texts(pipe.tokenizer, pipe.text_encoder, ["a b", "c"], pipe.image_size, pipe.device)
    ids = text_tokenizer()(["a b", "c"], padding="max_length", return_tensors="pt").input_ids
    output = tiny_text_encoder()(ids, output_hidden_states=True)
    torch.testing.assert_close(embedded["pooled_text_emb"], output.text_embeds)
    torch.testing.assert_close(embedded["encoder_hidden_states"], output.hidden_states[-2])
    assert embedded["micro_conds"].tolist() == [[8.0, 8.0, 0.0, 0.0, 6.0]] * 2
