"""What AFINN says of the texts that `run.py` drew toward a sentiment: a judge whose word list is another than VADER's.

The classifier that guides learned from VADER, which is the gold judge of these texts. AFINN (Nielsen, 2011) is another
list of words with their valences; a text has the sentiment on whose side the sum of its words is. The two differ on
real sentences as well: of sentences in which VADER finds a sentiment, AFINN finds it in `agreement`, and that share is
what "both" divided by "VADER" is to be held against.

    pip install afinn                                     # its code is GPL; nothing else here needs it
    python benchmarks/frontier/second_opinion.py --sentences tatoeba-english.txt
"""

import argparse
import random
import sys
from pathlib import Path

from redge_guidance.evaluate import cells
from redge_guidance.evaluate.judges import Vader
from redge_guidance.evaluate.statistics import interval

sys.path.insert(0, str(Path(__file__).parent.parent))
from report import environment, save

RESULTS = Path(__file__).parent.parent / "results"
FILES = ("methods-sentiment", "hacking-sentiment", "methods-uniform")
SIGNS = {"negative": -1, "positive": 1}


class Afinn:
    def __init__(self):
        from afinn import Afinn as Lexicon

        self._lexicon = Lexicon()

    def __call__(self, texts: list[str], label: str) -> list[bool]:
        """Whether the sum of the words' valences is on the side of a label."""
        return [SIGNS[label] * self._lexicon.score(text) > 0 for text in texts]


def agreement(sentences: list[str], vader: Vader, afinn: Afinn) -> float:
    """Share of the sentences in which VADER finds a sentiment that AFINN finds it in, too."""
    both = [found for label in SIGNS for found in _both(sentences, label, vader, afinn) if found[0]]
    return sum(second for _, second in both) / len(both)


def _both(texts: list[str], label: str, vader: Vader, afinn: Afinn) -> list[tuple[bool, bool]]:
    return list(zip(vader(texts, label), afinn(texts, label), strict=True))


def opinions(name: str, vader: Vader, afinn: Afinn) -> dict[str, list[tuple[bool, bool]]]:
    """By method, what the two say of every text; the first half of a cell was drawn toward negative."""
    found: dict[str, list[tuple[bool, bool]]] = {}
    for cell in cells(RESULTS / "frontier" / f"{name}.jsonl").values():
        texts = cell["texts"]
        halves = {"negative": texts[: (len(texts) + 1) // 2], "positive": texts[(len(texts) + 1) // 2 :]}
        for label, some in halves.items():
            found.setdefault(cell["method"], []).extend(_both(some, label, vader, afinn))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", required=True, help="one a line, of people")
    args = parser.parse_args()
    vader, afinn, results = Vader(), Afinn(), {}
    sentences = random.Random(0).sample(Path(args.sentences).read_text().splitlines(), 6000)
    agreed = agreement(sentences, vader, afinn)
    print(f"Of real sentences in which VADER finds a sentiment, AFINN finds it in {agreed:.1%}.")
    for name in FILES:
        print(f"\n### {name}\n\n| method | texts | VADER | AFINN | both | AFINN's share of VADER's |")
        print("|---" * 6 + "|")
        for method, found in opinions(name, vader, afinn).items():
            count, first, second = len(found), sum(a for a, _ in found), sum(b for _, b in found)
            both = sum(a and b for a, b in found)
            low, high = interval(second / count, count)
            row = {"texts": count, "vader": first / count, "afinn": second / count, "both": both / count}
            results[f"{name}: {method}"] = row
            share = f"{both / first:.0%}" if first else ""
            print(
                f"| {method} | {count} | {row['vader']:.1%} | {row['afinn']:.1%} ({low:.0%} to {high:.0%}) | "
                f"{row['both']:.1%} | {share} |"
            )
    told = environment() | {"agreement": agreed, "results": results}
    save(RESULTS / "second_opinion.json", told)


if __name__ == "__main__":
    main()
