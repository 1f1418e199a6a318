"""Settings of the authors' samplers in the words of our pipelines: `(of the scheduler, of the call)`."""

from typing import Any

How = tuple[dict[str, Any], dict[str, Any]]


class NotComparedError(Exception):
    """There is no counterpart to compare with; the message says of what."""


def _llada(pipe: Any, settings: dict[str, Any], inputs: dict[str, Any]) -> How:
    words = pipe.tokenizer
    turn = "<|eot_id|>" if "<|eot_id|>" in words.get_vocab() else "<|role_end|>"
    call = {
        "gen_length": settings["gen_length"],
        "block_length": settings["block_length"],
        "num_inference_steps": settings["steps"],
        "guidance_scale": 1 + settings.get("cfg_scale", 0.0),
    }
    if settings.get("logits_eos_inf"):
        call["suppress_tokens"] = [words.eos_token_id]
    if settings.get("confidence_eos_eot_inf"):  # without temperature the script acts on both
        call["late_tokens"] = [words.eos_token_id, words.convert_tokens_to_ids(turn)]
    return {}, call


def _dream(pipe: Any, settings: dict[str, Any], inputs: dict[str, Any]) -> How:
    if settings.get("add_bos_token") is False:
        raise NotComparedError("a text that does not begin with the beginning-of-text token")
    order = "ancestral" if settings["alg"] == "origin" else settings["alg"]
    call = {"gen_length": settings["max_new_tokens"], "num_inference_steps": settings["steps"], "top_p": 1.0}
    return {"unmasking_order": order}, call


def _blocks(pipe: Any, settings: dict[str, Any], prompt: str) -> int:
    block, given = settings["block_length"], len(pipe.tokenizer(prompt).input_ids)
    return -(-(given + settings["gen_length"]) // block) - given // block


def _sdar(pipe: Any, settings: dict[str, Any], inputs: dict[str, Any]) -> How:
    order = "left_to_right" if settings["remasking_strategy"] == "sequential" else "maskgit_plus"
    steps = settings["denoising_steps"] * _blocks(pipe, settings, inputs["prompts"][0])
    call = {"gen_length": settings["gen_length"], "num_inference_steps": steps}
    return {"unmasking_order": order, "confidence_threshold": settings.get("confidence_threshold")}, call


def _llada2(pipe: Any, settings: dict[str, Any], inputs: dict[str, Any]) -> How:
    steps = settings["steps"] * _blocks(pipe, settings, inputs["prompts"][0])
    call = {"gen_length": settings["gen_length"], "num_inference_steps": steps}
    return {"confidence_threshold": settings["threshold"]}, call


def _fast_dllm_v2(pipe: Any, settings: dict[str, Any], inputs: dict[str, Any]) -> How:
    if settings.get("use_block_cache"):
        raise NotComparedError("the cache within a block, which changes the tokens")
    given = len(pipe.tokenizer(inputs["prompts"][0]).input_ids)
    call = {"gen_length": settings["max_new_tokens"] - given, "block_length": settings["small_block_size"]}
    return {"confidence_threshold": settings["threshold"]}, call


def _bd3lm(pipe: Any, settings: dict[str, Any], inputs: dict[str, Any]) -> How:
    blocks = settings["num_strides"]
    return {}, {"gen_length": settings["block_size"] * blocks - 1, "num_inference_steps": blocks}


def _mdlm(pipe: Any, settings: dict[str, Any], inputs: dict[str, Any]) -> How:
    strides, stride = settings["num_strides"], settings["stride_length"]
    length = settings["length"] + strides * stride
    return {}, {"gen_length": length, "stride_length": stride, "num_inference_steps": 1 + strides}


GREEDY = {
    "mdlm": _mdlm,
    "llada": _llada,
    "dream": _dream,
    "sdar": _sdar,
    "llada2": _llada2,
    "fast-dllm-v2": _fast_dllm_v2,
    "bd3lm": _bd3lm,
}
