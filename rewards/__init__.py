"""How good is this text? Nothing here knows of diffusion."""

from redge_guidance.reward import Reward, RewardSum
from redge_guidance.rewards.black_box import BlackBoxReward
from redge_guidance.rewards.fluency import FluencyReward
from redge_guidance.rewards.length import LengthReward
from redge_guidance.rewards.lexical import LexicalReport, LexicalReward
from redge_guidance.rewards.preference_model import PreferenceModelReward
from redge_guidance.rewards.sentence_similarity import SentenceSimilarityReward
from redge_guidance.rewards.sequence_classifier import SequenceClassifierReward

__all__ = [
    "BlackBoxReward",
    "FluencyReward",
    "LengthReward",
    "LexicalReport",
    "LexicalReward",
    "PreferenceModelReward",
    "Reward",
    "RewardSum",
    "SentenceSimilarityReward",
    "SequenceClassifierReward",
]
