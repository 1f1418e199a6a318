import json

import pytest
import torch
from transformers import BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from redge_guidance.rewards import (
    FluencyReward,
    SentenceSimilarityReward,
    TextClassifierReward,
    TextPreferenceReward,
)
from tests.helpers.reward_models import causal_lm, classifier, encoder, masked_lm, relaxed, reward_model
from tests.helpers.tiny import word_tokenizer
from tests.helpers.tokenizers import TEXTS, tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('system comes first') }}{% endif %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
)


def logits_of(model, made, texts):
    encoded = made(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(input_ids=encoded.input_ids, attention_mask=encoded.attention_mask).logits


# classifiers


def test_labels_margins_and_temperature_are_what_they_say():
    made = tokenizer("wordpiece")
    model = classifier(made, num_labels=3)
    logits = logits_of(model, made, TEXTS)
    score = lambda **kwargs: TextClassifierReward(model, made, 2, **kwargs).score(TEXTS)  # noqa: E731
    torch.testing.assert_close(score(), logits.log_softmax(-1)[:, 2])
    torch.testing.assert_close(score(temperature=3.0), (logits / 3).log_softmax(-1)[:, 2])
    torch.testing.assert_close(score(against=0), logits[:, 2] - logits[:, 0])
    torch.testing.assert_close(score(against=0, temperature=2.0), (logits[:, 2] - logits[:, 0]) / 2)
    model.config.problem_type = "multi_label_classification"
    torch.testing.assert_close(score(), logits[:, 2].sigmoid().log())


def test_classifier_bad_input():
    made = tokenizer("wordpiece")
    with pytest.raises(ValueError, match="`against` must be another label than `label`, got 1 for both"):
        TextClassifierReward(classifier(made, num_labels=3), made, 1, against=1)
    with pytest.raises(ValueError, match="`against` must be one of .*, got 'x'"):
        TextClassifierReward(classifier(made, num_labels=3), made, 1, against="x")
    with pytest.raises(ValueError, match="`temperature` must be > 0, got 0"):
        TextClassifierReward(classifier(made, num_labels=3), made, 1, temperature=0)


def test_from_pretrained_with_dtype_and_device_map(tmp_path):
    made = tokenizer("wordpiece")
    model = classifier(made, num_labels=2)
    model.save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    loaded = TextClassifierReward.from_pretrained(tmp_path, 1, temperature=2.0)
    torch.testing.assert_close(loaded.score(TEXTS), TextClassifierReward(model, made, 1, temperature=2.0).score(TEXTS))
    assert isinstance(loaded.model, BertForSequenceClassification)
    assert not loaded.model.training
    assert all(not p.requires_grad for p in loaded.model.parameters())
    half = TextClassifierReward.from_pretrained(tmp_path, 1, dtype=torch.bfloat16, device_map="cpu")
    assert half.model.dtype == torch.bfloat16
    value = half(relaxed(tokenizer("byte"), TEXTS))
    expected = TextClassifierReward(model, made, 1).score(TEXTS)
    torch.testing.assert_close(value, expected, atol=0.1, rtol=0.1)
    assert value.dtype == torch.float32


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}])
def test_a_device_map_as_a_string_or_a_dict(tmp_path, device_map):
    made = tokenizer("wordpiece")
    model = classifier(made, num_labels=2)
    model.save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    loaded = TextClassifierReward.from_pretrained(tmp_path, 1, device_map=device_map)
    torch.testing.assert_close(loaded.score(TEXTS), TextClassifierReward(model, made, 1).score(TEXTS))


def test_which_texts_reach_the_label():
    made = tokenizer("wordpiece")
    model = classifier(made, num_labels=3)
    for label in range(3):
        reward = TextClassifierReward(model, made, label)
        assert reward.reached(TEXTS) == [found == reward.label_name for found in reward.predict(TEXTS, batch_size=2)]
    assert any(TextClassifierReward(model, made, int(logits_of(model, made, TEXTS)[0].argmax())).reached(TEXTS))
    assert TextClassifierReward(classifier(made, num_labels=1), made).reached(TEXTS) is None
    assert FluencyReward(masked_lm(made), made).reached(TEXTS) is None
    model.config.problem_type = "multi_label_classification"
    several = TextClassifierReward(model, made, 0)
    assert several.reached(TEXTS) == (several.score(TEXTS).exp() > 0.5).tolist()


# preference models


def preference(prompt=None, **kwargs):
    made = tokenizer("byte")
    return TextPreferenceReward(reward_model(made), made, prompt, chat_template=TEMPLATE, **kwargs)


def official(reward, turns, answer):
    """As a model card would have it: the whole conversation through the template, and the model."""
    text = reward.tokenizer.apply_chat_template(
        [*turns, {"role": "assistant", "content": answer}], tokenize=False, chat_template=TEMPLATE
    )
    ids = reward.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        return reward.model(input_ids=ids).logits[0, 0]


TURNS = [
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Hello. "},
    {"role": "user", "content": "Who is he?"},
]


@pytest.mark.parametrize("answer", ["the old doctor", " the doctor ", "", "\nhe"])
def test_preference_is_that_of_the_conversation_in_the_models_template(answer):
    reward = preference("Who is he?", system="Be kind.")
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who is he?"}]
    torch.testing.assert_close(reward.score([answer])[0], official(reward, turns, answer))
    several = preference(TURNS)
    torch.testing.assert_close(several.score([answer])[0], official(several, TURNS, answer))
    tokens = relaxed(tokenizer("fallback"), [answer])
    torch.testing.assert_close(several(tokens), several.score(tokens.texts()))


def test_a_conversation_ends_before_the_answer():
    with pytest.raises(ValueError, match="`prompt` must end before the answer, got a conversation whose last turn"):
        preference([*TURNS, {"role": "assistant", "content": "He is the doctor."}])


def test_a_batch_of_unlike_lengths_is_padded_where_the_model_reads():
    reward = preference("Who?")
    texts = ["he", "the old doctor lived in a small house"]
    torch.testing.assert_close(reward.score(texts), torch.cat([reward.score([text]) for text in texts]))
    assert reward.reader.padding_side == "left"


def test_left_padding_does_not_shift_absolute_positions():
    made = tokenizer("byte")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(made), n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3)
    config.num_labels, config.pad_token_id = 1, made.pad_token_id
    reward = TextClassifierReward(GPT2ForSequenceClassification(config), made)
    texts = ["he", "the old doctor lived in a small house"]
    torch.testing.assert_close(reward.score(texts), torch.cat([reward.score([text]) for text in texts]))
    ids = torch.tensor([made(texts[0]).input_ids])
    with torch.no_grad():
        torch.testing.assert_close(reward.score(texts)[0], reward.model(input_ids=ids).logits[0, 0])


def test_a_prompt_for_every_text():
    prompts = ["Who is he?", TURNS]
    reward = preference(prompts)
    expected = torch.stack([official(reward, [TURNS[2]], "he"), official(reward, TURNS, "the doctor")])
    torch.testing.assert_close(reward.score(["he", "the doctor"]), expected)
    tokens = relaxed(reward.tokenizer, ["he", "the doctor", "he", "the doctor"], draws=2)
    torch.testing.assert_close(reward(tokens), expected.repeat(2))
    with pytest.raises(ValueError, match="one for each of the 3 texts of the batch, got 2"):
        reward.score(["a", "b", "c"])


PROMPTS = ["Who is he?", "Hello!", "Tell me all that you know of the old doctor who lived near the river.", ""]
ANSWERS = ["a doctor, and an old one", "he", "the", "a small house"]


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_every_answer_is_judged_with_its_own_prompt(batch_size):
    reward = preference()
    asked = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    expected = torch.stack([official(reward, *pair) for pair in zip(asked, ANSWERS, strict=True)])
    torch.testing.assert_close(reward.score(ANSWERS, PROMPTS, batch_size), expected)
    fixed = preference("Who?")  # which its own prompt keeps
    torch.testing.assert_close(fixed.score(ANSWERS, PROMPTS, batch_size), fixed.score(ANSWERS))


@pytest.mark.parametrize("generator", ["byte", "fallback", "wordpiece"])
def test_prompts_of_the_sample_are_those_that_are_answered(generator):
    reward = preference()
    tokens = relaxed(tokenizer(generator), ANSWERS * 2, prompts=PROMPTS * 2, draws=2)
    value = reward(tokens)
    torch.testing.assert_close(value, reward.score(tokens.answers(), tokens.prompts))
    assert value[:4].std() > 1e-3
    (grad,) = torch.autograd.grad(value.sum(), tokens.weights)
    assert grad.abs().sum() > 0


def test_no_prompts_at_all():
    reward = preference()
    message = "`prompt` is None and there are no prompts .* `prompt=`, .* `prompts`"
    with pytest.raises(ValueError, match=message):
        reward.score(["he"])
    with pytest.raises(ValueError, match=message):
        reward(relaxed(tokenizer("byte"), ["he"]))
    for asked in (reward, FluencyReward(causal_lm(tokenizer("byte")), tokenizer("byte"))):
        with pytest.raises(ValueError, match="`prompts` must be one a sample, 1, got 2"):
            asked.score(["he"], ["a", "b"])
    made = tokenizer("byte")
    with pytest.raises(ValueError, match="`chat_template` must write the assistant's last turn once"):
        TextPreferenceReward(reward_model(made), made, chat_template="{{ messages[0]['content'] }}")


def test_preference_bad_input():
    made = tokenizer("byte")
    with pytest.raises(ValueError, match="`model` must have one output, got 2; .* TextClassifierReward"):
        TextPreferenceReward(classifier(made, num_labels=2), made, "x", chat_template=TEMPLATE)
    with pytest.raises(ValueError, match="`tokenizer` must have a chat template, got none"):
        TextPreferenceReward(reward_model(made), made, "x")
    with pytest.raises(ValueError, match="system comes first.*turns of user, system"):
        preference([{"role": "user", "content": "x"}, {"role": "system", "content": "x"}])
    with pytest.raises(ValueError, match="`chat_template` must write the assistant's last turn once"):
        TextPreferenceReward(reward_model(made), made, "x", chat_template="{{ messages[0]['content'] }}")
    with pytest.raises(ValueError, match="got an empty list"):
        preference([])


# sentence encoders


def pooled(made, texts, pooling):
    encoded = made(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = encoder(made)(input_ids=encoded.input_ids, attention_mask=encoded.attention_mask)[0]
    rows = [row[mask.bool()] for row, mask in zip(states, encoded.attention_mask, strict=True)]
    pick = {"mean": lambda row: row.mean(0), "cls": lambda row: row[0], "last": lambda row: row[-1]}[pooling]
    return torch.stack([pick(row) for row in rows])


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_similarity_is_the_mean_cosine(pooling):
    made = tokenizer("wordpiece")
    targets = ["a happy doctor", "the river"]
    reward = SentenceSimilarityReward(encoder(made), made, targets, pooling=pooling)
    a, b = (torch.nn.functional.normalize(pooled(made, t, pooling), dim=-1) for t in (TEXTS, targets))
    torch.testing.assert_close(reward.score(TEXTS), (a @ b.T).mean(-1))
    one = SentenceSimilarityReward(encoder(made), made, TEXTS[0], pooling=pooling)
    torch.testing.assert_close(one.score(TEXTS)[0], torch.tensor(1.0))
    torch.testing.assert_close((-one).score(TEXTS), -one.score(TEXTS))


def test_prefix_of_an_encoder():
    made = tokenizer("wordpiece")
    reward = SentenceSimilarityReward(encoder(made), made, "river", prefix="garden: ")
    bare = SentenceSimilarityReward(encoder(made), made, "garden: river")
    torch.testing.assert_close(reward.score(["the house"]), bare.score(["garden: the house"]))
    tokens = relaxed(tokenizer("byte"), ["the house"])
    torch.testing.assert_close(reward(tokens), reward.score(["the house"]))


def save_sentence_encoder(folder, pooling, kinds=("Transformer", "Pooling", "Normalize")):
    made = tokenizer("wordpiece")
    encoder(made).save_pretrained(folder)
    made.save_pretrained(folder)
    modules = [
        {"type": f"sentence_transformers.models.{kind}", "path": "" if n == 0 else f"{n}_{kind}"}
        for n, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 17}))


@pytest.mark.parametrize(
    ("pooling", "name"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_pooling_and_length_as_the_checkpoint_says(tmp_path, pooling, name):
    save_sentence_encoder(tmp_path, pooling)
    reward = SentenceSimilarityReward.from_pretrained(tmp_path, "the river")
    assert reward.pooling == name
    assert reward.reader.max_length == 17
    assert SentenceSimilarityReward.from_pretrained(tmp_path, "the river", pooling="mean").pooling == "mean"


def test_encoders_that_are_not_supported(tmp_path):
    save_sentence_encoder(tmp_path, {"pooling_mode_max_tokens": True}, ("Transformer", "Pooling"))
    with pytest.raises(ValueError, match="pools by pooling_mode_max_tokens, which is not supported"):
        SentenceSimilarityReward.from_pretrained(tmp_path, "x")
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "a.Dense", "path": "2_Dense"}]))
    with pytest.raises(ValueError, match="has a layer Dense after its pooling"):
        SentenceSimilarityReward.from_pretrained(tmp_path, "x")
    made = tokenizer("wordpiece")
    with pytest.raises(ValueError, match="`pooling` must be one of mean, cls, last, got 'max'"):
        SentenceSimilarityReward(encoder(made), made, "x", pooling="max")
    with pytest.raises(ValueError, match="`targets` must be a text or several, got none"):
        SentenceSimilarityReward(encoder(made), made, [])


def test_an_encoder_that_is_not_of_sentence_transformers_pools_by_the_mean(tmp_path):
    made = tokenizer("wordpiece")
    encoder(made).save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    assert SentenceSimilarityReward.from_pretrained(tmp_path, "x").pooling == "mean"


# language models


@pytest.mark.parametrize("text", [TEXTS[0], "the", "e", ""])
def test_causal_fluency_is_the_models_own_loss_from_the_start_to_the_end(text):
    made = tokenizer("byte")
    model, end = causal_lm(made), made.eos_token_id
    ids = torch.tensor([[end, *made(text).input_ids, end]])
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss  # the mean over all tokens but the first
    reward = FluencyReward(model, made)
    torch.testing.assert_close(reward.score([text, *TEXTS])[0], -loss)
    total = FluencyReward(model, made, per_token=False)
    torch.testing.assert_close(total.score([text])[0], -loss * (ids.shape[1] - 1))
    for generator in ("byte", "unigram"):
        tokens = relaxed(tokenizer(generator), [text, TEXTS[1]])
        torch.testing.assert_close(reward(tokens), reward.score(tokens.texts()))


@pytest.mark.parametrize("generator", ["byte", "unigram"])
def test_what_could_stand_in_the_place_of_the_end_is_worth_its_log_probability(generator):
    """Nothing comes after the end, so that its slope is the prediction of the end, divided by the number of tokens."""
    words, made = tokenizer(generator), tokenizer("unigram")
    model, end = causal_lm(made), made.eos_token_id
    tokens = relaxed(words, ["the river"])
    (grad,) = torch.autograd.grad(FluencyReward(model, made)(tokens).sum(), tokens.weights)
    ids = torch.tensor([[end, *made("the river").input_ids]])  # which has the end already
    with torch.no_grad():
        log_probs = model(input_ids=ids).logits.log_softmax(-1)[0, -2]
    torch.testing.assert_close(grad[-1, words.eos_token_id], log_probs[end] / (ids.shape[1] - 1))


def test_a_start_or_end_that_the_tokenizer_writes_itself_is_not_written_twice():
    made = tokenizer("unigram")  # which puts </s> after a text, and has no token for its beginning
    reward, end = FluencyReward(causal_lm(made), made), made.eos_token_id
    assert reward.reader.read_texts(["the river"], reward.frames(1)).ids[0, [0, -2, -1]].tolist() != [end, end, end]
    ids = torch.tensor([[end, *made("the river").input_ids]])
    with torch.no_grad():
        torch.testing.assert_close(reward.score(["the river"])[0], -reward.model(input_ids=ids, labels=ids).loss)


def test_an_empty_text_is_not_the_most_fluent():
    for kind, made in (("causal", tokenizer("byte")), ("masked", tokenizer("wordpiece"))):
        reward = FluencyReward((causal_lm if kind == "causal" else masked_lm)(made), made)
        assert (reward.score(["", "a"]) < -0.5).all()
    no_end = word_tokenizer()
    no_end.eos_token = no_end.sep_token = no_end.bos_token = no_end.cls_token = None
    with pytest.raises(ValueError, match="must have a token that ends texts, got none; set its `eos_token`"):
        FluencyReward(causal_lm(no_end), no_end)


def test_masked_fluency_hides_every_token_once():
    made, text = tokenizer("wordpiece"), "the old doctor lived in a small house"
    model = masked_lm(made)
    ids = torch.tensor(made(text).input_ids)
    each = []
    for position in range(1, len(ids)):  # the end too
        hidden = ids.clone()
        hidden[position] = made.mask_token_id
        with torch.no_grad():
            each.append(model(input_ids=hidden[None]).logits.log_softmax(-1)[0, position, ids[position]])
    alone = FluencyReward(model, made, num_passes=len(ids) - 1)  # one token a pass
    torch.testing.assert_close(alone.score([text])[0], torch.stack(each).mean())
    assert FluencyReward(model, made, num_passes=2).score([text])[0] != alone.score([text])[0]


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_gradient_of_fluency_is_that_of_its_relaxation(kind):
    """Same tokenizer: the value is a smooth function of the mixtures, predictions and what is read alike."""
    made = tokenizer("byte")
    model = (causal_lm if kind == "causal" else masked_lm)(made).double()
    reward = FluencyReward(model, made)
    tokens = relaxed(made, ["the doctor"])
    mixed = torch.rand(tokens.weights.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mixed = (0.7 * tokens.weights.detach().double() + 0.3 * mixed / mixed.sum(-1, keepdim=True)).requires_grad_()

    def value(weights):
        return reward(type(tokens)(tokens.ids, tokens.free, weights, hard=False, tokenizer=made))[0].double()

    (grad,) = torch.autograd.grad(value(mixed), mixed)
    direction = torch.randn(mixed.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        slope = (value(mixed + 2e-4 * direction) - value(mixed - 2e-4 * direction)) / 4e-4
    torch.testing.assert_close((grad * direction).sum(), slope, atol=2e-2, rtol=5e-3)


@pytest.mark.parametrize(("generator", "model"), [("byte", "byte"), ("byte", "wordpiece"), ("wordpiece", "byte")])
def test_fluency_pulls_at_the_tokens_it_predicts(generator, model):
    """A language model without context: exchanging a token changes its own log-probability and nothing else."""
    made, theirs = tokenizer(generator), tokenizer(model)
    language_model = causal_lm(theirs)
    for layer in language_model.model.layers:  # the state before the last map is a constant then
        for parameter in layer.parameters():
            torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        language_model.model.embed_tokens.weight.fill_(1.0)
    reward = FluencyReward(language_model, theirs, per_token=False)
    tokens = relaxed(made, ["the people are happy in the garden"])
    (grad,) = torch.autograd.grad(reward(tokens).sum(), tokens.weights)
    happy, the = (made(f"a {word}", add_special_tokens=False).input_ids[1] for word in ("happy", "the"))
    change = grad[tokens.ids[0].tolist().index(happy), [the, happy]]
    before, after = reward.score(["the people are happy in the garden", "the people are the in the garden"])
    torch.testing.assert_close(change[0] - change[1], after - before, atol=1e-4, rtol=1e-4)


def test_fluency_loads_what_the_checkpoint_is(tmp_path):
    for make, kind in ((masked_lm, "wordpiece"), (causal_lm, "byte")):
        made = tokenizer(kind)
        make(made).save_pretrained(tmp_path / kind)
        made.save_pretrained(tmp_path / kind)
        loaded = FluencyReward.from_pretrained(tmp_path / kind)
        assert loaded.masked == (make is masked_lm)
        torch.testing.assert_close(loaded.score(TEXTS), FluencyReward(make(made), made).score(TEXTS))


def test_fluency_bad_input():
    with pytest.raises(ValueError, match="`num_passes` must be >= 2, got 1"):
        FluencyReward(masked_lm(tokenizer("wordpiece")), tokenizer("wordpiece"), num_passes=1)
    with pytest.raises(ValueError, match="`tokenizer` must have a mask token"):
        FluencyReward(masked_lm(tokenizer("unigram")), tokenizer("unigram"))
