"""Many samples: prompts and files in, records and files out, whatever interrupts it."""

from redge_guidance.generation.inputs import Input
from redge_guidance.generation.many import generate
from redge_guidance.generation.record import Record
from redge_guidance.generation.to_file import Summary, generate_to

__all__ = ["Input", "Record", "Summary", "generate", "generate_to"]
