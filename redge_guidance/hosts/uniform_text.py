"""`UniformTextPipeline` over diffusers' `DiscreteDDIMScheduler`."""

from typing import Any

from redge_guidance.hosts.base import DenoisingStep, Host, is_a
from redge_guidance.text import generated_after


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
        free = self.pipe._hidden
        return DenoisingStep(
            logits=arguments["model_output"],
            ids=arguments["sample"],
            free=free,
            attention_mask=self.pipe._attention_mask,
            temperature=1.0,  # the pipeline has tempered the logits, and forbidden the reserved tokens
            progress=int(arguments["timestep"]) / self.pipe.scheduler.num_inference_steps,
            tokenizer=self.pipe.tokenizer,
            given=generated_after(free),
        )
