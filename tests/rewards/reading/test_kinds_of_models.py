"""Whatever model is the reward: the value in guidance is the model's own for the ids that its tokenizer makes."""

import pytest
import torch

from redge_guidance.positions import longest
from redge_guidance.rewards import FluencyReward, SentenceSimilarityReward, TextClassifierReward
from tests.helpers.kinds import CLASSIFIERS, model
from tests.helpers.reward_models import relaxed
from tests.helpers.tokenizers import TEXTS, tokenizer

SHORT = [text[:30] for text in TEXTS[:3]] + ["a", "Unhappy people"]
# what such a model cannot do itself, without a padding token or without an end of the text
REFUSED = {("Roberta", False), ("XLMRoberta", False), ("Camembert", False), ("Esm", False), ("Longformer", False)}


def margins(made, words, texts):
    """Of each text alone, by the ids that the model's tokenizer makes of it, as a model card would have it."""
    with torch.no_grad():
        logits = [made(input_ids=words(text, return_tensors="pt").input_ids).logits[0] for text in texts]
    return torch.stack([one[1] - one[0] for one in logits])


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", list(CLASSIFIERS))
def test_values_are_the_models_own(kind, side, pad):
    words = tokenizer("unigram" if kind == "Bart" else "wordpiece")  # one that has an end for Bart to look at
    classifier = model(kind, "SequenceClassification", words, pad, num_labels=2)
    if kind == "Bart" and not pad:
        pytest.skip("such a model says nothing itself")
    make = lambda: TextClassifierReward(classifier, words, 1, against=0, padding_side=side)  # noqa: E731
    if (kind, pad) in REFUSED:
        with pytest.raises(ValueError, match=f"`model` {kind}ForSequenceClassification cannot be read .*pad_token_id"):
            make()
        return
    reward = make()
    torch.testing.assert_close(reward.score(SHORT), margins(classifier, words, SHORT), atol=1e-5, rtol=1e-5)
    for generator in (words, tokenizer("byte")):
        tokens = relaxed(generator, SHORT)
        value = reward(tokens)
        torch.testing.assert_close(value, margins(classifier, words, tokens.texts()), atol=1e-5, rtol=1e-5)
        (grad,) = torch.autograd.grad(value.sum(), tokens.weights)
        assert grad.isfinite().all()
        assert grad.abs().sum() > 0
        torch.testing.assert_close(value[1:2], reward(relaxed(generator, SHORT[1:2])), atol=1e-5, rtol=1e-5)
    assert classifier.config.pad_token_id == (words.pad_token_id if pad else None)


@pytest.mark.parametrize("kind", list(CLASSIFIERS))
def test_the_longest_text_fits_and_a_longer_one_does_not_where_positions_are_counted(kind):
    words = tokenizer("unigram" if kind == "Bart" else "wordpiece")
    classifier = model(kind, "SequenceClassification", words, num_labels=2)
    most, names = longest(classifier), [name for name, _ in classifier.named_modules()]
    if most is None:
        pytest.skip(f"{kind} has positions for any length")
    end = [words.eos_token_id or words.sep_token_id]
    with torch.no_grad():
        classifier(input_ids=torch.tensor([[5] * (most - 1) + end]))
        if any(name.endswith(("position_embeddings", "wpe", "embed_positions")) for name in names):
            with pytest.raises((IndexError, RuntimeError)):
                classifier(input_ids=torch.tensor([[5] * most + end]))


def test_slopes_are_those_of_the_embeddings():
    """Through shifted ids (Bart), padding behind (Longformer), transposed ids (XLNet): as autograd has them by hand."""
    for kind in ("Bert", "Bart", "Longformer", "XLNet", "Gemma", "Esm"):
        words = tokenizer("unigram" if kind == "Bart" else "wordpiece")
        classifier = model(kind, "SequenceClassification", words, num_labels=2)
        reward = TextClassifierReward(classifier, words, 1, against=0)
        tokens = relaxed(words, [SHORT[0]])
        (grad,) = torch.autograd.grad(reward(tokens).sum(), tokens.weights)
        assert torch.equal(tokens.ids[0][tokens.free[0]], tokens.weights.argmax(-1))
        # a step towards another token, in the embedding's table, moves the model's own value as the slope says
        ids, other, step = words(tokens.texts()[0]).input_ids, 40, 1e-2
        place = next(k for k, i in enumerate(tokens.ids[0].tolist()) if k > 1 and ids.count(i) == 1 and i != other)
        weight, old = classifier.get_input_embeddings().weight, int(tokens.ids[0, place])
        before = weight[old].clone()
        values = []
        for sign in (1, -1):
            weight.data[old] = before + sign * step * (weight[other] - before)
            values.append(margins(classifier, words, tokens.texts())[0])
        weight.data[old] = before
        slope = (values[0] - values[1]) / (2 * step)
        torch.testing.assert_close(grad[place, other] - grad[place, old], slope, atol=2e-2, rtol=2e-2)


class _Mates(torch.nn.Module):
    """A classifier that takes the mean over its batch away."""

    def __init__(self, words):
        super().__init__()
        self.inner = model("Bert", "SequenceClassification", words, num_labels=2)
        self.config = self.inner.config

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()

    def forward(self, input_ids, attention_mask):
        output = self.inner(input_ids=input_ids, attention_mask=attention_mask)
        output.logits = output.logits - output.logits.mean(0)
        return output


class _NoLookUp(_Mates):
    def forward(self, input_ids, attention_mask):
        return self.inner(inputs_embeds=self.get_input_embeddings().weight[input_ids], attention_mask=attention_mask)


class _OtherIds(_Mates):
    def forward(self, input_ids, attention_mask):
        return self.inner(input_ids=input_ids.flip(1), attention_mask=attention_mask.flip(1))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (_Mates, "depends on the other texts of the batch"),
        (_NoLookUp, "does not look its ids up in its input embeddings"),
        (_OtherIds, "looks up other ids than it is given"),
    ],
)
def test_a_model_that_cannot_be_read_is_refused_when_the_reward_is_made(kind, reason):
    words = tokenizer("wordpiece")
    with pytest.raises(ValueError, match=f"`model` {kind.__name__} cannot be read as a reward: .*{reason}"):
        TextClassifierReward(kind(words), words, 1)


def test_a_model_without_a_table_of_embeddings_is_refused():
    words = tokenizer("wordpiece")
    canine = model("Bert", "SequenceClassification", words, num_labels=2)
    canine.get_input_embeddings = lambda: (_ for _ in ()).throw(NotImplementedError)
    with pytest.raises(ValueError, match="has no table of input embeddings.* in a `BlackBoxReward`"):
        TextClassifierReward(canine, words, 1)


def test_models_with_another_head_are_refused_when_the_reward_is_made():
    words = tokenizer("wordpiece")
    labels, tokens = (model("Bert", head, words, num_labels=2) for head in ("SequenceClassification", "MaskedLM"))
    with pytest.raises(ValueError, match="must have an output for each text, for TextClassifierReward, got BertForMas"):
        TextClassifierReward(tokens, words, 1)
    with pytest.raises(ValueError, match="must have an output for each token, for FluencyReward, got BertForSequenc"):
        FluencyReward(labels, words, masked=True)
    with pytest.raises(ValueError, match="must have an output for each token, for SentenceSimilarityReward"):
        SentenceSimilarityReward(labels, words, "a")
    with pytest.raises(ValueError, match="`model` must be a model of transformers, got TokenizersBackend"):
        TextClassifierReward(words, labels, 1)


def test_a_tokenizer_that_is_larger_than_the_model_is_named():
    large = tokenizer("byte")
    with pytest.raises(ValueError, match=r"`tokenizer` has ids up to \d+, and the model 150 tokens"):
        TextClassifierReward(model("Bert", "SequenceClassification", large, vocab_size=150, num_labels=2), large, 1)


def test_another_thread_that_calls_the_model_meanwhile_is_left_alone():
    import threading

    words = tokenizer("wordpiece")
    classifier = model("Bert", "SequenceClassification", words, num_labels=2)
    reward, found = TextClassifierReward(classifier, words, 1), []
    ids = torch.tensor([[7, 8, 9]])
    expected = classifier(input_ids=ids).logits

    def elsewhere(module, args):
        if threading.current_thread() is threading.main_thread() and not found:
            found.append(None)
            thread = threading.Thread(target=lambda: found.append(classifier(input_ids=ids).logits))
            thread.start()
            thread.join()

    handle = classifier.get_input_embeddings().register_forward_pre_hook(elsewhere)
    reward(relaxed(words, ["the river"]))
    handle.remove()
    torch.testing.assert_close(found[1], expected)


@pytest.mark.parametrize("kind", ["GPT2", "OPT", "Llama", "Gemma", "GPTNeoX"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_fluency_of_decoders_is_their_own_loss(kind, side):
    words = tokenizer("byte")
    lm = model(kind, "LMHeadModel" if kind == "GPT2" else "CausalLM", words) if kind != "GPT2" else _gpt2(words)
    reward, end = FluencyReward(lm, words, padding_side=side), words.eos_token_id
    losses = []
    for text in SHORT:
        ids = torch.tensor([[end, *words(text).input_ids, end]])
        with torch.no_grad():
            losses.append(-lm(input_ids=ids, labels=ids).loss)
    tokens = relaxed(words, SHORT)
    torch.testing.assert_close(reward.score(SHORT), torch.stack(losses), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(reward(tokens), reward.score(tokens.texts()), atol=1e-5, rtol=1e-5)


def _gpt2(words):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(words), n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3)
    return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("whole", [True, False])
def test_sentences_by_the_encoder_of_t5(whole, tmp_path):
    from transformers import T5Config, T5EncoderModel, T5Model

    words = tokenizer("unigram")
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    config = T5Config(vocab_size=len(words), pad_token_id=words.pad_token_id, **sizes)
    (T5Model if whole else T5EncoderModel)(config).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    reward = SentenceSimilarityReward.from_pretrained(tmp_path, "the river")
    encoder = reward.model
    assert isinstance(encoder, T5EncoderModel)

    def embed(text):
        with torch.no_grad():
            return encoder(input_ids=words(text, return_tensors="pt").input_ids).last_hidden_state.mean(1)

    expected = torch.cat([torch.cosine_similarity(embed(text), embed("the river")) for text in SHORT])
    torch.testing.assert_close(reward.score(SHORT), expected, atol=1e-5, rtol=1e-5)
    tokens = relaxed(words, SHORT)
    torch.testing.assert_close(reward(tokens), reward.score(tokens.texts()), atol=1e-5, rtol=1e-5)
