"""`UniformTextPipeline` over `UniformDiffusionScheduler`."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from redge_guidance.hosts.base import Drawn, Host, field_of, ids_in, is_a, share_done, steps_left
from redge_guidance.hosts.masked_text import step_ahead
from redge_guidance.hosts.registry import register_host
from redge_guidance.step import DenoisingStep


@register_host
class UniformTextHost(Host):
    """Every token that was not given is drawn anew in every step; the pipeline says which were."""

    description = (
        "UniformTextPipeline (corrector steps too): all tokens that were not given, at scheduler.step and step_correct"
    )
    seams = ("step", "step_correct")
    tested_with: ClassVar[dict[str, str]] = {"diffusers": "0.40 to 0.42"}

    @classmethod
    def matches(cls, pipe: Any) -> bool:
        return is_a(pipe, "UniformTextPipeline") and is_a(pipe.scheduler, "UniformDiffusionScheduler")

    def before(self) -> tuple[Any, Callable[[dict[str, Any]], DenoisingStep]] | None:
        return self.pipe.model, lambda arguments: step_ahead(self.pipe)

    def read(self, seam: str, arguments: Mapping[str, Any]) -> DenoisingStep:
        drawing = self.pipe.drawing
        return DenoisingStep(
            logits=arguments["model_output"],
            ids=arguments["sample"],
            free=drawing.canvas.free,
            attention_mask=drawing.canvas.attention_mask,
            temperature=1.0,  # the pipeline has tempered the logits, and forbidden the reserved tokens
            progress=share_done(self.pipe.scheduler.timesteps, arguments["timestep"]),
            tokenizer=self.pipe.tokenizer,
            given=drawing.canvas.given,
            prompts=drawing.prompts,
            generator=arguments.get("generator"),
            ends=self.pipe.ends,
            unending=drawing.canvas.unending,
            lead=drawing.canvas.lead,
            chat=drawing.chat,
            held=drawing.canvas.free if seam == "step_correct" else None,
            spent=drawing.spends_logits,
            greedy=seam == "step" and arguments.get("temperature") == 0,
            independent=seam == "step",
            redraws=steps_left(self.pipe.scheduler.timesteps, arguments["timestep"]),
        )

    def finished(self, result: Any) -> Tensor | None:
        return ids_in(result, "sequences")

    def after(self, seam: str, step: DenoisingStep, output: Any) -> Drawn:
        """Of a step every clean token; of a corrector sweep what it has changed."""
        if seam == "step_correct":
            return super().after(seam, step, output)
        clean: Tensor = field_of(output, "sampled_tokens", 1)
        return Drawn(clean.where(step.free, step.ids), step.free)
