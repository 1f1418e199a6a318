"""Tasks of the harness as files of a folder: lines of JSON beside YAML, nothing of them from a hub."""

import json

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/lines.jsonl
test_split: test
output_type: {kind}
doc_to_text: "{{{{text}}}}"
"""
CHOICE = """\
doc_to_target: answer
doc_to_choice: ["a b", "c", "d e d"]
metric_list:
  - metric: acc
"""
UNTIL = """\
doc_to_target: "{{want}}"
generation_kwargs:
  until: ["d"]
  max_gen_toks: 4
  do_sample: true
  temperature: 1.0
metric_list:
  - metric: exact_match
"""
ROLLING = """\
doc_to_target: "{{text}}"
metric_list:
  - metric: word_perplexity
"""
LINES = [
    {"text": "a b", "answer": 0, "want": "c"},
    {"text": "c d e", "answer": 2, "want": ""},
    {"text": "e", "answer": 1, "want": "a"},
]


def write(folder):
    """The files, and the names of the tasks."""
    lines = folder / "lines.jsonl"
    lines.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    tasks = {
        "tiny_choice": ("multiple_choice", CHOICE),
        "tiny_until": ("generate_until", UNTIL),
        "tiny_rolling": ("loglikelihood_rolling", ROLLING),
    }
    for name, (kind, more) in tasks.items():
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, folder=folder, kind=kind) + more)
    return list(tasks)
