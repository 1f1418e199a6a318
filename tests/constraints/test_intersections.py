"""Several constraints at once: what is drawn is accepted by the judge of each."""

import re

import pytest
import regex

from redge_guidance.constraints import (
    ChoiceConstraint,
    Intersection,
    JsonSchemaConstraint,
    LengthConstraint,
    PrefixConstraint,
    RegexConstraint,
    SuffixConstraint,
    WordConstraint,
)
from redge_guidance.rewards import LexicalReward
from tests.constraints.test_kinds import check, is_json, tokenizers

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
RIVER, OLD = LexicalReward("river"), LexicalReward(["old", "house"], banned="new")

# a constraint, its judge
PARTS = {
    "sentence": (RegexConstraint("[A-Z][a-z ]*[.!]"), lambda text: re.fullmatch("[A-Z][a-z ]*[.!]", text)),
    "river": (WordConstraint("river"), lambda text: RIVER.reached([text])[0]),
    "old": (WordConstraint(["old", "house"], banned="new"), lambda text: OLD.reached([text])[0]),
    "words": (LengthConstraint(3, 6), lambda text: 3 <= len(text.split()) <= 6),
    "signs": (LengthConstraint(10, 40, "characters"), lambda text: 10 <= len(regex.findall(r"\X", text)) <= 40),
    "the": (PrefixConstraint("The "), lambda text: text.startswith("The ")),
    "stop": (SuffixConstraint("."), lambda text: text.endswith(".")),
    "json": (JsonSchemaConstraint(SCHEMA), lambda text: is_json(SCHEMA, text)),
    "choice": (
        ChoiceConstraint(["The river.", "The new river", "A"]),
        ["The river.", "The new river", "A"].__contains__,
    ),
}

TOGETHER = [
    (["sentence", "river"], ["The river is old.", "River!"], ["the river.", "The house."]),
    (["river", "json"], ['{"a": "a River"}'], ['{"a": "rivers"}', "river"]),
    (["json", "signs"], ['{"a": "old house"}'], ['{"a": ""}', "a house of old"]),
    (["sentence", "words"], ["The old house."], ["The house.", "the old house."]),
    (["choice", "the"], ["The river.", "The new river"], ["A", "The "]),
    (["choice", "stop"], ["The river."], ["A", "The new river"]),
    (["the", "stop", "words"], ["The old river.", "The a,\nb."], ["The river.", "The old river"]),
    (["sentence", "old", "words"], ["The old house.", "House is old!"], ["The old house is new.", "The old river."]),
    (["stop", "the", "signs"], ["The old house."], ["The old house", "The end."]),
]


@pytest.mark.parametrize(("names", "right", "wrong"), TOGETHER)
def test_all_of_them_accept(names, right, wrong):
    both = PARTS[names[0]][0]
    for name in names[1:]:
        both = both & PARTS[name][0]
    assert isinstance(both, Intersection)
    assert len(both.parts) == len(names)
    check(both, lambda text: all(PARTS[name][1](text) for name in names), right, wrong)


def test_with_a_number_of_tokens():
    """Which the text does not tell: the others do, and the canvas."""
    both = LengthConstraint(2, 3, "tokens") & RegexConstraint("[a-z ]+") & WordConstraint(banned="cat")
    assert both.accepts(["a cat", "a dog", "A"]) == [False, True, False]
    for tok in tokenizers():
        automaton = both.compiled(tok, len(tok), [tok.eos_token_id])
        a, b, long = (tok(text, add_special_tokens=False).input_ids[-1] for text in ("a", " a", "1"))
        assert automaton.accepts([a, b, b])
        assert automaton.accepts([a, b, tok.eos_token_id])
        assert not any(automaton.accepts(ids) for ids in ([a], [a, b, b, b], [a, long]))
        assert automaton.shortest() == 2


@pytest.mark.parametrize(
    "parts",
    [
        [RegexConstraint("a+"), RegexConstraint("b+")],
        [PrefixConstraint("a"), ChoiceConstraint(["b", "c"])],
        [WordConstraint("cat"), WordConstraint(banned="cat")],
        [LengthConstraint(4, None), LengthConstraint(0, 3)],
        [JsonSchemaConstraint(SCHEMA), PrefixConstraint("[")],
        [RegexConstraint("[ab ]*"), LengthConstraint(2, 2), WordConstraint("c")],
    ],
)
def test_nothing_that_all_accept(parts):
    both = Intersection(parts)
    names = re.escape(" & ".join(type(one).__name__ for one in parts))
    with pytest.raises(ValueError, match=f"^`{names}` accepts no text at all; loosen it"):
        _ = both.machine


def test_what_judges_different_things_is_an_error():
    with pytest.raises(ValueError, match="`answer_only` must be the same for all constraints"):
        RegexConstraint("a", answer_only=True) & PrefixConstraint("a")
    with pytest.raises(ValueError, match="`parts` must be constraints, got str"):
        Intersection([RegexConstraint("a"), "b"])
    with pytest.raises(ValueError, match="`parts` must be constraints, got none"):
        Intersection([])


def test_too_many_states_together():
    parts = [RegexConstraint("(?:a{7}|b)*", most_states=60), RegexConstraint("(?:a{11}|b)*", most_states=60)]
    with pytest.raises(
        ValueError, match="`RegexConstraint & RegexConstraint` needs .* more than 60 states.*`most_states`"
    ):
        _ = (parts[0] & parts[1]).machine
