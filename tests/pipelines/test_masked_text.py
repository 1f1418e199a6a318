import itertools
import math

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForMaskedLM

from redge_guidance.pipelines import MaskedDiffusionScheduler, MaskedTextPipeline
from tests.helpers.tiny import tiny_pipeline, word_tokenizer

PAD, EOS, MASK = 0, 1, 2


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("order", ["ancestral", "random", "confidence", "remasking"])
def test_prompts_of_all_kinds_in_one_batch(order):
    pipe = tiny_pipeline(unmasking_order=order)
    output = pipe(["", "a b", "c [MASK] [MASK] d"], generator=seeded())
    assert output.sequences.shape == (3, 6)
    assert output.sequences[1, :2].tolist() == [3, 4]
    filled = output.sequences[2].tolist()
    assert (filled[0], filled[3:]) == (5, [6, EOS, EOS])
    assert not ((output.sequences == MASK) | (output.sequences == PAD)).any()
    assert output.texts[1].startswith("a b")
    assert output.texts[2].startswith("c ")


def test_same_generator_same_texts_and_another_seed_others(pipe):
    first, again, other = (pipe([""] * 8, generator=seeded(i)).texts for i in (0, 0, 1))
    assert first == again
    assert first != other


def test_a_single_string_is_a_batch_of_one(pipe):
    output = pipe("a", generator=seeded())
    assert len(output.texts) == 1
    sequences, texts = pipe("a", generator=seeded(), return_dict=False)
    assert torch.equal(sequences, output.sequences)
    assert texts == output.texts


def test_padding_on_the_left_does_not_change_the_logits(pipe):
    canvas = pipe.canvas(["a b c d", "e"], gen_length=3)
    ids, mask = canvas.ids, canvas.attention_mask
    assert ids[1, :3].tolist() == [PAD] * 3
    with torch.no_grad():
        together = pipe._logits(ids, mask)
        alone = pipe._logits(ids[1:, 3:], mask[1:, 3:])
    torch.testing.assert_close(together[1:, 3:], alone)


def test_absolute_positions_count_from_the_first_token_too():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    pipe = MaskedTextPipeline(BertForMaskedLM(config).eval(), word_tokenizer(), MaskedDiffusionScheduler(), length=6)
    canvas = pipe.canvas(["a b c d", "e"], gen_length=3)
    ids, mask = canvas.ids, canvas.attention_mask
    with torch.no_grad():
        torch.testing.assert_close(pipe._logits(ids, mask)[1:, 3:], pipe._logits(ids[1:, 3:], mask[1:, 3:]))


def test_gen_length_is_the_number_of_new_tokens(pipe):
    assert pipe("a b", gen_length=4, generator=seeded()).sequences.shape == (1, 6)
    assert pipe(["a b", "c"], gen_length=4, generator=seeded()).sequences[:, 2:].ne(MASK).all()
    assert pipe("a b c d e a b", generator=seeded()).sequences.shape == (1, 10)  # half a canvas beyond the canvas


def test_texts_end_where_the_text_ends(pipe):
    for row, text in zip(*pipe([""] * 20, generator=seeded(), return_dict=False), strict=True):
        ids = row.tolist()
        end = ids.index(EOS) if EOS in ids else len(ids)
        assert text == pipe.tokenizer.decode(ids[:end])


def test_greedy_confidence_order_equals_the_loop_written_out(pipe):
    pipe.scheduler = MaskedDiffusionScheduler(unmasking_order="confidence")
    ours = pipe("a", temperature=0.0).sequences[0]
    ids = torch.tensor([3] + [MASK] * 5)
    for _ in range(5):
        with torch.no_grad():
            logits = pipe.model(ids[None], attention_mask=torch.ones(1, 6)).logits[0]
        logits[:, [PAD, MASK]] = -torch.inf
        best, token = logits.softmax(-1).max(-1)
        position = best.masked_fill(ids != MASK, -1).argmax()
        ids[position] = token[position]
    assert torch.equal(ours, ids)


def test_classifier_free_guidance_is_the_stated_mixture(pipe):
    seen = {}

    def callback(pipe, i, t, tensors):
        seen.setdefault("logits", tensors["logits"])
        return {}

    pipe("a b", guidance_scale=2.5, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["logits"])
    with torch.no_grad():
        ones = torch.ones(1, 6)
        conditional = pipe.model(torch.tensor([[3, 4] + [MASK] * 4]), attention_mask=ones).logits
        unconditional = pipe.model(torch.full((1, 6), MASK), attention_mask=ones).logits
    expected = unconditional + 2.5 * (conditional - unconditional)
    torch.testing.assert_close(seen["logits"][..., 3:], expected[..., 3:])
    assert (seen["logits"][..., [PAD, MASK]] == -torch.inf).all()


def test_callback_may_replace_the_sample(pipe):
    def callback(pipe, i, t, tensors):
        return {"sample": tensors["sample"].clamp(max=3)} if i == 5 else None

    assert pipe("", callback_on_step_end=callback, generator=seeded()).sequences.max() <= 3


def test_suppressed_tokens_are_never_generated(pipe):
    pipe.register_to_config(suppress_tokens=[3, 5])
    drawn = pipe([""] * 50, generator=seeded()).sequences
    assert set(drawn.unique().tolist()) <= {EOS, 4, 6, 7}


def exact_bound(pipe, ids, never=(PAD, MASK)):
    """`mean over k, mean over the subsets of k hidden positions, of C / k * sum hidden -log p`, all enumerated."""
    canvas, total = len(ids), 0.0
    for k in range(1, canvas + 1):
        subsets = list(itertools.combinations(range(canvas), k))
        for hidden in subsets:
            masked = torch.tensor(ids)
            masked[list(hidden)] = MASK
            with torch.no_grad():
                logits = pipe.model(masked[None], attention_mask=torch.ones(1, canvas)).logits[0]
            logits[:, list(never)] = -torch.inf
            log_probs = logits.log_softmax(-1)
            total += canvas / k * -sum(log_probs[i, ids[i]].item() for i in hidden) / len(subsets) / canvas
    return total


def test_nll_is_the_elbo_bound_by_enumeration():
    pipe = tiny_pipeline(length=4)
    ours = pipe.nll(["a b", "e d c", "a b c d e"], num_corruptions=4000)
    exact = [exact_bound(pipe, ids) for ids in ([3, 4, EOS, EOS], [7, 6, 5, EOS], [3, 4, 5, 6, 7, EOS])]
    assert ours.tolist() == pytest.approx(exact, rel=0.02)
    assert pipe.nll(["a b"]).item() == pipe.nll("a b").item()  # seeded unless told otherwise


def test_nll_without_an_end_is_that_of_the_text_alone():
    pipe = tiny_pipeline(length=4)
    pipe.register_to_config(suppress_tokens=[EOS])
    exact = [exact_bound(pipe, ids, (PAD, MASK, EOS)) for ids in ([3, 4], [7, 6, 5, 4])]
    assert pipe.nll(["a b", "e d c b"], num_corruptions=4000).tolist() == pytest.approx(exact, rel=0.02)


def test_nll_bounds_the_likelihood_of_the_sampler_from_above():
    """The bound is above the exact -log p of the random-order sampler, summed over all orders."""
    pipe = tiny_pipeline(length=3)
    ids = [5, 3, EOS]

    def likelihood(visible):
        if len(visible) == 3:
            return 1.0
        masked = torch.tensor([ids[i] if i in visible else MASK for i in range(3)])
        with torch.no_grad():
            logits = pipe.model(masked[None], attention_mask=torch.ones(1, 3)).logits[0]
        logits[:, [PAD, MASK]] = -torch.inf
        probs = logits.softmax(-1)
        rest = [i for i in range(3) if i not in visible]
        return sum(probs[i, ids[i]].item() * likelihood(visible | {i}) for i in rest) / len(rest)

    assert pipe.nll(["c a"], num_corruptions=4000).item() > -math.log(likelihood(frozenset()))


def test_save_and_load_round_trip(tmp_path, pipe):
    pipe.register_to_config(temperature=0.6, suppress_tokens=[5])
    pipe.save_pretrained(tmp_path)
    loaded = MaskedTextPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.scheduler, MaskedDiffusionScheduler)
    assert (loaded.config.length, loaded.config.temperature, loaded.config.suppress_tokens) == (6, 0.6, [5])
    assert loaded(["", "a"], generator=seeded()).texts == pipe(["", "a"], generator=seeded()).texts


def test_a_plain_masked_language_model_folder_loads(tmp_path, pipe):
    pipe.model.half().save_pretrained(tmp_path)
    pipe.tokenizer.save_pretrained(tmp_path)
    loaded = MaskedTextPipeline.from_pretrained(tmp_path)
    assert loaded.model.dtype == torch.float32
    assert loaded.config.length == 24
    assert MaskedTextPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_moving_to_another_dtype(pipe):
    assert len(pipe.to(torch.bfloat16)(["a", ""], generator=seeded()).texts) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"prompt": "a [EOS] b"}, r"`prompt` must not contain reserved tokens, got '\[EOS\]' in 'a \[EOS\] b'"),
        ({"prompt": "[PAD]"}, r"reserved tokens, got '\[PAD\]'"),
        ({"prompt": " ".join("a" * 30)}, "needs 33 token positions and the model has 24; shorten `prompt`"),
        ({"gen_length": 25}, "needs 25 token positions and the model has 24"),
        ({"gen_length": 0}, "`gen_length` must be >= 1, got 0"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be >= 1, got 0"),
        ({"temperature": -0.5}, "`temperature` must be >= 0, got -0.5"),
        ({"top_p": 1.5}, r"`top_p` must lie in \(0, 1\], got 1.5"),
        ({"top_k": 0}, "`top_k` must be >= 1, got 0"),
        (
            {"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["block"]},
            r"must be of \['sample', 'logits'\], got \['block'\]",
        ),
    ],
)
def test_bad_calls(pipe, call, message):
    with pytest.raises(ValueError, match=message):
        pipe(**call)


def test_bad_texts_and_tokenizers(pipe):
    with pytest.raises(ValueError, match=r"`texts` must not contain reserved tokens, got '\[MASK\]'"):
        pipe.nll(["a [MASK]"])
    with pytest.raises(ValueError, match="needs 25 token positions and the model has 24"):
        pipe.nll([" ".join("a" * 25)])
    assert pipe.nll([" ".join("a" * 24)]).isfinite()  # which leaves no room for its end
    tokenizer = word_tokenizer()
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="`tokenizer` must have a `mask_token_id`, got None"):
        MaskedTextPipeline(pipe.model, tokenizer, pipe.scheduler)


def test_unknown_names():
    with pytest.raises(ValueError, match="`builtin:nope` is not an embedded checkpoint; choose one of builtin:"):
        MaskedTextPipeline.from_pretrained("builtin:nope")
    for path in ("./nope", "/no/such/folder", "no/such/folder"):
        with pytest.raises(FileNotFoundError, match="is not a folder"):
            MaskedTextPipeline.from_pretrained(path)


def test_what_the_tokenizer_puts_in_front_is_no_prompt_and_stays_without_it():
    """Classifier-free guidance hides what the caller wrote, and not the beginning of the text."""
    pipe = tiny_pipeline()
    pipe.tokenizer.bos_token = "e"
    pipe.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="e $A", special_tokens=[("e", 7)])
    canvas = pipe.canvas(["a b"])
    assert canvas.ids[0, :3].tolist() == [7, 3, 4]
    assert canvas.prompt[0].tolist() == [False, True, True, False, False, False]
    assert canvas.given[0].tolist() == [True, True, True, False, False, False]


@pytest.mark.parametrize("setting", [{"top_p": 0.3}, {"block_length": 2}, {"temperature": 0.2}])
def test_what_a_call_does_not_say_the_pipeline_does(pipe, setting):
    told, bare = pipe([""] * 8, generator=seeded(), **setting), pipe([""] * 8, generator=seeded())
    assert not torch.equal(told.sequences, bare.sequences)
    pipe.register_to_config(**setting)
    assert torch.equal(pipe([""] * 8, generator=seeded()).sequences, told.sequences)
