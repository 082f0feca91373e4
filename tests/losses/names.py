"""Names of the menu by where their records come from."""

from __future__ import annotations

from prefopt.losses import MENU, load_class
from prefopt.testing import example

REWARD_MODELS = sorted(name for name in MENU if example(load_class(name)).needs.reward_model)
ON_POLICY = sorted(n for n in MENU if (needs := example(load_class(n)).needs).on_policy or needs.opponent)
OFFLINE = sorted(set(MENU) - {*ON_POLICY, *REWARD_MODELS})  # these learn from the policy's own samples, too
