"""Set-ups as files: what is written loads again as the same, and what is wrong in a file is named with its line."""

import ast
import copy
import inspect
import math
import pickle

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from redge_guidance import GuidanceConfig, RelaxedTokens, load, save
from redge_guidance.estimators import ESTIMATORS, ReDGE, ReinforceLOO
from redge_guidance.pipelines import MaskedImagePipeline, MaskedTextPipeline, TextPipeline, UniformTextPipeline
from redge_guidance.recipe import recipe_of
from redge_guidance.reward import Reward
from redge_guidance.rewards import (
    AestheticReward,
    AllDifferentReward,
    BlackBoxReward,
    CLIPReward,
    FluencyReward,
    ImageClassifierReward,
    ImagePreferenceReward,
    LengthReward,
    LexicalReward,
    RegexReward,
    SentenceSimilarityReward,
    TextClassifierReward,
    TextPreferenceReward,
)
from redge_guidance.setups import documents
from redge_guidance.setups.options import Options
from redge_guidance.setups.rewards import READY_MADE
from redge_guidance.setups.schema import ESTIMATOR_NAMES, OPTIONS
from redge_guidance.setups.setup import config_of, plain_config
from redge_guidance.updates import UPDATES, Adam
from tests.helpers import image_rewards, reward_models
from tests.helpers.images import tiny_amused, tiny_image_pipeline
from tests.helpers.tiny import tiny_llada2, tiny_pipeline, tiny_uniform, word_tokenizer

TEXTS = ["Tom sold his music.", "I am happy, it was a wonderful day!"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints of every kind of reward and pipeline, by name."""
    root = tmp_path_factory.mktemp("models")
    words = word_tokenizer()
    words.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    models = {"fluency": reward_models.masked_lm(words), "encoder": reward_models.encoder(words)}
    models["preference"] = reward_models.reward_model(words)
    for name, model in models.items():
        for part in (model, words):
            part.save_pretrained(root / name)
    for name, reward in (("clip", image_rewards.clip(target="a")), ("classifier", image_rewards.classifier())):
        for part in (reward.model, reward.processor, getattr(reward, "tokenizer", None)):
            if part is not None:
                part.save_pretrained(root / name)
    save_file({"0.weight": torch.randn(1, 8), "0.bias": torch.zeros(1)}, root / "head.safetensors")
    made = {"masked": tiny_pipeline(), "uniform": tiny_uniform(), "image": tiny_image_pipeline()}
    made |= {"amused": tiny_amused(diffusers.AmusedPipeline), "llada2": tiny_llada2()}
    made["llada2"].register_modules(tokenizer=None)  # diffusers does not load one of its tests' kind
    for name, pipe in made.items():
        pipe.save_pretrained(root / name)
    return root


REWARDS = {
    "AestheticReward": lambda at: AestheticReward.from_pretrained(at / "clip", at / "head.safetensors"),
    "AllDifferentReward": lambda at: AllDifferentReward([[0, 1], [1, 2]], ["a", "b"], answer_only=False),
    "CLIPReward": lambda at: CLIPReward.from_pretrained(at / "clip", ["a b", "c"]),
    "FluencyReward": lambda at: FluencyReward.from_pretrained(at / "fluency", per_token=False, num_passes=2),
    "ImageClassifierReward": lambda at: ImageClassifierReward.from_pretrained(at / "classifier", "dog", temperature=8),
    "ImagePreferenceReward": lambda at: ImagePreferenceReward.from_pretrained(at / "clip", prompt="a"),
    "LengthReward": lambda at: LengthReward(2, 4, unit="characters"),
    "LexicalReward": lambda at: LexicalReward({"music": 2.5}, banned=("no", "2e-3"), case_sensitive=True),
    "RegexReward": lambda at: RegexReward("tom.*", 2, answer_only=True),
    "SentenceSimilarityReward": lambda at: SentenceSimilarityReward.from_pretrained(
        at / "encoder", "a b", pooling="cls"
    ),
    "TextClassifierReward": lambda at: TextClassifierReward.from_pretrained("builtin:sentiment", 2, against="negative"),
    "TextPreferenceReward": lambda at: TextPreferenceReward.from_pretrained(at / "preference", "a", system="b"),
}


def round_trip(folder, pipe, *args, **settings):
    save(folder / "setup.yaml", pipe, *args, **settings)
    return load(folder / "setup.yaml")


@pytest.fixture(scope="module")
def pipe(folders):
    return TextPipeline.from_pretrained(folders / "masked")


def test_every_ready_made_reward_is_tried_here():
    assert set(REWARDS) == set(READY_MADE)


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_a_reward_comes_back_with_equal_scores(name, folders, pipe, tmp_path):
    reward = REWARDS[name](folders)
    found = round_trip(tmp_path, pipe, reward).reward
    samples = image_rewards.images(2) if reward.modality == "image" else TEXTS
    if name in ("FluencyReward", "SentenceSimilarityReward", "TextPreferenceReward"):
        samples = ["a b c", "d a"]
    assert type(found) is type(reward)
    assert torch.equal(found.score(samples), reward.score(samples))
    again = tmp_path / "again.yaml"
    save(again, pipe, found)
    assert again.read_text() == (tmp_path / "setup.yaml").read_text()


def test_a_sum_keeps_weights_and_names(pipe, tmp_path):
    reward = 2.5 * LexicalReward("music") - LengthReward(maximum=3) + 0.1 * LengthReward(1)
    setup = round_trip(tmp_path, pipe, reward)
    assert repr(setup.reward) == repr(reward)
    assert torch.equal(setup.reward.score(TEXTS), reward.score(TEXTS))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("masked", MaskedTextPipeline),
        ("uniform", UniformTextPipeline),
        ("image", MaskedImagePipeline),
        ("amused", diffusers.AmusedPipeline),
        ("llada2", diffusers.LLaDA2Pipeline),
    ],
)
def test_a_pipeline_comes_back_and_draws_the_same(name, kind, folders, tmp_path):
    pipe = kind.from_pretrained(str(folders / name))
    found = round_trip(tmp_path, pipe).pipe
    assert type(found) is kind
    if name == "llada2":
        assert all(torch.equal(a, b) for a, b in zip(pipe.model.parameters(), found.model.parameters(), strict=True))
        return
    settings = {"num_inference_steps": 2} | ({"prompt": "a"} if name != "image" else {})
    settings |= {"output_type": "pt"} if name in ("image", "amused") else {}
    drawn = []
    for one in (pipe, found):
        one.set_progress_bar_config(disable=True)
        output = one(generator=torch.Generator().manual_seed(0), **settings)
        drawn.append(getattr(output, "sequences", getattr(output, "images", None)))
    assert torch.equal(*drawn)


def test_settings_of_a_model_are_kept(folders, tmp_path):
    words = word_tokenizer()
    tiny_pipeline().model.save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "words")
    named = {"tokenizer": str(tmp_path / "words"), "family": "masked-lm", "mask_token_id": words.mask_token_id}
    pipe = TextPipeline.from_pretrained(tmp_path / "model", dtype=torch.bfloat16, **named)
    setup = round_trip(tmp_path, pipe)
    assert {key: setup.resolved[key] for key in named} == named
    assert setup.resolved["dtype"] == "bfloat16"
    assert setup.pipe.model.dtype == torch.bfloat16
    assert recipe_of(setup.pipe) == recipe_of(pipe)


def test_settings_of_call_and_run(pipe, tmp_path):
    config = GuidanceConfig(
        scale=2e-3, estimator=ReDGE(num_steps=8), update=Adam(), kl_budget=0.5, support=None, max_tilt=math.inf
    )
    given = {"num_inference_steps": 3, "temperature": 0.7, "prompt": ["a", "on"], "seed": 5, "samples_per_prompt": 2}
    setup = round_trip(tmp_path, pipe, LengthReward(1), config, **given)
    assert setup.config == config
    assert setup.settings == {"num_inference_steps": 3, "temperature": 0.7}
    assert setup.run == {"prompt": ["a", "on"], "seed": 5, "samples_per_prompt": 2}
    text = (tmp_path / "setup.yaml").read_text()
    assert "num_draws" not in text  # what is at its default is not written
    assert "nan" not in text
    assert "null" in text  # support: a value, not a default


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
@pytest.mark.parametrize("update", sorted(UPDATES))
def test_every_estimator_and_update_by_name(estimator, update):
    config = GuidanceConfig(estimator=estimator, update=update)
    assert config_of(Options(plain_config(config))) == config


def test_estimators_with_settings():
    found = config_of(Options({"estimator": {"redge": {"num_steps": 8}}, "update": {"name": "adam"}}))
    assert (found.estimator, found.update) == (ReDGE(num_steps=8), Adam())
    assert config_of(Options({"estimator": {"reinforce_loo": None}})).estimator == ReinforceLOO()
    with pytest.raises(ValueError, match="`estimator` has settings that ReDGE does not"):
        config_of(Options({"estimator": {"redge": {"steps": 8}}}))


# ---- what cannot be written ----


class Mine(Reward):
    def __call__(self, sample: RelaxedTokens):
        return sample.weights.sum((-1, -2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lambda tokens: 1, "<lambda>, and only ready-made rewards can be written"),
        (lambda: LengthReward(1) + (lambda tokens: 1), "'<lambda>' is <lambda>, and only ready-made"),
        (lambda: Mine(), "'Mine' is a Mine, and only ready-made rewards can be written"),
        (lambda: BlackBoxReward(len), "'len' is a BlackBoxReward, and only ready-made"),
        (lambda: LexicalReward(iter(["a"])), "`wanted` of `reward` 'LexicalReward' is a list_iterator, which no file"),
        (
            lambda: image_rewards.classifier(),
            "'ImageClassifierReward' was made from a model in memory, which no file names; save model",
        ),
        (
            lambda: image_rewards.clip(target=torch.zeros(3, 8, 8)),
            "'CLIPReward' was made from a model in memory",
        ),
    ],
)
def test_what_no_file_holds_is_named(make, message, pipe, tmp_path):
    with pytest.raises(ValueError, match=message):
        save(tmp_path / "setup.yaml", pipe, make())
    assert not (tmp_path / "setup.yaml").exists()


def test_a_target_in_memory(folders, pipe, tmp_path):
    reward = CLIPReward.from_pretrained(folders / "clip", torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="`target` of `reward` 'CLIPReward' is a Tensor, which no file holds"):
        save(tmp_path / "setup.yaml", pipe, reward)


def test_a_pipeline_in_memory(tmp_path):
    with pytest.raises(ValueError, match="`pipe` is a MaskedTextPipeline that no checkpoint was named for; save it by"):
        save(tmp_path / "setup.yaml", tiny_pipeline())


def test_an_unknown_setting(pipe, tmp_path):
    with pytest.raises(ValueError, match=r"no setting `temprature` of a call or a run; did you mean `temperature`\?"):
        save(tmp_path / "setup.yaml", pipe, temprature=1)
    with pytest.raises(ValueError, match="`seed` must be an integer, got 'x'"):
        save(tmp_path / "setup.yaml", pipe, seed="x")


def test_no_token_lands_in_a_file(folders, tmp_path):
    pipe = TextPipeline.from_pretrained(folders / "masked", token="hf_secret")
    reward = FluencyReward.from_pretrained(folders / "fluency", token="hf_secret")
    save(tmp_path / "setup.yaml", pipe, reward)
    assert "hf_secret" not in (tmp_path / "setup.yaml").read_text()
    (tmp_path / "setup.yaml").write_text("reward: {FluencyReward: {name: x, token: hf_secret}}")
    with pytest.raises(ValueError, match="`token` must not stand in a file"):
        load(tmp_path / "setup.yaml")


def test_arguments_are_those_of_when_it_was_made(pipe, tmp_path):
    words = ["music"]
    reward = LexicalReward(words)
    words.append("Tom")
    assert recipe_of(reward).arguments == {"wanted": ["music"]}
    for other in (copy.deepcopy(reward), pickle.loads(pickle.dumps(reward))):
        assert recipe_of(other) == recipe_of(reward)


# ---- what is wrong in a file ----

WRONG = [
    ("scale: 1\ntemprature: 2\n", r"line 2: there is no setting `temprature`; did you mean `temperature`\?"),
    (
        "sampels-per-prompt: 2\n",
        r"line 1: there is no setting `sampels-per-prompt`; did you mean `samples_per_prompt`\?",
    ),
    ("seed: 1\nscale: 2\nseed: 3\n", "line 3: `seed` is there twice; leave one out"),
    ("- scale\n", "must hold settings, `name: value` on every line, got a list"),
    ("hello\n", "must hold settings, `name: value` on every line, got text"),
    ("scale: 1\n  seed: 2\n", "line 2: this is no YAML"),
    ("prompt: [a\n", "line 2: this is no YAML"),
    ("scale: '2e-3'\n", "line 1: `scale` must be a number or null, got '2e-3'"),
    ("scale: x\n", "line 1: `scale` must be a number or null, got 'x'"),
    ("seed: 1.5\n", "line 1: `seed` must be an integer, got 1.5"),
    ("seed: true\n", "line 1: `seed` must be an integer, got True"),
    ("seed:\n", "line 1: `seed` must be an integer, got nothing; leave the line out"),
    ("samples_per_prompt: 0\n", "line 1: `samples_per_prompt` must be an integer >= 1, got 0"),
    ("prompt: [1984]\n", "line 1: `prompt` must be a text or a list of texts, in quotes where they could be numbers"),
    ("dtype: int8\n", "line 1: `dtype` must be one of float32, bfloat16, float16, got 'int8'"),
    ("scale: -1\nseed: 0\n", "line 1: `scale` must be a finite number >= 0, got -1"),
    ("start: 0.5\nstop: 0.2\n", "line 1: `start` and `stop` must satisfy"),
    ("estimator: gumbel\n", "line 1: `estimator` must be one of"),
    ("estimator: {redge: {steps: 2}}\n", "line 1: `estimator` has settings that ReDGE does not"),
    ("estimator: [redge]\n", "line 1: `estimator` must be a name, or a name with settings"),
    ("reward:\n- LenghtReward: {}\n", r"line 2: there is no ready-made reward `LenghtReward`; did you mean `LengthR"),
    (
        "reward:\n- LengthReward: {maxmum: 3}\n",
        r"line 2: `LengthReward` has no argument `maxmum`; did you mean `maximum`",
    ),
    ("reward: [LengthReward: 3]\n", "line 1: `LengthReward` must have its arguments by name"),
    ("reward: [3]\n", "line 1: a reward must be `Name: {argument: value}`, got 3"),
    (
        "reward: [LengthReward: {maximum: 3, weight: much}]\n",
        "line 1: `weight` of `LengthReward` must be a finite number",
    ),
    ("seed: 1\nreward:\n- LengthReward: {maximum: -3}\n", "line 3: LengthReward: `minimum` and `maximum` must satisfy"),
    (
        "reward: [AestheticReward: {name: builtin:sentiment}]\n",
        "line 1: `AestheticReward` needs the argument `head`",
    ),
    ("label: angry\n", "line 1: TextClassifierReward: `label` must be one of negative"),
    (
        "reward: [TextClassifierReward: {name: builtin:nope, label: a}]\n",
        "line 1: TextClassifierReward: `builtin:nope` is",
    ),
    ("model: ''\n", "line 1: `model` must name a checkpoint"),
    ("model: builtin:nope\n", "`builtin:nope` is not an embedded checkpoint"),
    ("device: abacus\n", "line 1: `device` must be a device of this machine"),
    ("device: cpu\ndevice_map: auto\n", "line 2: `device_map` cannot be used with .*line 1: `device`"),
    ("device: cpu\ncpu_offload: model\n", "line 2: `cpu_offload` is for an accelerator"),
    ("cpu_offload: all\n", "line 1: `cpu_offload` must be one of model, sequential, got 'all'"),
    ("compile: warp\n", "line 1: `compile` must be true or one of default, reduce-overhead"),
    ("adapter: ./nope\n", "`./nope` is not a folder"),
    ("min_words: 5\nmax_words: 4\n", "line 1: `min_words` must be <= .*line 2: `max_words`, got 5 and 4"),
    ("negative_prompt: a\n", "line 1: `negative_prompt` cannot be used with builtin:tatoeba-masked, whose pipeline"),
    ("a: &x 1\nb: *x\n", "line 2: this is no YAML: anchors are not read"),
    ("a: !!python/object/apply:os.system [ls]\n", "line 1: plain values are read only, got the tag"),
    ("reward: !!python/name:os.system\n", "line 1: plain values are read only, got the tag"),
    ("reward: [os.system: {command: ls}]\n", "line 1: there is no ready-made reward `os.system`"),
    ("a: \0\n", "must be text in YAML: special characters are not allowed"),
    ("a: " + "9" * 5000, "line 1: a number of 5000 characters is too long"),
    ("[" * 100_000, "is nested too deeply"),
    (
        "trust_remote_code: true\n",
        "line 1: `trust_remote_code` asks to run code that comes with `builtin:tatoeba-masked`",
    ),
    (
        "reward: [TextClassifierReward: {name: builtin:sentiment, label: positive, trust_remote_code: true}]\n",
        "line 1: `trust_remote_code` asks to run code that comes with `builtin:sentiment`; read it, and pass",
    ),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_named_with_its_place(text, message, tmp_path):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError if "folder" not in message else OSError, match=message) as error:
        load(tmp_path / "run.yaml")
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nope.yaml cannot be read: No such file"):
        load(tmp_path / "nope.yaml")
    (tmp_path / "run.yaml").write_bytes(b"prompt: \xff")
    with pytest.raises(ValueError, match="must be text in UTF-8"):
        load(tmp_path / "run.yaml")
    with pytest.raises(OSError, match="cannot be written"):
        save(tmp_path / "no" / "run.yaml", TextPipeline.from_pretrained("builtin:tatoeba-masked"))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(values=st.dictionaries(st.text(max_size=6), PLAIN, max_size=4))
def test_yaml_that_is_written_is_read_as_it_was(values):
    text = documents.write(values)
    assert documents.read(text, "file").values == values


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
def test_other_readers_of_yaml_take_texts_for_texts(text):
    import yaml

    assert yaml.safe_load(documents.write({"a": text})) == {"a": text}


def test_scalars_are_those_of_yaml_12():
    found = documents.read(
        "a: 2e-3\nb: no\nc: 1:30\nd: 010\ne: 1_000\nf: 2020-01-01\ng: ~\nh: .inf\ni: True", "f"
    ).values
    assert found == {"a": 0.002, "b": "no", "c": "1:30", "d": 10, "e": "1_000", "f": "2020-01-01", "g": None} | {
        "h": float("inf"),
        "i": True,
    }


# ---- the table of settings ----


def test_the_table_has_every_setting_that_python_has():
    fields = set(GuidanceConfig.__dataclass_fields__)
    assert {name for name, option in OPTIONS.items() if option.group == "guidance"} == fields
    known = set(OPTIONS)
    calls = {"prompt", "generator", "return_dict", "callback_on_step_end", "callback_on_step_end_tensor_inputs", "self"}
    calls |= {"num_images_per_prompt", "tokens", "image", "mask_image", "output_type"}  # pixels, or the run's own
    for kind in (MaskedTextPipeline, UniformTextPipeline, MaskedImagePipeline):
        assert set(inspect.signature(kind.__call__).parameters) - calls <= known, kind
    assert set(ESTIMATOR_NAMES.replace(",", " ").replace(" or ", " ").split()) == set(ESTIMATORS)
    assert set(OPTIONS["update"].help.replace(";", " ").split()) >= set(UPDATES)


def test_the_table_imports_nothing_heavy():
    from redge_guidance.setups import option, schema

    for table in (option, schema):
        tree = ast.parse(inspect.getsource(table))
        modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert modules <= {"collections.abc", "dataclasses", "difflib", "typing", option.__name__}
