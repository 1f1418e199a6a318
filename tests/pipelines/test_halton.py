"""The published files of Halton-MaskGIT, made here with their names and shapes, tiny and random.

`benchmarks/halton.py` compares with the public implementation itself.
"""

import pickle

import pytest
import torch
from torch.nn import functional

from redge_guidance.pipelines import MaskedDiffusionScheduler, MaskedImagePipeline
from redge_guidance.pipelines.image import halton
from redge_guidance.pipelines.image.halton import convert_transformer, convert_vq_model

WIDTH, INNER, CODES, CLASSES, SIDE = 12, 20, 9, 4, 2


def filled(shapes):
    generator = torch.Generator().manual_seed(0)
    scale = {1: 0.3, 2: 0.3, 4: 0.1}
    return {name: scale[len(shape)] * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def transformer_state(layers=2, registers=1):
    shapes = {
        "cls_emb.weight": (CLASSES + 1, WIDTH),
        "tok_emb.weight": (CODES + 1, WIDTH),
        "pos_emb.weight": (SIDE**2, WIDTH),
        "last_norm.norm_final.weight": (WIDTH,),
        "last_norm.norm_final.bias": (WIDTH,),
        "last_norm.mlp.1.weight": (2 * WIDTH, WIDTH),
        "last_norm.mlp.1.bias": (2 * WIDTH,),
        "head.bias": (CODES + 1,),
    }
    if registers:
        shapes["reg_tokens.weight"] = (registers, WIDTH)
    for i in range(layers):
        layer = {"mlp.1.weight": (6 * WIDTH, WIDTH), "mlp.1.bias": (6 * WIDTH,)}
        layer |= {"ln1.weight": (WIDTH,), "ln2.weight": (WIDTH,)}
        layer |= {f"attn.{name}.weight": (WIDTH, WIDTH) for name in ("wq", "wk", "wv", "wo")}
        layer |= {"ff.w1.weight": (INNER, WIDTH), "ff.w3.weight": (INNER, WIDTH), "ff.w2.weight": (WIDTH, INNER)}
        shapes |= {f"transformer.layers.{i}.{name}": shape for name, shape in layer.items()}
    state = filled(shapes)
    return state | {"head.weight": state["tok_emb.weight"]}


def published_transformer(state, ids, labels, heads):
    """The published model's logits, from its own names."""

    def norm(x, name=None):
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)
        return x if name is None else x * state[f"{name}.weight"] + state.get(f"{name}.bias", 0.0)

    def linear(name, x):
        return functional.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    condition = state["cls_emb.weight"][labels]
    x = state["tok_emb.weight"][ids] + state["pos_emb.weight"]
    if "reg_tokens.weight" in state:
        x = torch.cat([x, state["reg_tokens.weight"].expand(len(x), -1, -1)], 1)
    for i in range(2):
        layer = f"transformer.layers.{i}"
        gamma_1, beta_1, alpha_1, gamma_2, beta_2, alpha_2 = linear(f"{layer}.mlp.1", functional.silu(condition)).chunk(
            6, 1
        )
        h = norm(x, f"{layer}.ln1") * (1 + beta_1[:, None]) + gamma_1[:, None]
        query, key = norm(linear(f"{layer}.attn.wq", h)), norm(linear(f"{layer}.attn.wk", h))
        split = [t.view(len(x), -1, heads, WIDTH // heads).transpose(1, 2) for t in (query, key)]
        value = linear(f"{layer}.attn.wv", h).view(len(x), -1, heads, WIDTH // heads).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(*split, value).transpose(1, 2).reshape(x.shape)
        x = x + alpha_1[:, None] * linear(f"{layer}.attn.wo", mixed)
        h = norm(x, f"{layer}.ln2") * (1 + beta_2[:, None]) + gamma_2[:, None]
        h = functional.silu(linear(f"{layer}.ff.w1", h)) * linear(f"{layer}.ff.w3", h)
        x = x + alpha_2[:, None] * linear(f"{layer}.ff.w2", h)
    shift, scale = linear("last_norm.mlp.1", functional.silu(condition)).chunk(2, 1)
    x = norm(x[:, : SIDE**2], "last_norm.norm_final") * (1 + scale[:, None]) + shift[:, None]
    return linear("head", x)


def saved(content, path):
    torch.save(content, path)
    return path


@pytest.mark.parametrize("registers", [0, 1])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod."])
def test_the_transformer_has_the_function_of_the_published_one(prefix, registers, tmp_path):
    state = transformer_state(registers=registers)
    file = saved({"model_state_dict": {prefix + k: v for k, v in state.items()}, "iter": 7}, tmp_path / "t.pth")
    model = convert_transformer(file, num_attention_heads=3)
    ids = torch.randint(CODES + 1, (3, SIDE**2), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 3, CLASSES])
    expected = published_transformer(state, ids, labels, heads=3)[..., :CODES]
    torch.testing.assert_close(model(ids, labels), expected)
    assert expected.std() > 0.3
    assert model.config.num_registers == registers


# ---- the VQ model ----

LATENT, DIM = 32, 4


def vq_state():
    shapes = {"quantize.embedding.weight": (CODES, DIM), "quantize.codebook_used": (1,)}

    def convolution(name, out, into, size=3):
        shapes.update({f"{name}.weight": (out, into, size, size), f"{name}.bias": (out,)})

    def resnet(name, into, out):
        shapes.update({f"{name}.norm1.{k}": (into,) for k in ("weight", "bias")})
        shapes.update({f"{name}.norm2.{k}": (out,) for k in ("weight", "bias")})
        convolution(f"{name}.conv1", out, into)
        convolution(f"{name}.conv2", out, out)
        if into != out:
            convolution(f"{name}.nin_shortcut", out, into, 1)

    def attention(name, width):
        shapes.update({f"{name}.norm.{k}": (width,) for k in ("weight", "bias")})
        for part in ("q", "k", "v", "proj_out"):
            convolution(f"{name}.{part}", width, width, 1)

    def middle(name, width):
        resnet(f"{name}.mid.0", width, width)
        attention(f"{name}.mid.1", width)
        resnet(f"{name}.mid.2", width, width)
        shapes.update({f"{name}.norm_out.{k}": (width if name == "encoder" else 32,) for k in ("weight", "bias")})

    convolution("encoder.conv_in", 32, 3)
    for i in range(2):
        resnet(f"encoder.conv_blocks.0.res.{i}", 32, 32)
        resnet(f"encoder.conv_blocks.1.res.{i}", 32 if i == 0 else 64, 64)
        attention(f"encoder.conv_blocks.1.attn.{i}", 64)
    convolution("encoder.conv_blocks.0.downsample.conv", 32, 32)
    middle("encoder", 64)
    convolution("encoder.conv_out", LATENT, 64)
    convolution("decoder.conv_in", 64, LATENT)
    middle("decoder", 64)
    for i in range(3):
        resnet(f"decoder.conv_blocks.0.res.{i}", 64, 64)
        attention(f"decoder.conv_blocks.0.attn.{i}", 64)
        resnet(f"decoder.conv_blocks.1.res.{i}", 64 if i == 0 else 32, 32)
    convolution("decoder.conv_blocks.0.upsample.conv", 64, 64)
    convolution("decoder.conv_out", 3, 32)
    convolution("quant_conv", DIM, LATENT, 1)
    convolution("post_quant_conv", LATENT, DIM, 1)
    return filled(shapes)


class PublishedVQ:
    """The published VQ model's function, from its own names."""

    def __init__(self, state):
        self.state = state

    def conv(self, name, x, **settings):
        weight = self.state[f"{name}.weight"]
        settings.setdefault("padding", weight.shape[-1] // 2)
        return functional.conv2d(x, weight, self.state[f"{name}.bias"], **settings)

    def norm(self, name, x):
        return functional.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps=1e-6)

    def resnet(self, name, x):
        h = self.conv(f"{name}.conv1", functional.silu(self.norm(f"{name}.norm1", x)))
        h = self.conv(f"{name}.conv2", functional.silu(self.norm(f"{name}.norm2", h)))
        return h + (self.conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.state else x)

    def attention(self, name, x):
        h = self.norm(f"{name}.norm", x)
        query, key, value = (self.conv(f"{name}.{part}", h).flatten(2) for part in "qkv")
        weights = (query.transpose(1, 2) @ key / x.shape[1] ** 0.5).softmax(-1)
        return x + self.conv(f"{name}.proj_out", (value @ weights.transpose(1, 2)).view(x.shape))

    def middle(self, part, x):
        return self.resnet(f"{part}.mid.2", self.attention(f"{part}.mid.1", self.resnet(f"{part}.mid.0", x)))

    def out(self, part, x):
        return self.conv(f"{part}.conv_out", functional.silu(self.norm(f"{part}.norm_out", x)))

    def codebook(self):
        return functional.normalize(self.state["quantize.embedding.weight"], dim=-1)

    def encode(self, pixels):
        x = self.conv("encoder.conv_in", pixels)
        for i in range(2):
            x = self.resnet(f"encoder.conv_blocks.0.res.{i}", x)
        x = self.conv("encoder.conv_blocks.0.downsample.conv", functional.pad(x, (0, 1, 0, 1)), stride=2, padding=0)
        for i in range(2):
            x = self.attention(f"encoder.conv_blocks.1.attn.{i}", self.resnet(f"encoder.conv_blocks.1.res.{i}", x))
        x = self.conv("quant_conv", self.out("encoder", self.middle("encoder", x)))
        unit = functional.normalize(x, dim=1).flatten(2).transpose(1, 2)
        return (unit @ self.codebook().T).argmax(-1)  # the nearest of unit vectors

    def decode(self, tokens, side):
        x = self.codebook()[tokens].transpose(1, 2).unflatten(2, (side, side))
        x = self.middle("decoder", self.conv("decoder.conv_in", self.conv("post_quant_conv", x)))
        for i in range(3):
            x = self.attention(f"decoder.conv_blocks.0.attn.{i}", self.resnet(f"decoder.conv_blocks.0.res.{i}", x))
        x = self.conv("decoder.conv_blocks.0.upsample.conv", functional.interpolate(x, scale_factor=2.0))
        for i in range(3):
            x = self.resnet(f"decoder.conv_blocks.1.res.{i}", x)
        return self.out("decoder", x)


def test_the_vq_model_has_the_function_of_the_published_one(tmp_path):
    state = vq_state()
    vqvae = convert_vq_model(saved({"model": state}, tmp_path / "vq.pt"))
    published = PublishedVQ(state)
    transformer = convert_transformer(saved({"model_state_dict": transformer_state()}, tmp_path / "t.pth"), 3)
    pipe = MaskedImagePipeline(transformer, vqvae, MaskedDiffusionScheduler())
    assert pipe.image_size == 4
    tokens = torch.randint(CODES, (5, SIDE**2), generator=torch.Generator().manual_seed(0))
    expected = (published.decode(tokens, SIDE) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(pipe.decode(tokens), expected)
    assert expected.std() > 0.02
    pixels = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pipe.encode(pixels), published.encode(2 * pixels - 1))
    assert len(pipe.encode(pixels).unique()) > 1


def test_the_pipeline_samples_and_is_saved(tmp_path, monkeypatch):
    monkeypatch.setitem(halton._HEADS, WIDTH, 3)
    transformer = saved({"model_state_dict": transformer_state()}, tmp_path / "transformer.pth")
    vqvae = saved({"model": vq_state()}, tmp_path / "vq.pt")
    authors = MaskedImagePipeline.from_halton(transformer, vqvae)
    assert [authors.config[k] for k in ("num_inference_steps", "guidance_scale", "temperature")] == [32, 4.0, 1.0]
    pipe = MaskedImagePipeline.from_halton(transformer, vqvae, num_inference_steps=4)
    pipe.set_progress_bar_config(disable=True)
    settings = pipe.scheduler.config
    assert (settings.unmasking_order, settings.schedule, settings.counting) == ("halton", "arccos", "floor")
    pipe.save_pretrained(tmp_path / "pipeline")
    loaded = MaskedImagePipeline.from_pretrained(tmp_path / "pipeline")
    loaded.set_progress_bar_config(disable=True)
    images = [p([1, 3], generator=torch.Generator().manual_seed(0), output_type="pt").images for p in (pipe, loaded)]
    assert torch.equal(*images)


# ---- files that are something else ----


class Command:
    def __reduce__(self):
        return print, ("run by a pickle",)


def test_a_pickle_of_code_is_refused_and_not_run(tmp_path, capsys):
    file = tmp_path / "code.pth"
    file.write_bytes(pickle.dumps({"model_state_dict": Command()}, protocol=2))
    with pytest.raises(ValueError, match=r"`transformer` .*code.pth cannot be read as weights alone and is refused"):
        convert_transformer(file)
    saved({"model": Command()}, file)
    with pytest.raises(ValueError, match=r"`vqvae` .*code.pth cannot be read as weights alone and is refused"):
        convert_vq_model(file)
    assert "run by a pickle" not in capsys.readouterr().out


def without(state, *names):
    return {name: value for name, value in state.items() if name not in names}


@pytest.mark.parametrize(
    ("convert", "content", "message"),
    [
        (convert_transformer, lambda: {"model_state_dict": [1]}, "holds no `model_state_dict`"),
        (convert_transformer, lambda: {"model_state_dict": {"in_proj.weight": torch.ones(1)}}, "unexpected `in_proj"),
        (convert_transformer, lambda: without(transformer_state(), "head.bias"), "no `logit_bias`"),
        (
            convert_transformer,
            lambda: {k: v for k, v in transformer_state().items() if "layers" not in k},
            "no `layers",
        ),
        (convert_transformer, transformer_state, "`num_attention_heads` must be given for a transformer of width 12"),
        (convert_vq_model, transformer_state, "is no VQ model of LlamaGen: no `quantize.embedding.weight`"),
        (convert_vq_model, lambda: without(vq_state(), "decoder.norm_out.bias"), "holds other weights than expected"),
    ],
)
def test_other_files(convert, content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        convert(saved(content(), tmp_path / "file.pth"))


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="`vqvae` must be a file, got .*vq.pt; download it first"):
        convert_vq_model(tmp_path / "vq.pt")
