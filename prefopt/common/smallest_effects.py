"""States the smallest effects that matter, and judges by them: one rule and one vocabulary for runs and comparisons.

A comparison's interval is corrected for all its pairs and holds the noise of seeds; a run's is two standard errors, and
says nothing of other seeds.
"""

from __future__ import annotations

from typing import Literal

Verdict = Literal["better", "worse", "tie", "cannot_tell"]

MARGIN = 0.1  # nats a pair: the odds of the better answer rise by a tenth
PER_TOKEN = 0.01  # nats a token
SHARE = 0.01  # of pairs ranked right or texts preferred: one in a hundred
WORLD_REWARD = 0.05  # of a world's exact reward; one text differs from another by 1.2 (standard deviation)
DEVIATIONS = 0.05  # of a reward with a scale of its own: standard deviations over prompts
LENGTH = 0.05  # of the mean length of the base model's texts: one token in twenty


def verdict(difference: float, half_width: float, least: float, *, better: int = 1) -> Verdict:
    """Judge a difference by its interval and by the smallest size that matters.

    Better or worse: the interval excludes 0, and the difference is at least `least`. A tie is equivalence: the whole
    interval lies closer to 0 than `least`. All else is "cannot tell".

    Args:
        difference: the figure minus what it is compared with.
        half_width: half the width of the difference's interval; nan where the noise is unknown.
        least: the smallest size that matters, in the figure's unit; 0: every one does, so that nothing is a tie.
        better: 1 where more is better, -1 where less is.
    """
    size = abs(difference)
    if size > half_width and size >= least:
        return "better" if difference * better > 0 else "worse"
    return "tie" if size + half_width < least else "cannot_tell"
