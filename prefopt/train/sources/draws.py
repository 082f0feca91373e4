"""Gives the random numbers of samples: a function of the seed, the rollout and the prompt."""

from __future__ import annotations

import numpy as np

TEXTS, LABELS = 0, 1  # what random numbers are drawn for


def generator(seed: int, number: int, prompt: int, purpose: int) -> np.random.Generator:
    """The generator of one prompt in one rollout: neither other prompts nor their order change what it gives.

    Args:
        seed: of the run.
        number: of the rollout, counted from 0.
        prompt: the stable integer of the prompt's id.
        purpose: TEXTS or LABELS.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, number, prompt, purpose])))
