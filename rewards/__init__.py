"""How good is this text? Nothing here knows of diffusion."""

from redge_guidance.rewards.sequence_classifier import SequenceClassifierReward

__all__ = ["SequenceClassifierReward"]
