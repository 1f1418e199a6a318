"""In what settings differ, place by place."""

from collections.abc import Iterator
from typing import Any

_SHOWN, _BEFORE = 80, 30  # characters of a value, and of what is shown of it before the first that differs


def differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """`"constraints[0].pattern: 'a', now 'b'"` of every place where plain values differ, None where there is none.

    >>> list(differences({"seed": 0, "parts": [{"pattern": "a"}]}, {"seed": 0, "parts": [{"pattern": "b"}]}))
    ["parts[0].pattern: 'a', now 'b'"]
    """
    if isinstance(before, dict) and isinstance(now, dict) and before and now:
        for name in {**before, **now}:
            if before.get(name) != now.get(name):
                yield from differences(before.get(name), now.get(name), f"{path}.{name}" if path else str(name))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, (one, other) in enumerate(zip(before, now, strict=True)):
            if one != other:
                yield from differences(one, other, f"{path}[{i}]")
    else:
        told, other = repr(before), repr(now)
        same = next((i for i, (a, b) in enumerate(zip(told, other, strict=False)) if a != b), 0)
        first = max(0, same - _BEFORE) if max(len(told), len(other)) > _SHOWN else 0
        yield f"{path}: {_cut(told, first)}, now {_cut(other, first)}"


def _cut(text: str, first: int) -> str:
    return ("..." if first else "") + text[first : first + _SHOWN]
