"""Calling conventions, on tiny models that keep them."""

import json
import shutil
import types

import pytest
import torch
from transformers import BertConfig, ModernBertConfig

from redge_guidance import GuidanceConfig, guide
from redge_guidance.pipelines import MaskedDiffusionScheduler, MaskedTextPipeline
from redge_guidance.pipelines.text.calling import BlockReader, clean_logits
from redge_guidance.pipelines.text.families import FAMILIES, ModelFamily, family_of, set_mask_token
from redge_guidance.pipelines.text.prompts import scored_rows
from redge_guidance.text import fixed_before
from tests.helpers import modeling_tiny
from tests.helpers.tiny import CHAT_TEMPLATE, WORDS, tiny_pipeline, word_tokenizer

MASK, EOS = 2, 1


def tiny_model():
    torch.manual_seed(0)
    return modeling_tiny.TinyModel(modeling_tiny.TinyConfig()).eval()


@pytest.fixture
def dream_folder(tmp_path):
    """A checkpoint with code of its own, as Dream's."""
    shutil.copy(modeling_tiny.__file__, tmp_path)
    model = tiny_model()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "Dream", "mask_token_id": MASK}
    config["auto_map"] = {"AutoConfig": "modeling_tiny.TinyConfig", "AutoModel": "modeling_tiny.TinyModel"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer = word_tokenizer()
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_code_of_a_checkpoint_runs_only_when_trusted(dream_folder):
    with pytest.raises(ValueError, match="trust_remote_code"):
        MaskedTextPipeline.from_pretrained(dream_folder)
    pipe = MaskedTextPipeline.from_pretrained(dream_folder, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    assert (pipe.config.shift_logits, pipe.config.attention, pipe.config.time_input) == (True, "4d", None)
    assert pipe.tokenizer.mask_token_id == MASK
    output = pipe(["a b", "c"], gen_length=3, generator=torch.Generator().manual_seed(0))
    assert output.sequences[:, 1:2].tolist() == [[4], [5]]
    assert not (output.sequences == MASK).any()


def say(folder, **fields):
    """Change what the config of a checkpoint says."""
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_a_family_by_hand(dream_folder):
    with pytest.raises(ValueError, match="`family` must fit the model, which is of type 'dream'.* got 'masked-lm'"):
        MaskedTextPipeline.from_pretrained(dream_folder, family="masked-lm", trust_remote_code=True)
    with pytest.raises(ValueError, match="`family` must be one of masked-lm, llada, .*, got 'bard'"):
        MaskedTextPipeline.from_pretrained(dream_folder, family="bard", trust_remote_code=True)
    say(dream_folder, model_type="unheard-of")
    pipe = MaskedTextPipeline.from_pretrained(dream_folder, family="dream", trust_remote_code=True)
    assert (pipe.config.shift_logits, pipe.config.attention) == (True, "4d")


def config_of(kind, **more):
    return types.SimpleNamespace(model_type=kind, **more)


def test_families_are_told_by_the_config():
    assert family_of(BertConfig()) == family_of(ModernBertConfig()) == ModelFamily()
    llada = family_of(config_of("llada", mask_token_id=7))
    assert (llada.attention, llada.mask_token_id, llada.told) == ("none", 7, True)
    assert family_of(config_of("Dream")) == FAMILIES["dream"]
    assert not FAMILIES["dream"].told
    assert family_of(config_of("lladamoe")) == family_of(config_of("llada_moe")) == FAMILIES["llada-moe"]
    with pytest.raises(ValueError, match="`attention` must be one of 2d, 4d, none, block, block_bias, got '3d'"):
        ModelFamily(attention="3d")


def test_an_unknown_family_is_told_what_is_known():
    with pytest.raises(ValueError, match=r"a model of type 'a2d-qwen3' is not known; read natively are masked-lm"):
        family_of(config_of("a2d-qwen3"))


def test_where_the_authors_of_mdlm_put_the_mask():
    assert family_of(config_of("mdlm", vocab_size=50_258)).mask_token_id == 50_257
    assert family_of(config_of("mdlm", vocab_size=30_523)).mask_token_id == 30_522
    assert family_of(config_of("bd3lm", vocab_size=91, block_size=4)).mask_token_id == 90
    assert family_of(config_of("udlm", vocab_size=91)).mask_token_id is None


def test_the_size_of_a_block_is_the_config_s():
    assert family_of(config_of("sdar", block_size=4)).block_size == 4
    assert family_of(config_of("Fast_dLLM_Qwen", bd_size=16)).block_size == 16
    assert family_of(config_of("llada2_moe")).block_size == 32
    with pytest.raises(ValueError, match="a model with blocks of attention must say its `block_size`; got None"):
        family_of(config_of("sdar"))


def told(mask_token_id):
    return ModelFamily(mask_token_id=mask_token_id, told=True)


def test_a_mask_token_beyond_the_vocabulary_is_added():
    tokenizer = word_tokenizer(["[PAD]", "[EOS]", "a"])
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="must have a `mask_token_id`, got None, and the model's config says 9"):
        set_mask_token(tokenizer, told(9))
    with pytest.raises(ValueError, match="config says None"):
        set_mask_token(tokenizer, ModelFamily())
    set_mask_token(tokenizer, told(len(tokenizer)))
    assert tokenizer.mask_token_id == 4


def test_an_ordinary_word_is_no_mask():
    tokenizer = word_tokenizer(["[PAD]", "[EOS]", "a", "b"])
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="config says None; pass `mask_token_id`"):
        set_mask_token(tokenizer, ModelFamily(mask_token_id=3))  # what its family uses is the word "b" here
    tokenizer.add_tokens(["<|mask|>"], special_tokens=True)
    with pytest.raises(ValueError, match=r"pass `mask_token_id`, which may be 4 .*, 5 \('<\|mask\|>'\)\.$"):
        set_mask_token(tokenizer, ModelFamily(mask_token_id=3))
    set_mask_token(tokenizer, ModelFamily(mask_token_id=5))
    assert tokenizer.mask_token == "<|mask|>"


def test_config_and_tokenizer_that_disagree_about_the_mask():
    tokenizer = word_tokenizer()
    with pytest.raises(ValueError, match=r"the mask token is 2 \('\[MASK\]'\), and the model 5"):
        set_mask_token(tokenizer, told(5))
    set_mask_token(tokenizer, ModelFamily(mask_token_id=5))  # what the authors use elsewhere does not count
    assert tokenizer.mask_token_id == 2
    set_mask_token(tokenizer, told(2), mask_token_id=5)
    assert tokenizer.mask_token_id == 5


IDS = torch.tensor([[0, 0, 3, MASK, MASK], [4, 5, MASK, MASK, MASK], [0, MASK, MASK, 6, MASK]])


@pytest.mark.parametrize("shift_logits", [False, True])
@pytest.mark.parametrize("attention", ["2d", "4d", "none"])
@torch.no_grad()
def test_padding_does_not_change_what_a_row_gets(attention, shift_logits):
    model = tiny_pipeline().model if attention == "2d" else tiny_model()
    family = ModelFamily(shift_logits, attention)
    together = clean_logits(model, family, IDS, IDS != 0, torch.ones(3))
    assert together.isfinite().all()
    for row, padding in enumerate([2, 0, 1]):
        ids = IDS[row : row + 1, padding:]
        alone = clean_logits(model, family, ids, ids != 0, torch.ones(1))
        torch.testing.assert_close(together[row, padding:], alone[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_shifted_logits_are_those_of_the_position_before():
    model, ids = tiny_model(), IDS[1:2]
    ones = torch.ones_like(ids, dtype=torch.bool)
    plain = clean_logits(model, ModelFamily(attention="4d"), ids, ones, torch.ones(1))
    shifted = clean_logits(model, ModelFamily(True, "4d"), ids, ones, torch.ones(1))
    assert torch.equal(shifted[:, 1:], plain[:, :-1])
    assert torch.equal(shifted[:, 0], plain[:, 0])


@pytest.mark.parametrize("conditioned", [True, False])
def test_time_is_minus_the_logarithm_of_alpha(conditioned):
    seen = []

    class Timed(torch.nn.Module):
        config = types.SimpleNamespace(time_conditioning=conditioned)
        device, dtype = torch.device("cpu"), torch.float32

        def forward(self, input_ids, timesteps):
            seen.append(timesteps)
            return torch.zeros(*input_ids.shape, len(WORDS))

    pipe = MaskedTextPipeline(
        Timed(),
        word_tokenizer(),
        MaskedDiffusionScheduler(),
        length=4,
        attention="none",
        time_input="timesteps",
    )
    pipe.set_progress_bar_config(disable=True)
    pipe(["a", "b"], num_inference_steps=2)
    expected = [[-torch.tensor(a).log().item() * conditioned] * 2 for a in (1e-3, 0.5)]  # nothing visible, half of it
    torch.testing.assert_close(torch.stack(seen), torch.tensor(expected))
    seen.clear()
    pipe.nll(["a b"], num_corruptions=4)
    alphas = torch.cat(seen).neg().exp()
    assert alphas.sort().values.tolist() == pytest.approx([1e-3, 0.25, 0.5, 0.75] if conditioned else [1.0] * 4)


class BlockModel(torch.nn.Module):
    """Keeps what it was called with; stores something in the cache that it is given."""

    device, dtype, config = torch.device("cpu"), torch.float32, types.SimpleNamespace()

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(
        self,
        input_ids,
        attention_mask,
        position_ids,
        timesteps,
        block_size,
        sample_mode,
        past_key_values=None,
        use_cache=False,
        update_past_key_values=None,
    ):
        past = None if past_key_values is None else past_key_values.get_seq_length()
        self.seen.append((timesteps.neg().exp().tolist(), block_size, sample_mode, past, update_past_key_values))
        assert attention_mask.shape[-1] == input_ids.shape[1] + (past or 0)
        if past_key_values is not None:
            past_key_values.update(*torch.zeros(2, len(input_ids), 1, input_ids.shape[1], 1), 0)
        return torch.zeros(*input_ids.shape, len(WORDS))


BLOCKS = {"attention": "block", "time_input": "timesteps", "block_size": 2}


def test_what_a_model_of_blocks_is_told():
    """BD3-LM's time and `sample_mode`, Fast-dLLM's `block_size` and `update_past_key_values`; each row has its time."""
    model = BlockModel()
    ids = torch.tensor([[3, 4, MASK, MASK], [0, 0, 5, MASK]])
    block = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1]]).bool()
    BlockReader(model, ModelFamily(**BLOCKS))(ids, ids != 0, torch.tensor([0.25, 0.5]), block)
    first, last, alone = model.seen
    assert first == (pytest.approx([0.25]), 2, True, 0, True)  # what is finished is stored
    assert last == (pytest.approx([0.25]), 2, True, 2, False)
    assert alone == (pytest.approx([0.5]), 2, True, None, None)


def test_the_bound_in_blocks_says_the_time():
    model = BlockModel()
    pipe = MaskedTextPipeline(model, word_tokenizer(), MaskedDiffusionScheduler(), length=4, **BLOCKS)
    pipe.nll("a b", num_corruptions=4)
    alphas = sorted(alpha for call in model.seen for alpha in call[0])
    assert alphas == pytest.approx([1e-3] * 4 + [0.5] * 4)  # of each of two blocks one or both tokens are hidden


# ---- blocks and chats ----


def test_blocks_are_drawn_from_left_to_right(pipe):
    hidden = []

    def callback(pipe, i, t, tensors):
        hidden.append((tensors["sample"] == MASK).int().tolist())

    output = pipe(
        ["a", "c [MASK] d [MASK] [MASK] e"],
        gen_length=5,
        block_length=2,
        callback_on_step_end=callback,
        generator=torch.Generator().manual_seed(0),
    )
    assert not (output.sequences == MASK).any()
    assert len(hidden) == 5
    counts = [[sum(row) for row in step] for step in hidden]
    assert counts == [[4, 2], [3, 1], [2, 0], [1, 0], [0, 0]]
    assert hidden[1][0] == [0, 0, 0, 0, 1, 1, 1]  # padding, "a", the first two; three are left
    assert hidden[1][1] == [0, 0, 0, 0, 1, 0, 0]
    with pytest.raises(ValueError, match="`num_inference_steps` must be >= 3, the number of blocks, got 2"):
        pipe("a", gen_length=5, block_length=2, num_inference_steps=2)


@pytest.mark.parametrize("order", ["ancestral", "confidence", "remasking"])
def test_guidance_stays_in_its_block(order, reward):
    pipe = tiny_pipeline(unmasking_order=order)
    settings = {"gen_length": 6, "block_length": 3, "num_inference_steps": 4}

    def run(seed=0):
        return pipe(["a", "b c"], generator=torch.Generator().manual_seed(seed), **settings).sequences

    bare, seen = run(), []
    with guide(pipe, reward, GuidanceConfig(scale=0.0)):
        assert torch.equal(run(), bare)

    def watched(tokens):
        seen.append(tokens)
        return reward(tokens)

    with guide(pipe, watched, GuidanceConfig(scale=5.0)) as handle:
        run()
    assert sorted({step.progress for step in handle.trace}) == [0.0, 0.25, 0.5, 0.75]
    first, last = seen[0], seen[-1]
    assert not first.free[:, 5:].any()
    assert not first.attention_mask[:, 5:].any()  # what is not drawn yet is no text
    assert not last.free[:, :5].any()


def test_chats_are_templated_and_the_end_of_a_turn_ends_nothing(pipe, reward):
    with pytest.raises(ValueError, match="`use_chat_template` needs a chat template"):
        pipe("a", use_chat_template=True)
    pipe.tokenizer.chat_template = CHAT_TEMPLATE
    seen = []
    with guide(pipe, lambda tokens: (seen.append(tokens), reward(tokens))[1]):
        output = pipe("b c", gen_length=3, use_chat_template=True, generator=torch.Generator().manual_seed(0))
    assert output.sequences[0, :4].tolist() == [4, 5, EOS, 3]  # "b c [EOS] a"
    assert seen[0].attention_mask[0, :4].all()
    assert output.texts[0].startswith("b c a")
    with pytest.raises(ValueError, match=r"`prompt` must not contain reserved tokens, got '\[MASK\]'"):
        pipe("b [MASK]", use_chat_template=True)


def test_a_prompt_is_what_comes_before_something_generated():
    generated = torch.tensor([[0, 0, 1, 0, 1, 0], [1, 0, 0, 0, 0, 0]]).bool()
    assert fixed_before(generated).int().tolist() == [[1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]]


def test_a_model_of_shifted_logits_is_scored_from_its_first_token_on():
    """As in a call: a prompt too begins with the beginning-of-text token that the tokenizer does not add."""
    tokenizer = word_tokenizer()
    tokenizer.bos_token = "c"
    assert scored_rows(tokenizer, ["b"], "a", shifted=True, length=4) == [([5, 3, 4], 1, 2)]
    assert scored_rows(tokenizer, ["b"], "a", shifted=False, length=4) == [([3, 4], 0, 1)]
