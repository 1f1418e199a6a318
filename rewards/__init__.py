"""How good is this text, or this image? Nothing here knows of diffusion."""

from redge_guidance.reward import ImageReward, Reward, RewardSum
from redge_guidance.rewards.black_box import BlackBoxReward
from redge_guidance.rewards.clip import AestheticReward, CLIPReward, PreferenceReward
from redge_guidance.rewards.fluency import FluencyReward
from redge_guidance.rewards.image_classifier import ClassifierReward
from redge_guidance.rewards.length import LengthReward
from redge_guidance.rewards.lexical import LexicalReport, LexicalReward
from redge_guidance.rewards.preference_model import PreferenceModelReward
from redge_guidance.rewards.sentence_similarity import SentenceSimilarityReward
from redge_guidance.rewards.sequence_classifier import SequenceClassifierReward

__all__ = [
    "AestheticReward",
    "BlackBoxReward",
    "CLIPReward",
    "ClassifierReward",
    "FluencyReward",
    "ImageReward",
    "LengthReward",
    "LexicalReport",
    "LexicalReward",
    "PreferenceModelReward",
    "PreferenceReward",
    "Reward",
    "RewardSum",
    "SentenceSimilarityReward",
    "SequenceClassifierReward",
]
