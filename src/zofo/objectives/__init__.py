"""What is minimised, and scored: one number for each example."""

from zofo.objectives.classification import candidate_scores, classification_loss, packing_limit

__all__ = ["candidate_scores", "classification_loss", "packing_limit"]
