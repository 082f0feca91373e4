"""What makes the result of a comparison weaker, as sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prefopt.compare.spec import AGAIN, BASE, SFT, WRONG_SIGN, Comparison
from prefopt.compare.statistics import MIN_PROMPTS, Pair, verdict_of

if TYPE_CHECKING:
    from prefopt.compare.results import Standing

Floats = NDArray[np.float64]
FEW_TRIALS, FEW_SEEDS, FEW_PROMPTS = 3, 3, 100
UNEQUAL_VALIDITY = 0.1  # difference of shares of valid texts that makes rewards hard to compare
UNEQUAL_KL = 2.0  # ratio of distances


def doubts(
    comparison: Comparison,
    standings: Sequence[Standing],
    pairs: Sequence[Pair],
    values: Mapping[str, Floats],
    *,
    shared: bool = True,
) -> list[str]:
    """The warnings of a result, controls that came out wrong first.

    Args:
        comparison: what was compared.
        standings, pairs: what came of it.
        values: (S, P) of every row that worked.
        shared: whether all rows are of the same seeds.
    """
    found = []
    for s in standings:
        if s.reason:
            found.append(f"{s.name}: {s.reason}")
        found += [f"{s.name}: {w}" for w in dict.fromkeys(w for result in s.row.finals for w in result.warnings)]
    edges = [f"{s.name}: {edge}" for s in standings for edge in s.edges]
    if edges and comparison.budget.trials >= FEW_TRIALS:
        found.append(f"{'; '.join(edges)}: what lies beyond was not tried, and may be better")
    if comparison.budget.trials == 1:
        found.append("one setting a method, taken without a trial: another may be better")
    elif comparison.budget.trials < FEW_TRIALS:
        found.append(f"{comparison.budget.trials} trials a method: too few to see whether a setting is at its best")
    if comparison.seeds == 1:
        found.append("1 seed: there are no verdicts, as nothing is known of what another seed would do")
    elif comparison.seeds < FEW_SEEDS:
        found.append(f"{comparison.seeds} seeds: the verdicts take all methods to be about as noisy as each other")
    if not shared:
        found.append("no two seeds worked for every method: each row is of its own, and rows without two seeds in "
                     "common cannot be told apart")  # fmt: skip
    prompts = max((v.shape[1] for v in values.values()), default=0)
    if prompts < MIN_PROMPTS:
        found.append(f"{prompts} test prompts: too few for a verdict, which takes at least {MIN_PROMPTS}")
    elif prompts < FEW_PROMPTS:
        found.append(f"{prompts} test prompts: few; more would narrow the intervals")
    rivals = [s for s in standings if s.value and not s.row.control and s.name != BASE]
    valid = {s.name: s.figures["valid"] for s in rivals if "valid" in s.figures}
    if valid and max(valid.values()) - min(valid.values()) > UNEQUAL_VALIDITY:
        low, high = min(valid, key=valid.__getitem__), max(valid, key=valid.__getitem__)
        found.append(f"unequal validity: {valid[low]:.0%} of {low}'s texts are valid, {valid[high]:.0%} of {high}'s")
    distances = {s.name: s.figures["kl"] for s in rivals if s.figures.get("kl", 0) > 0 and s.name != SFT}
    if distances and max(distances.values()) > UNEQUAL_KL * min(distances.values()):
        near, far = min(distances, key=distances.__getitem__), max(distances, key=distances.__getitem__)
        found.append(f"unequal distance: {near} went {distances[near]:.2f} nats from the start, {far} "
                     f"{distances[far]:.2f}; look at the metric at matched KL, too")  # fmt: skip
    return _broken_controls(comparison, pairs, values) + found


def _broken_controls(comparison: Comparison, pairs: Sequence[Pair], values: Mapping[str, Floats]) -> list[str]:
    """A comparison whose controls come out wrong cannot be trusted, and says so."""
    if not comparison.controls:
        return []
    first = comparison.methods[0].name
    again = f"{first}_{AGAIN}"
    if first not in values:
        return [f"CONTROL FAILED: {first} did not run, and the controls are held against it"]
    found = [
        f"CONTROL FAILED: {what} did not run; nothing tests these verdicts in its place"
        for name, what in ((again, f"{first} under a second name"), (WRONG_SIGN, "the wrong-sign loss"))
        if name not in values
    ]
    twin, wrong = verdict_of(pairs, first, again), verdict_of(pairs, WRONG_SIGN, first)
    if twin is not None and twin.verdict != "cannot_tell":
        found.append(f"CONTROL FAILED: {first} was told from itself under a second name; do not trust these verdicts")
    if wrong is not None and wrong.verdict != "worse":
        found.append(f"CONTROL FAILED: the wrong-sign loss was not told to be worse than {first}; this comparison "
                     "has too few seeds, prompts or steps to tell anything")  # fmt: skip
    return found
