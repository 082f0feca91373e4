"""Lists what weakens the outcome of a comparison, as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from prefopt.compare.outcome import Standing
from prefopt.compare.spec import AGAIN, BASE, CHANGES, SFT, WRONG_SIGN, Comparison
from prefopt.compare.statistics import MIN_PROMPTS, Pair, verdict_of
from prefopt.losses.registry import loss_class

Floats = NDArray[np.float64]
FEW_TRIALS, FEW_SEEDS, FEW_PROMPTS = 3, 5, 100
UNEQUAL_VALIDITY = 0.1  # difference in the share of valid texts that makes rewards hard to compare
SPACE = "search_space"
UNEQUAL_KL = 2.0  # ratio of KLs likewise
LEAST_KL = 0.05  # nats a text: models that moved less all write what the base model writes


def caveats(
    comparison: Comparison,
    standings: Sequence[Standing],
    pairs: Sequence[Pair],
    values: Mapping[str, Floats],
    *,
    shared: bool = True,
) -> list[str]:
    """Return the warnings about an outcome, failed controls first.

    Args:
        comparison: what was compared.
        standings, pairs: the outcome.
        values: (S, P) of every row that worked.
        shared: whether all rows have the same seeds.
    """
    found = _failed_controls(comparison, pairs, values)
    for s in standings:
        if s.reason:
            found.append(f"{s.name}: {s.reason}")
        found += [f"{s.name}: {w}" for w in dict.fromkeys(w for result in s.runs.finals for w in result.warnings)]
    prompts = max((v.shape[1] for v in values.values()), default=0)
    found += [
        *_of_search(comparison, standings),
        *_of_bound(comparison, standings),
        *_of_samples(comparison, prompts, shared),
        *_of_models(standings),
    ]
    return found


def _of_search(comparison: Comparison, standings: Sequence[Standing]) -> Iterator[str]:
    trials = comparison.budget.trials
    for s in standings:
        if s.runs.method is not None and not s.runs.control and not hasattr(loss_class(s.runs.method.loss), SPACE):
            yield (f"{s.name}: loss={s.runs.method.loss} declares no {SPACE}, so that only learning rates were tried; "
                   "declare one hyper-parameter and four values")  # fmt: skip
    edges = [f"{s.name}: {edge}" for s in standings for edge in s.edges]
    if edges and trials >= FEW_TRIALS:
        yield f"{'; '.join(edges)}: what lies beyond was not tried, and may be better"
    if trials == 1:
        yield "one setting per method, taken without a trial: another may be better"
    elif trials < FEW_TRIALS:
        yield f"{trials} trials per method: too few to tell whether a setting is at its best"


def _of_bound(comparison: Comparison, standings: Sequence[Standing]) -> Iterator[str]:
    """Say where `budget.max_kl`, which rejects trials alone, was not kept or could not be."""
    bound = comparison.budget.max_kl
    if bound is None:
        return
    trained = [s for s in standings if s.runs.method is not None and not s.runs.control]
    if any(r.ok and "kl" not in r.figures for s in trained for r in (*s.runs.trials, *s.runs.finals)):
        yield "no KL was measured: budget.max_kl did not apply"
    for s in trained:
        kl = [r.figures["kl"] for r in s.runs.finals if r.ok and "kl" in r.figures]
        if far := [value for value in kl if not value <= bound]:  # nan is past it
            yield f"{s.name}: {len(far)} of {len(kl)} final runs are past budget.max_kl={bound:g} (KL {max(far):.3g})"


def foreseen(comparison: Comparison, prompts: int) -> list[str]:
    """What will weaken the verdicts of a comparison, whatever its runs give.

    Args:
        comparison: what will be compared.
        prompts: the number of different test prompts.
    """
    found = list(_of_samples(comparison, prompts, shared=True))
    if prompts < MIN_PROMPTS:
        found.append(f"hold out {2 * MIN_PROMPTS} prompts or more (data.eval_records=N): half of them choose settings")
    return found


def _of_samples(comparison: Comparison, prompts: int, shared: bool) -> Iterator[str]:
    seeds = comparison.seeds
    if seeds == 1:
        yield "1 seed: there are no verdicts, because nothing shows what another seed would do"
    elif seeds < FEW_SEEDS:
        yield f"{seeds} seeds: few; only differences many times as large as the noise of a seed have a verdict"
    if not shared:
        yield ("no two seeds worked for every method: each row has its own seeds, and rows without two seeds in "
               "common cannot be told apart")  # fmt: skip
    if prompts < MIN_PROMPTS:
        yield f"{prompts} different test prompts: too few for a verdict, which takes at least {MIN_PROMPTS}"
    elif prompts < FEW_PROMPTS:
        yield f"{prompts} different test prompts: few; more would narrow the intervals"


def _of_models(standings: Sequence[Standing]) -> Iterator[str]:
    rivals = [s for s in standings if s.value and not s.runs.control and s.name != BASE]
    valid = {s.name: s.figures["valid"] for s in rivals if "valid" in s.figures}
    if valid and max(valid.values()) - min(valid.values()) > UNEQUAL_VALIDITY:
        low, high = min(valid, key=valid.__getitem__), max(valid, key=valid.__getitem__)
        yield f"unequal validity: {valid[low]:.0%} of {low}'s texts are valid, {valid[high]:.0%} of {high}'s"
    kl = {s.name: s.figures["kl"] for s in rivals if s.figures.get("kl", 0) > 0 and s.name != SFT}
    if kl and max(kl.values()) > max(UNEQUAL_KL * min(kl.values()), LEAST_KL):
        low, high = min(kl, key=kl.__getitem__), max(kl, key=kl.__getitem__)
        yield (f"unequal KL: {low} moved {kl[low]:z.2f} nats from the start, {high} {kl[high]:z.2f}; see the metric at "
               "matched KL, too")  # fmt: skip


def _failed_controls(comparison: Comparison, pairs: Sequence[Pair], values: Mapping[str, Floats]) -> list[str]:
    """Return why the outcome cannot be trusted, where a control came out wrong or did not run."""
    if not comparison.controls:
        return []
    found = []
    for online in (False, True):
        first = comparison.first_of(online=online)
        if first is not None and first.name not in values:
            found.append(f"CONTROL FAILED: {first.name} did not run, and the controls are compared with it")
        elif first is not None:
            found += _failed(
                first.name, _WRONG_ONLINE if online else {WRONG_SIGN: "the wrong-sign loss"}, pairs, values
            )
    return found


_WRONG_ONLINE = {f"{{first}}_{change}": f"{{first}} with its rewards {change}" for change in CHANGES}


def _failed(first: str, wrong: Mapping[str, str], pairs: Sequence[Pair], values: Mapping[str, Floats]) -> list[str]:
    """Return which controls of a method did not run, or did not come out as they must.

    Args:
        first: the name of the method.
        wrong: names and descriptions of the rows that must be worse than it.
        pairs, values: of the outcome.
    """
    again = f"{first}_{AGAIN}"
    wrong = {name.format(first=first): what.format(first=first) for name, what in wrong.items()}
    found = [
        f"CONTROL FAILED: {what} did not run, so nothing tests these verdicts"
        for name, what in {again: f"{first} under a second name", **wrong}.items()
        if name not in values
    ]
    twin = verdict_of(pairs, first, again)
    if twin is not None and twin.verdict in ("better", "worse"):
        found.append(
            f"CONTROL FAILED: {first} was found to differ from itself under a second name; do not trust these verdicts"
        )
    for name, what in wrong.items():
        pair = verdict_of(pairs, name, first)
        if pair is not None and pair.verdict != "worse":
            found.append(f"CONTROL FAILED: {what} was not found worse than {first}; this comparison has too few seeds, "
                         "prompts or steps to show anything")  # fmt: skip
    return found
