"""Text pipelines, guided or not, as a model of lm-evaluation-harness: `--model redge`.

Importing `redge_guidance.harness.model` registers it. Versions of the harness that look for plugins find it by the
entry point `lm_eval.models` of this distribution; with others the command is `python -m redge_guidance.harness`.
"""
