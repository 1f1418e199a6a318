import logging

import pytest
import torch
from transformers import (
    CLIPImageProcessor,
    ConvNextImageProcessor,
    EfficientNetImageProcessor,
    SiglipImageProcessor,
    ViTImageProcessor,
)

from redge_guidance.rewards.image.pixel_transform import TOLERANCE, PixelTransform

PROCESSORS = {
    "clip": lambda: CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    "clip, crop larger than the image": lambda: CLIPImageProcessor(
        size={"shortest_edge": 20}, crop_size={"height": 33, "width": 36}
    ),
    "siglip": lambda: SiglipImageProcessor(size={"height": 24, "width": 28}),
    "vit": lambda: ViTImageProcessor(size={"height": 30, "width": 30}),
    "vit, lanczos": lambda: ViTImageProcessor(size={"height": 30, "width": 30}, resample=1),
    "convnext": lambda: ConvNextImageProcessor(size={"shortest_edge": 28}, crop_pct=0.875),
    "convnext without crop": lambda: ConvNextImageProcessor(size={"shortest_edge": 384}),
    "no resize": lambda: ViTImageProcessor(do_resize=False),
    "no normalisation": lambda: ViTImageProcessor(do_normalize=False, size={"height": 30, "width": 30}),
    "bytes": lambda: ViTImageProcessor(do_rescale=False, do_normalize=False, size={"height": 30, "width": 30}),
}


def image(height, width):
    """Smooth, with sharp edges far from black and white, in bytes `(3, height, width)`."""
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0]
    smooth[:, : height // 2, : width // 3] = 1.0
    return (255 * (0.3 + 0.4 * smooth)).round().to(torch.uint8)


@pytest.mark.parametrize("size", [(48, 48), (40, 64), (65, 41), (16, 16)])
@pytest.mark.parametrize("make", PROCESSORS.values(), ids=PROCESSORS)
def test_equals_the_processor(make, size):
    processor = make()
    pixels = image(*size)
    expected = processor(pixels.permute(1, 2, 0).numpy(), return_tensors="pt")["pixel_values"].float()
    transform = PixelTransform(processor)
    found = transform(pixels[None].float() / 255)
    assert found.shape == expected.shape
    error = (found - expected) * transform.deviation / transform.unit  # in pixels from 0 to 1
    assert error.abs().max() <= TOLERANCE
    assert (found * transform.deviation).std() > 0.05 * transform.unit


def test_has_the_gradient_of_its_values():
    transform = PixelTransform(PROCESSORS["clip"]())
    torch.manual_seed(0)
    pixels = (0.25 + 0.5 * torch.rand(1, 3, 40, 48)).requires_grad_()
    weights, direction = torch.randn(1, 3, 32, 32), torch.randn(pixels.shape)
    (grad,) = torch.autograd.grad((transform(pixels) * weights).sum(), pixels)
    with torch.no_grad():  # linear away from the bounds
        change = ((transform(pixels + 1e-2 * direction) - transform(pixels)) * weights).sum() / 1e-2
    torch.testing.assert_close((grad * direction).sum(), change, rtol=1e-3, atol=0)


def test_a_processor_that_does_more_is_refused():
    processor = EfficientNetImageProcessor(size={"height": 30, "width": 30}, rescale_offset=True)
    with pytest.raises(ValueError, match="EfficientNetImageProcessor.* does more than resize, crop and normalise"):
        PixelTransform(processor)


def test_a_filter_without_a_gradient_is_refused():
    with pytest.raises(ValueError, match="`processor` must resize by a bilinear, bicubic or Lanczos filter, got"):
        PixelTransform(ViTImageProcessor(resample=0))


def test_another_resolution_is_said_once(caplog):
    transform = PixelTransform(PROCESSORS["vit"]())
    with caplog.at_level(logging.WARNING, logger="redge_guidance"):
        for size in (40, 40, 48):
            transform(torch.rand(1, 3, size, size))
    assert [record.getMessage() for record in caplog.records] == [
        "images of 40 x 40 are resized to 30 x 30 for a reward"
    ]


@pytest.mark.parametrize("pixels", [torch.rand(3, 8, 8), torch.rand(1, 1, 8, 8), torch.zeros(1, 3, 8, 8).long()])
def test_other_shapes_and_integers_are_refused(pixels):
    with pytest.raises(ValueError, match=r"`pixels` must be floating point \(batch, 3, height, width\)"):
        PixelTransform(PROCESSORS["vit"]())(pixels)
