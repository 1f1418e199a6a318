"""`python -m redge_guidance.harness ...`: the command `lm_eval`, which then knows `--model redge`."""

import importlib

if __name__ == "__main__":
    try:
        command = importlib.import_module("lm_eval.__main__").cli_evaluate
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        raise SystemExit("lm-evaluation-harness is not installed; pip install redge-guidance[lm-eval].") from error
    importlib.import_module("redge_guidance.harness.model")
    command()
