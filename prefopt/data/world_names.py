"""The names of worlds, which `prefopt.worlds` builds."""

from __future__ import annotations

REVIEWS, INSTRUCTIONS = "world", "world/instructions"
WORLDS = (REVIEWS, INSTRUCTIONS)  # as paths of data, and as rewards
WORLD_MODELS = (REVIEWS, "world/base", INSTRUCTIONS)  # as paths of models; "world/base" is the first before its SFT
