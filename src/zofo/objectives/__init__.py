"""What training minimises, and what evaluation scores: one number per example."""

from zofo.objectives.generation import Generation, answer_notes, drawing, generate, generation_rows
from zofo.objectives.kl import AsBase, less_kl
from zofo.objectives.objectives import (
    OBJECTIVES,
    REWARD,
    TrainingObjective,
    build_objective,
    default_objective,
    objective_maker,
    reward_objective,
)
from zofo.objectives.packaged_rewards import REWARDS
from zofo.objectives.rewards import Reward, Rewards, WeightedReward, as_rewards, aside, is_aside, load_reward
from zofo.objectives.scoring import (
    candidate_scores,
    classification_loss,
    head_scores,
    packing_limit,
    scores,
    token_loss,
)

__all__ = [
    "OBJECTIVES",
    "objective_maker",
    "REWARD",
    "REWARDS",
    "AsBase",
    "Generation",
    "Reward",
    "Rewards",
    "TrainingObjective",
    "WeightedReward",
    "as_rewards",
    "aside",
    "load_reward",
    "answer_notes",
    "build_objective",
    "candidate_scores",
    "classification_loss",
    "default_objective",
    "drawing",
    "generate",
    "generation_rows",
    "head_scores",
    "is_aside",
    "less_kl",
    "packing_limit",
    "reward_objective",
    "scores",
    "token_loss",
]
