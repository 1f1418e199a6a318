"""Tables that are finished: of what they were made, and whether the same is asked for again."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redge_guidance.generation.journal import stamp_of
from redge_guidance.generation.record import Record
from redge_guidance.generation.requests import Request


@dataclass(frozen=True)
class Finished:
    """What is known of a table whose parts are gone.

    Attributes:
        made, failed: how many records it has, and how many samples could not be drawn.
        asked: the digest of the requests that it was made from.
    """

    made: int
    failed: int
    asked: str

    def check(self, requests: Iterable[Request], path: Path) -> None:
        """A ValueError if these requests are others than those of the table."""
        digest = hashlib.blake2b(digest_size=16)
        for _ in noted(requests, digest):
            pass
        if digest.hexdigest() != self.asked:
            raise ValueError(
                f"`output` {path} is finished, and `prompts` were others then; take another output, or `overwrite`. A "
                ".jsonl can be gone on with."
            )


def noted(requests: Iterable[Request], digest: Any) -> Iterator[Request]:
    """The requests, each of which goes into the digest."""
    for request in requests:
        digest.update(f"{request.key} {stamp_of_request(request)} {request.line.error}\n".encode())
        yield request


def stamp_of_request(request: Request) -> str:
    """As `stamp_of`, of a record that is still to be made."""
    return stamp_of(Record.failed(request, "").to_dict())
