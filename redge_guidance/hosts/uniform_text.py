"""`UniformTextPipeline` over diffusers' `DiscreteDDIMScheduler`."""

from typing import Any

from redge_guidance.hosts.base import DenoisingStep, Host, is_a
from redge_guidance.text import generated_after, reserved_token_ids


class UniformTextHost(Host):
    """Every token that was not given is drawn anew in every step; the pipeline knows which were."""

    description = (
        "UniformTextPipeline with DiscreteDDIMScheduler (corrector steps too): all tokens that were not given, at "
        "scheduler.step and step_correct"
    )
    seams = ("step", "step_correct")

    @classmethod
    def matches(cls, pipe: Any) -> bool:
        return is_a(pipe, "UniformTextPipeline") and is_a(pipe.scheduler, "DiscreteDDIMScheduler")

    def read(self, seam: str, arguments: dict[str, Any]) -> DenoisingStep:
        logits, free = arguments["model_output"], self.pipe._hidden
        return DenoisingStep(
            logits=logits[free],
            ids=arguments["sample"],
            free=free,
            attention_mask=self.pipe._attention_mask,
            temperature=1.0 if seam == "step_correct" else arguments.get("temperature") or 1.0,
            progress=int(arguments["timestep"]) / self.pipe.scheduler.num_inference_steps,
            tokenizer=self.pipe.tokenizer,
            given=generated_after(free),
            reserved=reserved_token_ids(self.pipe.tokenizer, logits.shape[-1]),
        )
