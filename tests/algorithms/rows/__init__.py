"""The table's rows by family; importing them fills it."""

from algorithms.rows import generalized, likelihood, policy_gradient, preference, reward_model

__all__ = ["generalized", "likelihood", "policy_gradient", "preference", "reward_model"]
