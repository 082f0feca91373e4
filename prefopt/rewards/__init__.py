"""Rewards: prompts and the texts written behind them in, one score each out."""

from prefopt.rewards.combine import combined
from prefopt.rewards.reward import Answer, Reward, from_function

__all__ = ["Answer", "Reward", "combined", "from_function"]
