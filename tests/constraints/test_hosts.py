"""Every host of texts, in every order and with any number of tokens a step: whatever is finished is accepted."""

import gc
import re
import weakref

import pytest
import torch

from redge_guidance import GuidanceConfig, LogitsGuidance, guide
from redge_guidance.constraints import LengthConstraint, RegexConstraint, WordConstraint
from redge_guidance.form import Form
from redge_guidance.rewards import BlackBoxReward, LexicalReward
from tests.helpers.hosts import EOS, MASK, TEXTS, masked, seeded, spied, uniform
from tests.helpers.tiny import WORDS, tiny_pipeline, tiny_reward, word_tokenizer

PATTERNS = [r"[ab]( c)*( d)?", r"(a|b) .* e", r"e( [a-d]){2,3}", r"(a b ?)+"]
ORDERS = ["ancestral", "random", "left_to_right", "confidence", "entropy", "topk_margin", "remasking"]


def text_of(ids):
    ids = [int(i) for i in ids]
    return word_tokenizer().decode(ids[: ids.index(EOS)] if EOS in ids else ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", TEXTS)
def test_texts_of_every_host_match(name):
    for pattern in PATTERNS:
        pipe, run = TEXTS[name]()
        with guide(pipe, RegexConstraint(pattern, answer_only=True)):
            texts = [text_of(row) for seed in range(2) for row in run(seed)]
        assert [text for text in texts if not re.fullmatch(pattern, text)] == []
        assert len(texts) >= 2


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_masked_texts_match_in_every_order(order, temperature):
    pipe = tiny_pipeline(length=8, unmasking_order=order)
    for pattern in PATTERNS:
        with guide(pipe, RegexConstraint(pattern)):
            for steps in (8, 4, 2, 1):
                texts = pipe([""] * 4, num_inference_steps=steps, temperature=temperature, generator=seeded()).texts
                assert [text for text in texts if not re.fullmatch(pattern, text)] == []


@pytest.mark.parametrize("settings", [{}, {"block_length": 2, "num_inference_steps": 4}, {"guidance_scale": 2.0}])
def test_prompts_holes_and_padding_are_part_of_the_text(settings):
    pipe, _ = masked(pipe=tiny_pipeline(length=10))
    pattern = r"(a b|c)( [a-e])* d"
    with guide(pipe, RegexConstraint(pattern)):
        output = pipe(["a b", "c", "c [MASK] [MASK] d"], gen_length=5, generator=seeded(1), **settings)
    assert [text for text in output.texts if not re.fullmatch(pattern, text)] == []
    assert output.texts[0].startswith("a b")
    assert output.texts[2].startswith("c ")


def test_a_text_may_go_on_in_later_blocks():
    """Seven words, of which a block holds two."""
    pipe = tiny_pipeline(length=8)
    with guide(pipe, LengthConstraint(7, 7)):
        texts = pipe([""] * 3, block_length=2, num_inference_steps=4, generator=seeded()).texts
    assert [len(text.split()) for text in texts] == [7] * 3


@pytest.mark.parametrize("order", ["confidence", "entropy"])
def test_orders_by_confidence_are_shown_the_posterior(order):
    """`a` somewhere: everywhere it is possible, and so are other tokens, where one joint draw had placed it."""
    pipe = tiny_pipeline(length=6, unmasking_order=order)
    calls = spied(pipe)
    with guide(pipe, WordConstraint("a")):
        pipe([""], num_inference_steps=6, generator=seeded())
    logits = calls[0][1]["model_output"][0]
    assert ((logits > -torch.inf).sum(-1) > 1).all()
    assert (logits[:, 3] > -torch.inf).all()


def test_the_answer_alone_is_judged_where_that_is_asked():
    pipe, _ = masked(pipe=tiny_pipeline(length=10))
    with guide(pipe, RegexConstraint(r"(d e ?)+", answer_only=True)):
        output = pipe(["a b", "c"], gen_length=4, generator=seeded())
    assert all(re.fullmatch(r"(d e ?)+", answer) for answer in output.answers)
    assert [text.split()[0] for text in output.texts] == ["a", "c"]


def test_a_pipeline_of_uniform_diffusion_with_a_prompt():
    pipe, _ = uniform(corrector_steps=2, corrector_k=2)
    pattern = r"a b( c| d e)*"
    with guide(pipe, RegexConstraint(pattern)):
        for greedy in ("ancestral", "greedy"):
            texts = pipe(["a b", "a"], gen_length=4, generator=seeded(3), noise_removal=greedy).texts
            assert [text for text in texts if not re.fullmatch(pattern, text)] == []


def test_a_row_of_its_own_generator_does_not_depend_on_its_batch():
    pipe = tiny_pipeline(length=8)
    constraint = RegexConstraint(r"(a|b)( [a-e]){1,5}")
    with guide(pipe, constraint):
        together = pipe(["", "a", "b c"], gen_length=5, generator=[seeded(k) for k in range(3)]).texts
        alone = [pipe([p], gen_length=5, generator=[seeded(k)]).texts[0] for k, p in enumerate(["", "a", "b c"])]
    assert together == alone


def test_steps_in_which_rewards_do_not_count_are_constrained_all_the_same():
    pipe = tiny_pipeline(length=8)
    reward = tiny_reward() & RegexConstraint(PATTERNS[1])
    for config in (GuidanceConfig(scale=0), GuidanceConfig(start=0.5), GuidanceConfig(stop=0.2)):
        with guide(pipe, reward, config) as handle:
            texts = pipe([""] * 4, num_inference_steps=4, generator=seeded()).texts
        assert [text for text in texts if not re.fullmatch(PATTERNS[1], text)] == []
        assert len(handle.trace) == 4


def test_sequences_whose_guidance_has_stopped_are_constrained_all_the_same():
    pipe = tiny_pipeline(length=8)
    stops = iter([True, False, False, True, *[True] * 100])
    with guide(pipe, tiny_reward() & RegexConstraint(PATTERNS[1]), stop_when=lambda figures: next(stops)) as handle:
        texts = pipe([""] * 4, num_inference_steps=8, generator=seeded()).texts
    assert [text for text in texts if not re.fullmatch(PATTERNS[1], text)] == []
    assert any(one.stopped for step in handle.trace for one in step.sequences)


def test_a_reward_sees_texts_of_the_form():
    pipe, seen = tiny_pipeline(length=8), []

    def count(text: str) -> float:
        seen.append(text)
        return float(text.count("d"))

    pattern = r"(a|b) (d|e)( c)+"
    with guide(pipe, BlackBoxReward(count) & RegexConstraint(pattern)):
        texts = pipe([""] * 4, num_inference_steps=8, generator=seeded()).texts
    assert seen
    assert [text for text in [*seen, *texts] if not re.fullmatch(pattern, text)] == []
    assert sum(" d" in text for text in texts) >= 3


def test_a_loop_of_ones_own():
    pipe = tiny_pipeline(length=8)
    guidance = LogitsGuidance(WordConstraint("c", "a") & LengthConstraint(4, 5), tokenizer=pipe.tokenizer)
    ids, generator = torch.full((3, 8), MASK), seeded()
    while (ids == MASK).any():
        logits = guidance(pipe._logits(ids, torch.ones_like(ids, dtype=torch.bool)), ids, generator=generator)
        drawn = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1, generator=generator).view(ids.shape)
        place = torch.rand(ids.shape, generator=generator).masked_fill(ids != MASK, -1).topk(2, -1).indices
        ids = torch.where(torch.zeros_like(ids).scatter(1, place, 1).bool() & (ids == MASK), drawn, ids)
    for text in map(text_of, ids):
        assert "c" in text.split()
        assert "a" not in text.split()
        assert 4 <= len(text.split()) <= 5


def test_greedy_decoding_takes_the_likeliest_text_of_the_form():
    """One step draws all: the likeliest of all texts, by enumeration."""
    pipe = tiny_pipeline(length=4)
    constraint = RegexConstraint(r"(a|b) [c-e]( a)?|d( e)+")
    with guide(pipe, constraint):
        (text,) = pipe([""], num_inference_steps=1, temperature=0.0).texts
    ids = torch.full((1, 4), MASK)
    logits = pipe._logits(ids, torch.ones_like(ids, dtype=torch.bool)).log_softmax(-1)[0]
    best = max(
        (torch.tensor(row) for row in torch.cartesian_prod(*[torch.tensor([1, 3, 4, 5, 6, 7])] * 4).tolist()),
        key=lambda row: (
            logits[range(4), row].sum().item() if ended(row) and constraint.accepts([text_of(row)])[0] else -1e9
        ),
    )
    assert text == text_of(best)


def ended(row):
    """Nothing but ends after an end."""
    after = (row == EOS).int().cumsum(0) > 0
    return bool((row[after] == EOS).all())


LOOK_AHEAD = {
    "masked": lambda: masked(("", ""), pipe=tiny_pipeline(length=6)),
    "uniform": lambda: uniform(),
    "llada2": TEXTS["llada2"],
    "gemma ddim": TEXTS["gemma ddim"],
}


@pytest.mark.parametrize("name", LOOK_AHEAD)
def test_what_no_canvas_can_hold_is_an_error_before_the_model_is_called(name):
    pipe, run = LOOK_AHEAD[name]()
    calls = []
    hook = pipe.model.register_forward_pre_hook(lambda *args: calls.append(args))
    short = {"masked": 6, "uniform": 6}.get(name, 8)
    constraint = RegexConstraint(r"(a b c d e ){3}a" if short == 8 else r"a b c d e a b c", answer_only=True)
    with guide(pipe, constraint), pytest.raises(ValueError, match=rf"takes {16 if short == 8 else 8}; make the canvas"):
        run()
    assert len(calls) <= 1  # the call that was about to be made
    hook.remove()
    run()  # and the pipeline draws on


def test_a_prompt_that_contradicts_the_constraint_is_an_error_that_names_the_token():
    pipe, _ = masked(pipe=tiny_pipeline(length=8))
    with guide(pipe, RegexConstraint(r"a [bc] .*")), pytest.raises(ValueError, match="contradicts text 1.*'e'"):
        pipe(["a b", "a e"], gen_length=3)


def test_tokens_that_the_pipeline_forbids_are_named_as_the_cause():
    pipe, _ = masked(pipe=tiny_pipeline(length=8))
    with guide(pipe, RegexConstraint(r"c+")), pytest.raises(ValueError, match="suppress_tokens"):
        pipe([""], suppress_tokens=[pipe.tokenizer.convert_tokens_to_ids("c")])


def test_logits_that_are_no_numbers_are_named_as_the_cause():
    pipe, _ = masked(pipe=tiny_pipeline(length=8))
    pipe.model.decoder.bias.data.fill_(torch.nan)
    with guide(pipe, RegexConstraint(r"c+")), pytest.raises(ValueError, match="NaN or inf from the model"):
        pipe([""])


def test_a_tokenizer_is_known_by_itself_and_not_by_where_it_lies():
    """It is kept as long as its automaton: another one cannot lie at its address, and be taken for it."""
    form, tokenizer = Form(RegexConstraint("a( [bc])+")), word_tokenizer()
    form.compiled(tokenizer, len(WORDS), (EOS,), torch.device("cpu"))
    known = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert known() is not None


def test_constraints_are_no_terms_of_a_sum():
    constraint = RegexConstraint("a")
    for add in (lambda r: r + constraint, lambda r: constraint + r, lambda r: (r & constraint) + r):
        with pytest.raises(TypeError, match=r"constraints come last, as `\(reward \+ other\) & constraint`"):
            add(LexicalReward("a"))


def test_a_sequence_is_guided_in_the_step_in_which_its_guidance_stops():
    """What the rule is asked about has been guided: one step, after which it says stop, is as without a rule."""
    pipe = tiny_pipeline(length=8)
    reward = tiny_reward() & RegexConstraint(r"[a-e]( [a-e])+")
    found = []
    for rule in (None, lambda figures: True):
        with guide(pipe, reward, GuidanceConfig(scale=20.0), stop_when=rule):
            found.append(pipe([""] * 4, num_inference_steps=1, generator=seeded()).texts)
    assert found[0] == found[1]
