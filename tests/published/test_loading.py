"""Checkpoints as they are published load, and their models are worth what they are without transformers."""

import json
import os
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, GPT2Config, GPT2LMHeadModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from redge_guidance import GuidanceConfig, guide
from redge_guidance.pipelines import MaskedTextPipeline, TextPipeline
from redge_guidance.pipelines.text.calling import BlockReader
from redge_guidance.pipelines.text.loading import read_config
from redge_guidance.remote import load_config, load_model
from tests.helpers import started
from tests.helpers.tiny import word_tokenizer
from tests.published.checkpoints import KINDS, MASK, WORDS, reference, weights, write

IDS = torch.tensor([[3, 5, 7, MASK, MASK, 4, 6, MASK], [8, 9, 3, 10, MASK, MASK, MASK, MASK]])
EVERYWHERE = torch.ones_like(IDS, dtype=torch.bool)


def load(folder, **kwargs):
    pipe = TextPipeline.from_pretrained(folder, trust_remote_code=True, **kwargs)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def block_causal(length, size=4):
    block = torch.arange(length) // size
    return (block[:, None] >= block)[None, None]


def values(kind, ids, alpha, **config):
    """Logits of the model itself, called as its authors do."""
    model = reference(kind, **config)
    inputs = {
        "blocks": {
            "attention_mask": block_causal(ids.shape[1]),
            "position_ids": torch.arange(ids.shape[1]).expand(len(ids), -1),
        },
        "timed": {} if alpha is None else {"timesteps": -alpha.log()},
        "plain": {},
    }[kind]
    with torch.no_grad():
        out = model(input_ids=ids, **inputs)
    return getattr(out, "logits", out)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        *((kind, {}) for kind in KINDS),
        ("blocks", {"tie_word_embeddings": True}),
        ("plain", {"weight_tying": True}),
        ("timed", {"time_conditioning": False}),
        ("blocks", {"rope_scaling": {"type": "default"}}),
    ],
)
def test_logits_are_those_of_the_authors_class(tmp_path, kind, config):
    pipe = load(write(tmp_path, kind, **config))
    assert isinstance(pipe, MaskedTextPipeline)
    assert pipe.tokenizer.mask_token_id == (len(WORDS) - 1 if kind == "timed" else MASK)
    alpha = torch.tensor([0.3, 0.8])
    with torch.no_grad():
        found = pipe._logits(IDS, EVERYWHERE, alpha)
    torch.testing.assert_close(found, values(kind, IDS, alpha, **config), atol=1e-5, rtol=1e-5)
    assert found.std() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_padded_rows_get_what_they_get_alone(tmp_path, kind):
    pipe = load(write(tmp_path, kind))
    ids, text = IDS.clone(), EVERYWHERE.clone()
    ids[1] = torch.tensor([0, 0, 0, *IDS[1, :5].tolist()])
    text[1, :3] = False
    alpha = torch.tensor([0.3, 0.8])
    with torch.no_grad():
        found = pipe._logits(ids, text, alpha)
    torch.testing.assert_close(found[:1], values(kind, IDS[:1], alpha[:1]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1:, 3:], values(kind, IDS[1:, :5], alpha[1:]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_buffers_are_computed_and_keep_their_type(tmp_path, kind):
    config = load_config(str(write(tmp_path, kind)), trust_remote_code=True)
    model = load_model(str(tmp_path), config, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for name, buffer in model.named_buffers():
        expected = dict(reference(kind).named_buffers())[name]
        assert buffer.dtype == torch.float32
        torch.testing.assert_close(buffer, expected)
    state = model.state_dict()
    for name, value in weights(kind).items():
        assert torch.equal(state[name], value.bfloat16())
    assert not model.training


def test_nothing_is_patched_and_nothing_written(tmp_path):
    before = {
        "base": transformers.PreTrainedModel,
        "post_init": transformers.PreTrainedModel.post_init,
        "init": torch.nn.Module.register_parameter,
        "rope": dict(ROPE_INIT_FUNCTIONS),
        "dtype": torch.get_default_dtype(),
        "names": set(dir(transformers.utils)),
    }
    files = None
    for kind in KINDS:
        folder = write(tmp_path / kind, kind)
        files = sorted(folder.rglob("*"))
        load(folder, dtype=torch.bfloat16)
        assert sorted(folder.rglob("*")) == files
    assert transformers.modeling_utils.PreTrainedModel is before["base"]
    assert transformers.PreTrainedModel.post_init is before["post_init"]
    assert torch.nn.Module.register_parameter is before["init"]
    assert dict(ROPE_INIT_FUNCTIONS) == before["rope"]
    assert torch.get_default_dtype() == before["dtype"]
    assert set(dir(transformers.utils)) == before["names"]
    assert not {"flash_attn", "triton.language"} & set(sys.modules)


def test_code_runs_only_when_trusted(tmp_path):
    folder = write(tmp_path, "plain")
    mark = tmp_path / "ran"
    for file in folder.glob("*.py"):
        file.write_text(f"open({str(mark)!r}, 'w').close()\n" + file.read_text())
    with pytest.raises(
        ValueError, match="comes with Python code of its own; read it, and pass `trust_remote_code=True"
    ):
        TextPipeline.from_pretrained(folder)
    assert not mark.exists()
    load(folder)
    assert mark.exists()


@pytest.mark.parametrize("device_map", ["cpu", torch.device("cpu"), "auto", {"": "cpu"}])
def test_device_maps(tmp_path, device_map):
    pipe = load(write(tmp_path, "blocks"), device_map=device_map, attn_implementation="eager")
    assert pipe.model.config._attn_implementation == "eager"
    with torch.no_grad():
        found = pipe._logits(IDS, EVERYWHERE)
    torch.testing.assert_close(found, values("blocks", IDS, None), atol=1e-5, rtol=1e-5)


def test_an_option_that_cannot_be_followed_is_named(tmp_path):
    with pytest.raises(ValueError, match="`quantization_config` cannot be used with a model whose code comes with"):
        load(write(tmp_path, "plain"), quantization_config={})


def test_code_of_another_repository(tmp_path, monkeypatch):
    """`auto_map` may name files of a repository that is not the one of the weights."""
    write(tmp_path / "code", "plain")
    auto_map = {name: f"org/code--{value}" for name, value in KINDS["plain"]["auto_map"].items()}
    folder = write(tmp_path / "weights", "plain", auto_map=auto_map)
    for file in folder.glob("*.py"):
        file.unlink()
    monkeypatch.setattr("redge_guidance.remote.loading.snapshot_download", lambda name, **kwargs: tmp_path / name[4:])
    pipe = load(folder)
    with torch.no_grad():
        torch.testing.assert_close(pipe._logits(IDS, EVERYWHERE), values("plain", IDS, None))


def test_what_is_asked_of_a_hub(tmp_path, monkeypatch):
    """A revision is of the repository of the weights, and not of the one that its code comes from."""
    write(tmp_path / "code", "plain")
    write(tmp_path / "weights", "plain")
    for file in (tmp_path / "weights").glob("*.py"):
        file.unlink()
    config = load_config(str(tmp_path / "code"), trust_remote_code=True)
    config.auto_map = {name: f"org/code--{value}" for name, value in KINDS["plain"]["auto_map"].items()}
    asked = []

    def download(name, allow_patterns, **hub):
        asked.append((name, set(allow_patterns) - {"*.py", "*.json"}, hub))
        return tmp_path / name[4:]

    monkeypatch.setattr("redge_guidance.remote.loading.snapshot_download", download)
    load_model("org/weights", config, torch.float32, weights_only=True, revision="new", token="t")
    assert asked == [
        ("org/weights", set(), {"revision": "new", "token": "t"}),
        ("org/code", set(), {"token": "t"}),
        ("org/weights", {"*.safetensors", "*.bin"}, {"revision": "new", "token": "t"}),
    ]


def test_a_config_of_transformers_own_is_of_the_revision_asked_for(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    monkeypatch.setattr(
        "redge_guidance.remote.loading.AutoConfig.from_pretrained", lambda path, trust_remote_code, **hub: hub
    )
    assert load_config(str(tmp_path), revision="new", token="t") == {"revision": "new", "token": "t"}


def test_code_that_was_changed_runs_anew(tmp_path):
    file = write(tmp_path, "plain") / "modeling_plain.py"
    load(tmp_path)
    file.write_text(file.read_text() + "\nPlainModelLM.is_changed = True\n")
    assert load(tmp_path).model.is_changed


def test_settings_of_drawing_are_of_the_checkpoints_own_class(tmp_path):
    """Dream's `generation_config.json` has fields that transformers' class does not know."""
    file = write(tmp_path, "plain") / "modeling_plain.py"
    own = """
from transformers import GenerationConfig


class PlainGenerationConfig(GenerationConfig):
    def __init__(self, alg="origin", **kwargs):
        super().__init__(**kwargs)
        self.alg = alg.upper()
"""
    file.write_text(file.read_text() + own)
    (tmp_path / "generation_config.json").write_text(json.dumps({"alg": "entropy"}))
    found = load(tmp_path).model.generation_config
    assert (type(found).__name__, found.alg) == ("PlainGenerationConfig", "ENTROPY")


def test_code_of_a_tokenizer_is_trusted_with_that_of_the_model(tmp_path, monkeypatch):
    seen = {}

    def load_words(name, **kwargs):
        seen.update(kwargs)
        return word_tokenizer(WORDS)

    monkeypatch.setattr("redge_guidance.pipelines.text.loading.AutoTokenizer.from_pretrained", load_words)
    load(write(tmp_path, "plain"), revision="new")
    assert (seen["trust_remote_code"], seen["revision"]) == (True, "new")


def test_bd3lm_is_drawn_from_with_sdpa(tmp_path):
    """Its `flex` backend has a mask of training only."""
    folder = write(tmp_path, "timed", model_type="bd3lm", block_size=4, attn_backend="flex", cross_attn=True)
    config, how = read_config(str(folder), None, True, {})
    assert (config.attn_backend, how.block_size) == ("sdpa", 4)


def test_the_mask_token_that_a_caller_names(tmp_path):
    assert load(write(tmp_path, "plain"), mask_token_id=5).tokenizer.mask_token_id == 5


# ---- weights ----


def shard(folder):
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    parts = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, folder / file)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards(tmp_path):
    folder = write(tmp_path, "blocks")
    shard(folder)
    pipe = load(folder)
    with torch.no_grad():
        found = pipe._logits(IDS, EVERYWHERE)
    torch.testing.assert_close(found, values("blocks", IDS, None), atol=1e-5, rtol=1e-5)
    (folder / "model-2-of-2.safetensors").unlink()
    with pytest.raises(OSError, match=r"lacks model-2-of-2.safetensors, which model.safetensors.index.json names"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("model.layers.0.norm.weight"), "it lacks model.layers.0.norm.weight"),
        (lambda state: [state.pop(name) for name in list(state)[1:]], r"it lacks .* and \d+ more"),
        (lambda state: state.update({"model.extra": torch.ones(2)}), "it has model.extra too many"),
        (
            lambda state: state.update({"model.norm.weight": torch.ones(3)}),
            r"it has model.norm.weight \[3\] for \[16\]",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, message):
    folder = write(tmp_path, "blocks")
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"do not fit BlocksForCausalLM, the class that the config names: {message}"):
        load(folder)


def test_frequencies_in_a_file_are_no_surplus(tmp_path):
    folder = write(tmp_path, "blocks")
    state = load_file(folder / "model.safetensors")
    save_file(state | {"model.rotary_emb.inv_freq": torch.ones(4)}, folder / "model.safetensors", {"format": "pt"})
    pipe = load(folder)
    torch.testing.assert_close(pipe.model.model.rotary_emb.inv_freq, reference("blocks").model.rotary_emb.inv_freq)


def test_pickles_are_read_on_request_only(tmp_path):
    folder = write(tmp_path, "plain")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="in pytorch_model.bin, a pickle, .*convert it by") as refused:
        load(folder)
    pipe = load(folder, weights_only=True)
    with torch.no_grad():
        torch.testing.assert_close(pipe._logits(IDS, EVERYWHERE), values("plain", IDS, None))
    command = str(refused.value).split("`")[1]
    environment = os.environ | {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    done = started.run(command, shell=True, cwd=folder, env=environment)  # as the message says
    assert done.returncode == 0, done.stderr
    load(folder)


class Intruder:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (self.mark, "w")


def test_a_pickle_that_would_run_code_does_not(tmp_path):
    folder, mark = write(tmp_path, "plain"), tmp_path / "ran"
    torch.save(load_file(folder / "model.safetensors") | {"x": Intruder(str(mark))}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="pytorch_model.bin holds more than weights, or is cut off, and was not read"):
        load(folder, weights_only=True)
    assert not mark.exists()


def test_a_file_that_is_cut_off(tmp_path):
    file = write(tmp_path, "plain") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read: .*; download it again"):
        load(tmp_path)
    file.unlink()
    with pytest.raises(OSError, match="has no weights: no model.safetensors, nor shards"):
        load(tmp_path)


# ---- what is wrong with a checkpoint ----


def test_the_class_with_the_head_is_taken(tmp_path):
    assert type(load(write(tmp_path / "a", "blocks")).model).__name__ == "BlocksForCausalLM"
    folder = write(tmp_path / "b", "blocks", architectures=None)
    assert type(load(folder).model).__name__ == "BlocksForCausalLM"


def test_a_model_without_its_head_is_no_language_model(tmp_path):
    auto_map = {name: value for name, value in KINDS["blocks"]["auto_map"].items() if name != "AutoModelForCausalLM"}
    folder = write(tmp_path, "blocks", auto_map=auto_map)
    state = load_file(folder / "model.safetensors")
    inner = {name[len("model.") :]: value for name, value in state.items() if name.startswith("model.")}
    save_file(inner, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"BlocksModel must return logits \(batch, length, 12\)"):
        load(folder)


@pytest.mark.parametrize(("value", "message"), [(torch.nan, "are not finite"), (0.0, "the same logits for different")])
def test_a_model_that_says_nothing(tmp_path, value, message):
    folder = write(tmp_path, "plain")
    state = load_file(folder / "model.safetensors")
    save_file(
        state | {"model.ff_out.weight": torch.full_like(state["model.ff_out.weight"], value)},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import not_there_at_all", "imports `not_there_at_all`, which is not installed; pip install not_there_at_all"),
        ("from transformers.utils import never_there", "does not run with the libraries here: .*never_there"),
        ("from .modeling_missing import x", "does not run with the libraries here: the checkpoint has no file for"),
        ("from flash_attn.bert_padding import pad_input", "imports `flash_attn.bert_padding`, which is not installed"),
    ],
)
def test_what_code_wants_and_does_not_get_is_named(tmp_path, line, message):
    file = write(tmp_path, "plain") / "modeling_plain.py"
    file.write_text(file.read_text().replace("import torch\n", f"import torch\n{line}\n", 1))
    with pytest.raises(ValueError, match=message):
        load(tmp_path)
    with pytest.raises(ValueError, match="modeling_plain.py of the checkpoint"):
        load(tmp_path)  # the second time too


def test_a_class_that_is_not_there(tmp_path):
    auto_map = KINDS["plain"]["auto_map"] | {"AutoModel": "modeling_plain.Other"}
    folder = write(tmp_path, "plain", auto_map=auto_map, architectures=["Other"])
    with pytest.raises(ValueError, match="`auto_map` names modeling_plain.Other, and .* has no such class"):
        load(folder)


def test_a_tokenizer_is_asked_for_where_there_is_none(tmp_path):
    folder = write(tmp_path / "model", "timed", tokenizer=False)
    with pytest.raises(ValueError, match="`tokenizer` must be given, since .*model has none; its card says which"):
        load(folder)
    words = word_tokenizer(WORDS)
    words.mask_token = None
    words.save_pretrained(tmp_path / "words")
    for tokenizer in (words, tmp_path / "words", str(tmp_path / "words")):
        pipe = load(folder, tokenizer=tokenizer)
        assert pipe.tokenizer.mask_token_id == len(WORDS) - 1
        assert pipe.config.length == 16  # `model_length`
    with pytest.raises(ValueError, match="`tokenizer` must be a tokenizer or the name of one, got int"):
        load(folder, tokenizer=3)
    with pytest.raises(ValueError, match="the text needs 17 token positions and the model has 16"):
        pipe("a", gen_length=16)


def test_the_tokenizer_that_a_size_of_vocabulary_hints_at(tmp_path):
    folder = write(tmp_path, "timed", tokenizer=False)
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 50_258}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="perhaps 'openai-community/gpt2', whose vocabulary is of that size"):
        load(folder)


def test_a_wrong_family(tmp_path):
    with pytest.raises(ValueError, match="`family` must fit the model, which is of type 'llada'.* got 'dream'"):
        load(write(tmp_path / "a", "plain"), family="dream")
    folder = write(tmp_path / "b", "plain", model_type="other")
    with pytest.raises(ValueError, match=r"PlainModelLM cannot be called as its family is: TypeError: .*timesteps"):
        load(folder, family="mdlm", mask_token_id=MASK)
    with pytest.raises(ValueError, match="is for UniformTextPipeline and cannot be loaded by MaskedTextPipeline"):
        MaskedTextPipeline.from_pretrained(folder, family="uniform-lm", trust_remote_code=True)


# ---- drawing ----


@pytest.mark.parametrize("kind", KINDS)
def test_guided_and_not(tmp_path, kind):
    pipe = load(write(tmp_path, kind))
    goal = torch.zeros(len(WORDS))
    goal[WORDS.index("c")] = 1

    def reward(tokens):
        return tokens.embed(goal[:, None])[..., 0].sum(-1)

    def draw():
        return pipe(["a b", "d"], gen_length=6, temperature=1.0, generator=torch.Generator().manual_seed(0)).sequences

    def reached(sequences):
        return (sequences[:, 2:] == WORDS.index("c")).sum().item()

    bare = draw()
    with guide(pipe, reward, GuidanceConfig(scale=0.0)):
        assert torch.equal(draw(), bare)
    with guide(pipe, reward, GuidanceConfig(scale=5.0)):
        assert reached(draw()) > reached(bare)
    assert torch.equal(draw(), bare)


def test_finished_blocks_come_from_the_cache(tmp_path):
    pipe = load(write(tmp_path, "blocks"))
    calls = []
    pipe.model.register_forward_pre_hook(lambda *args: calls.append(args[2]["input_ids"].shape[1]), with_kwargs=True)

    def draw(use_cache):
        calls.clear()
        return pipe(
            ["a b c d e", "b", "f g h i a b c d"],
            gen_length=8,
            temperature=0.0,
            use_cache=use_cache,
            generator=torch.Generator().manual_seed(0),
        ).sequences

    with_cache = draw(True)
    assert max(calls) <= 8
    without = draw(False)
    assert max(calls) == 16
    assert torch.equal(with_cache, without)


def test_a_cache_is_read_again_when_the_text_was_changed(tmp_path):
    pipe = load(write(tmp_path, "blocks"))
    read, fresh = (BlockReader(pipe.model, pipe._family, cached) for cached in (True, False))
    block = torch.zeros_like(EVERYWHERE)
    block[:, 4:] = True
    with torch.no_grad():
        for ids in (IDS, IDS.roll(1, 1)):
            found = [reader(ids, EVERYWHERE, torch.ones(2), block) for reader in (read, fresh)]
            torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


def test_plain_transformers_does_not_load_them(tmp_path):
    """If this fails, transformers reads such code again, and `redge_guidance.remote` may have nothing left to do."""
    warnings.simplefilter("ignore", FutureWarning)
    for kind in KINDS:
        folder = write(tmp_path / kind, kind)
        auto = AutoModelForMaskedLM if kind == "timed" else AutoModelForCausalLM
        with pytest.raises((AttributeError, ImportError, KeyError, RuntimeError, TypeError)):
            auto.from_pretrained(folder, trust_remote_code=True)


def test_a_model_that_sees_only_what_is_before_is_no_diffusion_model():
    config = GPT2Config(vocab_size=12, n_positions=16, n_embd=8, n_layer=1, n_head=1, bos_token_id=1, eos_token_id=1)
    model = GPT2LMHeadModel(config).eval()
    for family in ("masked-lm", "llada"):  # Dream's square mask would let it see both sides
        with pytest.raises(ValueError, match="GPT2LMHeadModel gives the same logits whatever comes behind"):
            TextPipeline.from_model(model, word_tokenizer(WORDS), family)


def test_types_that_are_no_masked_language_model(tmp_path):
    GPT2Config(vocab_size=12).save_pretrained(tmp_path)
    word_tokenizer(WORDS).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a model of type 'gpt2' is not known; read natively are"):
        load(tmp_path)
    with pytest.raises(ValueError, match="a model of type 'gpt2' is no masked language model of transf"):
        load(tmp_path, family="masked-lm")
    (tmp_path / "config.json").write_text('{"vocab_size": 12}')
    with pytest.raises(ValueError, match="config.json must say the `model_type`, and does not; a model whose class is"):
        load(tmp_path)


def test_a_tokenizer_that_is_another_model_s(tmp_path):
    folder = write(tmp_path, "plain")
    with pytest.raises(ValueError, match="`tokenizer` has 14 tokens, and the model 12; take the model's own"):
        load(folder, tokenizer=word_tokenizer([*WORDS, "x", "y"]))


def test_a_pipeline_around_code_of_a_checkpoint_is_not_saved(tmp_path):
    pipe = load(write(tmp_path, "plain"))
    with pytest.raises(ValueError, match="around PlainModelLM, with code of its checkpoint, cannot be saved"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"suppress_tokens": [99]}, "`suppress_tokens` must be token ids below 12, got 99"),
        ({"suppress_tokens": "a"}, "`suppress_tokens` must be token ids below 12, got 'a'"),
        ({"suppress_tokens": list(range(12))}, "`suppress_tokens` must leave a token, got all 12"),
        ({"late_tokens": [12]}, "`late_tokens` must be token ids below 12, got 12"),
        ({"late_tokens": [-1]}, "`late_tokens` must be token ids below 12, got -1"),
        ({"guidance_scale": float("nan")}, "`guidance_scale` must be finite, got nan"),
        ({"num_inference_steps": 2.5}, "`num_inference_steps` must be a whole number, got 2.5"),
        ({"stride_length": 40}, "`stride_length` must be <= 32, the positions of the model, got 40"),
        ({"stride_length": 4, "block_length": 2}, "`stride_length` must be None beside `block_length`, got 4"),
        ({"prompt": None}, "`prompt` must be a string or a list of strings, or of messages .* got None"),
        ({"prompt": ["a", 3]}, "`prompt` must be a string or a list of strings, or of messages .* got 3"),
    ],
)
def test_bad_calls(tmp_path, call, message):
    pipe = load(write(tmp_path, "plain"))
    with pytest.raises(ValueError, match=message):
        pipe(**{"prompt": "a", "gen_length": 3} | call)


def test_a_mask_of_another_model_in_a_prompt(tmp_path):
    pipe = load(write(tmp_path, "timed"), mask_token_id=5)  # whose [MASK] stays a special token
    with pytest.raises(ValueError, match=r"reserved tokens, got '\[MASK\]' in .*; remove it; its mask is 'c'"):
        pipe.canvas(["a [MASK] b"])


def test_masks_that_are_none(tmp_path):
    folder = write(tmp_path / "a", "plain", mask_token_id=1)
    words = word_tokenizer(WORDS)
    words.mask_token = None
    with pytest.raises(ValueError, match=r"`mask_token_id` must not be the end of the text, got 1 \('\[EOS\]'\)"):
        load(folder, tokenizer=words)
    folder = write(tmp_path / "b", "timed", vocab_size=len(WORDS) + 1)
    pipe = load(folder, tokenizer=word_tokenizer(WORDS), mask_token_id=len(WORDS))  # which has a [MASK] of another id
    assert pipe.tokenizer.mask_token_id == len(WORDS)


def test_a_family_by_name_takes_the_sizes_of_the_config(tmp_path):
    pipe = load(write(tmp_path, "blocks"))
    again = TextPipeline.from_model(pipe.model, pipe.tokenizer, "sdar")
    assert (again.config.block_size, again.tokenizer.mask_token_id) == (4, MASK)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{}", "must map weights to files, and does not"),
        ('{"weight_map": {}}', "must name .safetensors files beside it, got none"),
        ('{"weight_map": {"a": "pytorch_model.bin"}}', "must name .safetensors files beside it, got pytorch_model.bin"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "must name .safetensors files beside it, got ../x.safetensors"),
    ],
)
def test_an_index_names_what_lies_beside_it(tmp_path, index, message):
    folder = write(tmp_path, "plain")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_threads_load_at_once(tmp_path):
    folder = write(tmp_path, "plain")
    config = load_config(str(folder), trust_remote_code=True)
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: load_model(str(folder), config, torch.float32), range(8)))
    for model in models:
        assert not any(parameter.is_meta for parameter in model.parameters())
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"


def test_weights_that_a_class_ignores(tmp_path):
    file = write(tmp_path, "plain") / "modeling_plain.py"
    ignored = '    base_model_prefix = "model"\n    _keys_to_ignore_on_load_unexpected = [r"old\\.\\d+"]\n'
    file.write_text(file.read_text().replace('    base_model_prefix = "model"\n', ignored))
    state = load_file(tmp_path / "model.safetensors")
    save_file(state | {"old.3": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    load(tmp_path)


def test_code_that_does_not_run_is_named(tmp_path):
    file = write(tmp_path, "plain") / "modeling_plain.py"
    text = file.read_text()
    for line, message in (("1 / 0", "ZeroDivisionError"), ("def (", "SyntaxError")):
        file.write_text(f"{line}\n{text}")
        with pytest.raises(ValueError, match=f"modeling_plain.py of the checkpoint cannot be run: {message}"):
            load(tmp_path)
    (tmp_path / "neighbour_of_plain.py").write_text("import torch as own\n")
    file.write_text(f"from neighbour_of_plain import own\n{text}")
    load(tmp_path)


def test_quantised_numbers_are_no_weights(tmp_path):
    folder = write(tmp_path, "plain")
    state = load_file(folder / "model.safetensors")
    state["model.wte.weight"] = state["model.wte.weight"].to(torch.int8)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"it has model.wte.weight as torch.int8, which needs more than its weights"):
        load(folder)


def test_what_a_pipeline_folder_says_itself():
    for argument in ({"family": "llada"}, {"mask_token_id": 3}, {"weights_only": True}):
        with pytest.raises(ValueError, match=f"`{next(iter(argument))}` cannot be used with the pipeline `built"):
            TextPipeline.from_pretrained("builtin:tatoeba-masked", **argument)
    other = TextPipeline.from_pretrained("builtin:tatoeba-masked").tokenizer
    assert TextPipeline.from_pretrained("builtin:tatoeba-masked", tokenizer=other).tokenizer is other


def test_a_config_of_an_unknown_type_asks_nobody(tmp_path, monkeypatch):
    folder = write(tmp_path, "plain", model_type="other", auto_map={"AutoConfig": "configuration_plain.PlainConfig"})
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked on the terminal"))
    with pytest.raises((ValueError, OSError)):
        TextPipeline.from_pretrained(folder)
