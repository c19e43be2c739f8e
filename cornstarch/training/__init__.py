"""Training: the loop, how far it is, and pictures of what came out of it."""

from cornstarch.training.loop import LoopConfig, StepRecord, fit, mean_loss

__all__ = ["LoopConfig", "StepRecord", "fit", "mean_loss"]
