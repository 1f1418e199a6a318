"""What is said of constraints that make no sense: the argument, what came, what to do."""

import re

import pytest

from redge_guidance.constraints import (
    ChoiceConstraint,
    JsonSchemaConstraint,
    LengthConstraint,
    PrefixConstraint,
    RegexConstraint,
    SuffixConstraint,
    WordConstraint,
)
from tests.helpers.tokenizers import tokenizer, with_holes

AGE = {"type": "object", "properties": {"age": {"type": "integer", "not": {"const": 1}}}, "required": ["age"]}
DEEP = {"type": "null"}
for _ in range(400):
    DEEP = {"type": "array", "items": DEEP}

MADE = [
    (lambda: RegexConstraint("a(b"), "`pattern` is not a regular expression of Python: missing \\), .* at position 1"),
    (lambda: RegexConstraint("a**"), "`pattern` is not a regular expression.* multiple repeat at position 2"),
    (lambda: RegexConstraint("[z-a]"), "`pattern` is not .*bad character range z-a at position 1"),
    (
        lambda: RegexConstraint(r"a(?=b)c"),
        r"`pattern` has a lookahead or lookbehind .* at position 1, .*two constraints with `&`",
    ),
    (lambda: RegexConstraint(r"ab(?<!b)"), "`pattern` has a negative lookahead or lookbehind .* at position 2"),
    (lambda: RegexConstraint(r"(a|b)\1"), "`pattern` has a backreference at position 5.* is not regular"),
    (lambda: RegexConstraint(r"(?P<n>a)(?P=n)"), "`pattern` has a backreference at position 8"),
    (lambda: RegexConstraint(r"(a)?(?(1)b|c)"), r"`pattern` has a conditional .* at position 4"),
    (lambda: RegexConstraint(b"a"), "`pattern` must be a regular expression of text, got one of bytes"),
    (lambda: RegexConstraint(3), "`pattern` must be a regular expression of text, got int"),
    (lambda: RegexConstraint("a{0,900}", most_states=100), "more than 100 states.*raise `most_states`"),
    (lambda: RegexConstraint("a", most_states=0), "`most_states` must be an integer >= 1, got 0"),
    (lambda: RegexConstraint("a(?!)"), "`RegexConstraint` accepts no text at all; loosen it"),
    (lambda: JsonSchemaConstraint(AGE), r"`schema`: \$\.properties\.age\.not is not supported"),
    (lambda: JsonSchemaConstraint({"type": "strng"}), r"`schema`: \$\.type is not what Draft 2020-12"),
    (lambda: JsonSchemaConstraint("{"), "`schema` is not JSON"),
    (lambda: JsonSchemaConstraint(["a"]), "`schema` must be a dict, a bool or JSON text; got list"),
    (lambda: JsonSchemaConstraint(False), "`schema`: no text meets"),
    (lambda: JsonSchemaConstraint(DEEP), "`schema` nests too deeply"),
    (lambda: JsonSchemaConstraint(True, depth=0), "`depth` must be an integer >= 1, got 0"),
    (lambda: JsonSchemaConstraint(True, whitespace="no"), "`whitespace` must be one of 'spaced', 'compact', 'any'"),
    (lambda: JsonSchemaConstraint({"type": "string", "maxLength": 99}, most_states=50), "more than 50 states"),
    (lambda: ChoiceConstraint([]), "`choices` must be text, at least one character, got none"),
    (lambda: ChoiceConstraint(["a", ""]), "`choices` must be text, at least one character, got ''"),
    (lambda: ChoiceConstraint(["a", 3]), "`choices` must be text, at least one character, got 3"),
    (lambda: ChoiceConstraint(["a" * 99], most_states=50), "`ChoiceConstraint` needs .* more than 50 states"),
    (lambda: PrefixConstraint(""), "`prefix` must be text, at least one character, got ''"),
    (lambda: PrefixConstraint(["a", "b"]), r"`prefix` must be text, .* got \['a', 'b'\]"),
    (lambda: PrefixConstraint("a" * 99, most_states=50).machine, "`PrefixConstraint` needs .* more than 50 states"),
    (lambda: SuffixConstraint(None), "`suffix` must be text, at least one character, got None"),
    (lambda: SuffixConstraint(["a", "b"]), r"`suffix` must be text, .* got \['a', 'b'\]"),
    (lambda: WordConstraint(), "`wanted` or `banned` must name a word, got none"),
    (lambda: WordConstraint("\n"), "`wanted`.*'\\\\n'"),
    (lambda: WordConstraint("cat", banned=["dog", "CAT"]), "cat.*both|both.*cat|`banned`.*CAT"),
    (lambda: WordConstraint("cat", at_least=3, at_most=2), "`at_most` must be >= `at_least`, 3, got 2"),
    (lambda: WordConstraint("cat", at_least=-1), "`at_least` must be an integer >= 0, got -1"),
    (lambda: WordConstraint("cat", at_least=1.5), "`at_least` must be an integer >= 0, got 1.5"),
    (lambda: WordConstraint([f"w{n}" for n in range(9)], most_states=500), "`WordConstraint` needs .* 500 states"),
    (lambda: LengthConstraint(), "`minimum` or `maximum` must be given, got 0 and None"),
    (lambda: LengthConstraint(4, 3), "`maximum` must be >= `minimum`, 4, got 3"),
    (lambda: LengthConstraint(-1, 3), "`minimum` must be an integer >= 0, got -1"),
    (lambda: LengthConstraint(1, 3, "letters"), "`unit` must be one of words, characters, tokens, got 'letters'"),
    (lambda: LengthConstraint(1, 999, most_states=50).machine, "`LengthConstraint` needs .* more than 50 states"),
]


@pytest.mark.parametrize("number", range(len(MADE)))
def test_what_makes_no_sense(number):
    make, message = MADE[number]
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        make()
    assert re.search(message, str(caught.value)), str(caught.value)


@pytest.mark.parametrize(
    "constraint",
    [
        RegexConstraint("xylophone"),
        ChoiceConstraint(["xylophone", "d"]),
        WordConstraint("xylophone"),
        PrefixConstraint("x"),
        SuffixConstraint("é"),
        JsonSchemaConstraint({"type": "null"}),
    ],
)
def test_a_tokenizer_that_cannot_spell_it(constraint):
    with pytest.raises(ValueError, match="cannot write any text that the constraint accepts"):
        constraint.compiled(with_holes(), 10, [1])


def test_a_script_that_a_tokenizer_does_not_have():
    tok = tokenizer("wordpiece")
    for constraint in (WordConstraint("हिन्दी"), RegexConstraint("привет"), ChoiceConstraint(["CAPITALS"])):
        with pytest.raises(ValueError, match="cannot write any text that the constraint accepts.*Ask for a text"):
            constraint.compiled(tok, len(tok), [tok.sep_token_id])


def test_too_many_states_over_tokens():
    tok = tokenizer("byte")
    constraint = RegexConstraint("[^a]{2}", most_states=8)
    with pytest.raises(ValueError, match="`RegexConstraint` needs an automaton of more than 8 states"):
        constraint.compiled(tok, len(tok), [tok.eos_token_id])
