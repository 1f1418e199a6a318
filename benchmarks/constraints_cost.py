"""What a constrained step costs beside the model's own, and at the size of a large model; a line of JSON each.

    python benchmarks/constraints_cost.py --output benchmarks/results/constraints_cost.json

On the embedded model: 16 texts of 64 positions, all of them free, 12,289 tokens; the model's own step is its forward
pass and the scheduler's step, the constrained one what `guide` adds to it. In turn, medians. At 126,464 tokens: one
text of 128 positions, logits drawn at random, what guidance does with them, two threads.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from automata import of_size
from report import environment, save

from redge_guidance.constraints import Constraint, JsonSchemaConstraint, RegexConstraint, WordConstraint
from redge_guidance.guidance import Guidance
from redge_guidance.pipelines import MaskedTextPipeline
from redge_guidance.prediction import HostLogits
from redge_guidance.step import DenoisingStep

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "mood": {"enum": ["good", "bad"]},
    },
    "required": ["name", "age", "mood"],
}


def small() -> dict[str, Constraint]:
    return {
        "a date": RegexConstraint(r"\d{4}-\d{2}-\d{2}"),
        "a sentence of small letters": RegexConstraint(r"[A-Z][a-z ,']{10,38}[.?!]"),
        "a word": WordConstraint("music"),
        "three words": WordConstraint(["music", "Tom", "never"]),
        "a JSON object": JsonSchemaConstraint(SCHEMA),
    }


def large() -> dict[str, Constraint]:
    return {
        "a date": RegexConstraint(r"\d{4}-\d{2}-\d{2}"),
        "up to 200 letters": RegexConstraint(r"[a-zA-Z ]{0,200}"),
        "a word": WordConstraint("music"),
        "a JSON object": JsonSchemaConstraint(SCHEMA),
    }


def step_of(logits: torch.Tensor, tokenizer: object, mask: int | None = None) -> DenoisingStep:
    ids = torch.zeros(logits.shape[:2], dtype=torch.long)
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    return DenoisingStep(
        logits, ids, everywhere, everywhere, 1.0, 0.0, tokenizer, reserved=() if mask is None else (mask,),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def rows_of_embedded(rounds: int) -> list[dict[str, object]]:
    pipe = MaskedTextPipeline.from_pretrained("builtin:tatoeba-masked")
    mask = pipe.tokenizer.mask_token_id
    ids = torch.full((16, 64), mask)
    text = torch.ones_like(ids, dtype=torch.bool)
    pipe.scheduler.set_timesteps(64)
    found = []
    with torch.no_grad():
        logits = pipe._logits(ids, text)

        def own() -> None:
            now = pipe._without_suppressed(pipe._logits(ids, text), None)
            pipe.scheduler.step(now, pipe.scheduler.timesteps[0], ids, mask_token_id=mask)

        step = step_of(logits, pipe.tokenizer, mask)
        for name, constraint in small().items():
            guidance = Guidance(constraint)
            built = seconds(lambda: guidance(step))  # noqa: B023 - called at once
            own()
            times = [(seconds(own), seconds(lambda: guidance(step))) for _ in range(rounds)]  # noqa: B023
            mine, theirs = (statistics.median(column) for column in list(zip(*times, strict=True))[::-1])
            automaton = guidance._form._conditioning.automaton  # type: ignore[union-attr]
            found.append({
                "model": "tatoeba-masked", "texts": 16, "positions": 64, "vocabulary": logits.shape[-1],
                "constraint": name, "states": automaton.table.shape[0], "classes": automaton.table.shape[1],
                "first_call_s": built, "model_step_s": theirs, "constrained_s": mine, "share": mine / theirs,
            })  # fmt: skip
            print(found[-1], flush=True)
    return found


def rows_of_large(rounds: int, path: str) -> list[dict[str, object]]:
    torch.set_num_threads(2)
    with open(path, encoding="utf-8") as file:
        tokenizer = of_size(126_464, file.read(6_000_000))
    logits = 3 * torch.randn(1, 128, len(tokenizer), generator=torch.Generator().manual_seed(0))
    step, found = step_of(logits, tokenizer), []
    for name, constraint in large().items():
        guidance = Guidance(constraint)
        built = seconds(lambda: guidance(step))  # noqa: B023
        times = [seconds(lambda: guidance(step)) for _ in range(rounds)]  # noqa: B023
        copies = [seconds(lambda: HostLogits(step).logits().softmax(-1)) for _ in range(rounds)]
        automaton = guidance._form._conditioning.automaton  # type: ignore[union-attr]
        found.append({
            "texts": 1, "positions": 128, "vocabulary": len(tokenizer), "constraint": name, "threads": 2,
            "states": automaton.table.shape[0], "classes": automaton.table.shape[1], "first_call_s": built,
            "constrained_s": statistics.median(times), "softmax_s": statistics.median(copies),
        })  # fmt: skip
        print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", default="../shared/data/tatoeba-english.txt", help="what the tokens are pieces of")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="of the embedded model")
    parser.add_argument("--output")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = environment("transformers", "numpy")
    report |= {"seed": 0, "rounds": arguments.rounds}
    report["embedded"] = rows_of_embedded(arguments.rounds)
    report["large"] = rows_of_large(arguments.rounds, arguments.text)
    if arguments.output:
        save(arguments.output, report)


if __name__ == "__main__":
    main()
