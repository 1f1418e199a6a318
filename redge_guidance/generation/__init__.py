"""Many samples: prompts and files in, records and files out, whatever interrupts it."""

from redge_guidance.generation.many import generate
from redge_guidance.generation.record import Record

__all__ = ["Record", "generate"]
