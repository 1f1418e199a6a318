"""Every setting that a file, the command line and Python have in common, by one name; imports nothing heavy."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from redge_guidance.setups.option import Group, Option

WORD, LENGTH = 15.0, 8.0  # units of reward of a wanted or banned word, of a word too few or too many
FORM = 15.0  # of a match of a regular expression
CLASSIFIER_TEMPERATURE = 8.0  # of a classifier of images: the reward goes on where the classifier is sure
MOST = 10**6  # of anything that is counted: more would fill the memory before it was refused

ESTIMATOR_NAMES = (
    "entropy_mix, gumbel_softmax, redge, redge_cov, reindge, reinforce_loo, reinmax, soft or straight_through"
)


_MODEL = (
    Option("model", "model", "text", "embedded checkpoint, folder, or hub id", default="builtin:tatoeba-masked"),
    Option("revision", "model", "text", "of the model at its hub: a branch, a tag or a commit"),
    Option("tokenizer", "model", "text", "folder or hub id, for a model that comes without one", metavar="NAME"),
    Option("family", "model", "text", "how the model is called, where its config does not say it", metavar="NAME"),
    Option("mask_token_id", "model", "integer", "the mask, where config and tokenizer do not say it", metavar="N"),
    Option("weights_only", "model", "flag", "also read weights from a pickle that holds nothing but weights"),
    Option("model_kwargs", "model", "value", "more for the loader of the model, such as '{variant: fp16}'"),
    Option("device", "model", "text", "such as cpu or cuda:0", default="cpu"),
    Option("dtype", "model", "text", "of the models", choices=("float32", "bfloat16", "float16"), default="float32"),
    Option("device_map", "model", "value", "how a model is spread over devices, such as auto; instead of --device"),
    Option(
        "cpu_offload",
        "model",
        "text",
        "keep models on the CPU until they are called, whole or layer by layer",
        choices=("model", "sequential"),
    ),
    Option("adapter", "model", "text", "PEFT adapter on the generator, folder or hub id", metavar="NAME"),
    Option("compile", "model", "value", "torch.compile the generator: true, or a mode such as reduce-overhead"),
    Option("trust_remote_code", "model", "flag", "run Python code that comes with a checkpoint"),
)
_REWARD = (
    Option(
        "reward",
        "reward",
        "rewards",
        "classifier of texts or images, or CLIP model, named like --model; or a ready-made reward with its arguments, "
        "such as 'LengthReward: {maximum: 8, weight: 2}'; may be repeated",
        default="an embedded classifier",
    ),
    Option("label", "reward", "label", "label of the classifier to steer toward, by name or index"),
    Option(
        "reward_temperature",
        "reward",
        "number",
        "divides the classifier's logits: the larger, the less the reward cares how sure the classifier is",
        default=f"1 for texts, {CLASSIFIER_TEMPERATURE:g} for images",
        metavar="T",
    ),
)
_CONSTRAINT = (
    Option("regex", "constraint", "text", "texts that match this regular expression as a whole", metavar="PATTERN"),
    Option("json_schema", "constraint", "text", "JSON texts of the schema in this file", metavar="FILE"),
    Option("choices", "constraint", "texts", "one of these texts, to the letter", metavar="TEXT", several=True),
    Option("want", "constraint", "texts", "words or phrases to use", metavar="TEXT", several=True),
    Option("ban", "constraint", "texts", "words or phrases to avoid", metavar="TEXT", several=True),
    Option("min_words", "constraint", "integer", "write no less than N words", lowest=1, metavar="N"),
    Option("max_words", "constraint", "integer", "write no more than N words", lowest=1, metavar="N"),
    Option("prefix", "constraint", "text", "begin with this text, to the letter", metavar="TEXT"),
    Option("suffix", "constraint", "text", "end with this text, to the letter", metavar="TEXT"),
    Option(
        "constraints",
        "constraint",
        "constraints",
        "any constraint with its arguments, such as '{kind: length, maximum: 40, unit: characters}'; may be repeated",
        metavar="CONSTRAINT",
        short=("--constraint",),
    ),
    Option(
        "soft",
        "constraint",
        "flag",
        "make rewards, which the model may weigh, of --want, --ban, --regex, --min-words and --max-words",
    ),
    Option("answer_only", "constraint", "flag", "judge texts without their prompts", default="in chats"),
    Option("most_states", "constraint", "integer", "of the automaton of a constraint", lowest=1, metavar="N"),
)
_GUIDANCE = (
    Option(
        "scale",
        "guidance",
        "number",
        "a fixed strength of guidance, in nats a unit of reward, 0 is off; under --soft a word wanted or banned is "
        f"{WORD:g} units, each word too few or too many {LENGTH:g}, a match {FORM:g}",
        optional=True,
        default="what --target and --kl-budget ask for",
    ),
    Option(
        "target",
        "guidance",
        "number",
        "reward that a sample is to reach, in units of the reward; one that has reached it is left alone",
        optional=True,
        default="the reward's usual one, such as a probability of 0.95 of a label",
    ),
    Option(
        "estimator",
        "guidance",
        "value",
        f"{ESTIMATOR_NAMES}; with settings as in 'redge: {{num_steps: 8}}'",
        default="soft",
    ),
    Option(
        "update",
        "guidance",
        "value",
        "natural or adam; with settings as in 'natural: {num_updates: 4}'",
        default="natural, of images with 3 updates",
    ),
    Option(
        "num_draws",
        "guidance",
        "integer",
        "relaxed samples an update of guidance",
        lowest=1,
        optional=True,
        default="1, 4 where a budget sets the price, 32 for a reward without gradient",
    ),
    Option("every", "guidance", "integer", "ask the reward at every n-th step", lowest=1, metavar="N", default="2"),
    Option(
        "schedule",
        "guidance",
        "text",
        "how strong guidance is in the course of the steps",
        choices=("constant", "linear", "early"),
        default="constant",
    ),
    Option("warm_start", "guidance", "number", "share of the step before that a step begins from", default="0.5"),
    Option("start", "guidance", "number", "share of denoising steps done, from which on is guided", default="0"),
    Option("stop", "guidance", "number", "share of denoising steps done, up to which is guided", default="1"),
    Option(
        "kl_budget",
        "guidance",
        "number",
        "most nats per free token that guidance may move away from the model in a step; without --scale also how much "
        "a unit of reward may cost",
        optional=True,
        default="1, of images 2, or what a label of texts is worth; with --scale none",
    ),
    Option(
        "max_tilt",
        "guidance",
        "number",
        "most nats by which a token's log q - log p may be above the mean of its position",
        optional=True,
        default="7 for a label of texts; else, and with --scale, no limit",
    ),
    Option(
        "support",
        "guidance",
        "integer",
        "likeliest tokens of every position that guidance works on, or none for all",
        lowest=2,
        optional=True,
        default="128",
    ),
)
_CALL = (
    Option("num_inference_steps", "call", "integer", "denoising steps", lowest=1, default="the pipeline's"),
    Option("temperature", "call", "numbers", "of the sampler, 0 is greedy; of images also one a step"),
    Option("top_k", "call", "integer", "draw from the k likeliest tokens", lowest=1, metavar="K"),
    Option("top_p", "call", "number", "draw from the likeliest tokens of total probability p", metavar="P"),
    Option("gen_length", "call", "integer", "new tokens after every prompt", lowest=1, metavar="N"),
    Option("block_length", "call", "integer", "draw blocks of N tokens one after the other", lowest=1, metavar="N"),
    Option(
        "stride_length", "call", "integer", "texts longer than the model: N tokens at a time", lowest=1, metavar="N"
    ),
    Option("suppress_tokens", "call", "integers", "ids of tokens that are not generated", metavar="IDS"),
    Option("late_tokens", "call", "integers", "ids of tokens that come last", metavar="IDS"),
    Option("guidance_scale", "call", "numbers", "classifier-free guidance, 1 is none; of images also one a step"),
    Option("use_chat_template", "call", "flag", "take every prompt for the turn of a user of a chat"),
    Option("use_cache", "call", "flag", "keep finished blocks in a cache, where the model takes one", default="yes"),
    Option(
        "noise_removal",
        "call",
        "text",
        "last step of uniform diffusion",
        choices=("ancestral", "greedy"),
        metavar="HOW",
    ),
    Option("negative_prompt", "call", "text", "what a model of images is told instead of no text", metavar="TEXT"),
)
_RUN = (
    Option(
        "prompt",
        "run",
        "texts",
        "text to continue, or to fill in where it says [MASK], or what images are to show; may be repeated",
    ),
    Option(
        "class_labels",
        "run",
        "integer",
        "class of the images that a class-conditional model draws",
        metavar="N",
        short=("--class-label",),
    ),
    Option(
        "input",
        "run",
        "text",
        "prompts: .txt, .jsonl, .csv or .parquet, the folder of a dataset, or - for standard input",
        metavar="FILE",
    ),
    Option("prompt_field", "run", "text", "which field of the input is the prompt", default="prompt"),
    Option("limit", "run", "integer", "read no more than N entries of the input", lowest=1, metavar="N"),
    Option(
        "output",
        "run",
        "text",
        "every sample as soon as it is ready: .jsonl, .csv, .txt or .parquet, a folder of images, or - for standard "
        "output; started again, a run goes on where it was stopped",
        metavar="FILE",
    ),
    Option("overwrite", "run", "flag", "begin the output anew, whatever is there"),
    Option("batch_size", "run", "integer", "samples that are drawn together", lowest=1, default="16", metavar="N"),
    Option("nats", "run", "flag", "also the model's bound on -log p of every text"),
    Option("samples_per_prompt", "run", "integer", "texts or images for every prompt", lowest=1, default="8"),
    Option("seed", "run", "integer", "of the sampler and of guidance", default="0"),
)
_REPORT = (
    Option(
        "out",
        "report",
        "text",
        "image file for a contact sheet, unguided above guided images; the trace of guidance goes to a file beside it "
        "(implies --baseline)",
        metavar="FILE",
    ),
    Option(
        "json",
        "report",
        "text",
        "also write one JSON object a sample to FILE, or, for -, to standard output, and the report to standard error",
        metavar="FILE",
    ),
    Option("baseline", "report", "flag", "also run without guidance, and compare"),
)

OPTIONS: dict[str, Option] = {
    option.name: option for option in (*_MODEL, *_REWARD, *_CONSTRAINT, *_GUIDANCE, *_CALL, *_RUN, *_REPORT)
}


def names_of(*groups: Group) -> tuple[str, ...]:
    """Names of the settings of some groups."""
    return tuple(option.name for option in OPTIONS.values() if option.group in groups)


def nearest(name: Any, known: Sequence[str]) -> str:
    """What an error says after a name that is not known: the nearest one, or all.

    >>> nearest("temprature", ["temperature", "top_k"])
    'did you mean `temperature`?'
    """
    found = get_close_matches(str(name), known, n=1, cutoff=0.6)
    return f"did you mean `{found[0]}`?" if found else f"known are {', '.join(sorted(known))}."
