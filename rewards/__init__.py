"""How good is this text, or this image? Nothing here knows of diffusion."""

from redge_guidance.reward import ImageReward, Reward, RewardSum
from redge_guidance.rewards.black_box import BlackBoxReward
from redge_guidance.rewards.functions import CompletionsReward
from redge_guidance.rewards.image.aesthetic import AestheticReward
from redge_guidance.rewards.image.classifier import ImageClassifierReward
from redge_guidance.rewards.image.clip import CLIPReward
from redge_guidance.rewards.image.preference import ImagePreferenceReward
from redge_guidance.rewards.text.all_different import AllDifferentReward
from redge_guidance.rewards.text.classifier import TextClassifierReward
from redge_guidance.rewards.text.fluency import FluencyReward
from redge_guidance.rewards.text.length import LengthReward
from redge_guidance.rewards.text.lexical import LexicalReport, LexicalReward
from redge_guidance.rewards.text.pairs import PairReward
from redge_guidance.rewards.text.preference import TextPreferenceReward
from redge_guidance.rewards.text.regular import RegexReward
from redge_guidance.rewards.text.similarity import SentenceSimilarityReward

__all__ = [
    "AestheticReward",
    "AllDifferentReward",
    "BlackBoxReward",
    "CLIPReward",
    "CompletionsReward",
    "FluencyReward",
    "ImageClassifierReward",
    "ImagePreferenceReward",
    "ImageReward",
    "LengthReward",
    "LexicalReport",
    "LexicalReward",
    "PairReward",
    "RegexReward",
    "Reward",
    "RewardSum",
    "SentenceSimilarityReward",
    "TextClassifierReward",
    "TextPreferenceReward",
]
