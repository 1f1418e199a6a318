"""Texts that are JSON of a schema."""

from collections.abc import Sequence
from typing import Any

from redge_guidance.checks import whole_number
from redge_guidance.constraints.constraint import Constraint
from redge_guidance.constraints.expression import machine_of
from redge_guidance.constraints.machine import MOST_STATES, Machine
from redge_guidance.constraints.schema import expression_of, is_valid_json, read_schema, validator_of


class JsonSchemaConstraint(Constraint):
    """Texts that are JSON, and valid under a schema of Draft 2020-12, `jsonschema` being the judge, formats checked.

    Nothing invalid is drawn. Some of what is valid is not drawn either, so that the texts are those of an automaton:
    properties come in the order in which the schema names them, and no others come; arrays and objects of which
    nothing is said end at `depth`. `accepts` takes all that is valid.

    Args:
        schema: as a dict or bool, or as JSON text.
        whitespace: `"spaced"`, as `json.dumps` writes it; `"compact"`, none; `"any"`, a space or a line's end or none
            wherever JSON may have it.
        depth: how often a `$ref` may be followed on the way to a value, so that recursive ones come to an end.
        answer_only, most_states: as for `RegexConstraint`.

    Raises:
        ValueError: not a schema, one that has what is not supported (its path, `$.properties.age.multipleOf`), one that
            no text meets, or one too large.

    >>> from redge_guidance.constraints import JsonSchemaConstraint
    >>> schema = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0}}, "required": ["age"]}
    >>> JsonSchemaConstraint(schema).accepts(['{"age": 3}', '{"age": -3}', '{"age": 3'])
    [True, False, False]
    """

    def __init__(
        self,
        schema: dict[str, Any] | bool | str,
        *,
        whitespace: str = "spaced",
        depth: int = 3,
        answer_only: bool | None = None,
        most_states: int = MOST_STATES,
    ):
        self.depth, self.whitespace = whole_number("depth", depth, 1), whitespace
        self.answer_only, self.most_states = answer_only, whole_number("most_states", most_states, 1)
        try:
            self.schema = read_schema(schema)
            self.pattern = expression_of(self.schema, whitespace=whitespace, depth=self.depth)
            _ = self.machine
        except RecursionError:
            raise ValueError(f"`schema` nests too deeply, or `depth`, {depth}, is too large; ask for less.") from None

    def build(self) -> Machine:
        return machine_of(self.pattern, 0, self.most_states)

    def accepts(self, texts: Sequence[str]) -> list[bool]:
        validator = validator_of(self.schema)
        return [is_valid_json(validator, text) for text in texts]
