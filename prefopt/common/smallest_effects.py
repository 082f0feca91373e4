"""States the smallest effects that matter, for runs and comparisons: nothing is called better or worse below them.

A comparison calls two methods tied where the interval of their difference holds none of these sizes. A run says
nothing of other seeds: it calls its model a tie with the base model where the change is smaller, or within its noise.
"""

from __future__ import annotations

MARGIN = 0.1  # nats a pair: the odds of the better answer rise by a tenth
PER_TOKEN = 0.01  # nats a token
SHARE = 0.01  # of pairs ranked right or texts preferred: one in a hundred
WORLD_REWARD = 0.05  # of a world's exact reward; one text differs from another by 1.2 (standard deviation)
DEVIATIONS = 0.05  # of a reward with a scale of its own: standard deviations over prompts
