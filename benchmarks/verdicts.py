"""How often are verdicts wrong, and how often are they found? A simulation study of the rules for a verdict.

nice python benchmarks/verdicts.py [--families 2000] [--only NAME]   # 2 minutes of one core

Families of methods that are equally good, under noise that is equal or not, skewed, binary, or shared by prompts: a
family is wrong where any pair has a verdict. Then one method is better than the others by some standard deviations of a
training seed: how many of its pairs are found at the first step of Holm's procedure (with every pair still in the
family, so the later steps find a little more). `compare` is the rule that `prefopt.compare.statistics` has; the others
are what it was chosen over. All see the same figures.

- pooled: one variance of seeds for all methods, a pair's own where an F test says so at 1 % (the rule until 0.5);
- paired: a t test of the pair's differences, over its seeds alone;
- moderated: each method's variance shrunk to the others' (Smyth, 2004: limma);
- Welch: each method's own variance, and t for the prompts, too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markdown_tables import table
from numpy.typing import NDArray
from scipy import special
from statsmodels.stats.proportion import proportion_confint

from prefopt.compare.statistics import ALPHA, criteria

Floats = NDArray[np.float64]
RESULTS = Path(__file__).with_name("results") / "verdicts.json"
SEED_SD, PROMPT_SD, REST_SD = 0.1, 0.3, 0.5  # of a method's figure: by training seed, by prompt, by both
CHUNK = 4_000_000  # figures of pairs in memory at a time


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Families of one kind.

    Attributes:
        name: what is special about them.
        methods, seeds, prompts: the size of a family.
        noise: standard deviations of the methods' seeds, in units of SEED_SD.
        by_seed, by_prompt: the distribution of seeds and of prompts; the mean is 0 and the variance 1.
        shared: standard deviation of what a seed does to all methods, in units of SEED_SD.
        better: how much better the last method is, in units of SEED_SD.
        copies: near copies of each prompt; they are averaged where `averaged`.
    """

    name: str
    methods: int
    seeds: int
    prompts: int = 64
    noise: str = "equal"
    by_seed: str = "normal"
    by_prompt: str = "normal"
    shared: float = 0.0
    better: float = 0.0
    copies: int = 1
    averaged: bool = True


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return rng.normal(size=shape)


def _lognormal(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Log-normal with sigma = 1: skewness 6.2."""
    figures: Floats = (np.exp(rng.normal(size=shape)) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e)
    return figures


def _collapsing(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Normal, but one run in ten is worse by ten standard deviations."""
    figures: Floats = (rng.normal(size=shape) - 10 * (rng.random(shape) < 0.1) + 1) / np.sqrt(10)
    return figures


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Floats]] = {
    "normal": _normal,
    "log-normal": _lognormal,
    "collapsing": _collapsing,
}


def noise(kind: str, rng: np.random.Generator, families: int, methods: int) -> Floats:
    """(families, methods, 1, 1) standard deviations of the methods' seeds."""
    found = np.ones((families, methods))
    if kind == "one 10 x":
        found[:, 0] = 10
    elif kind == "one 3 x":
        found[:, 0] = 3
    elif kind == "half 10 x":
        found[:, : (methods + 1) // 2] = 10
    elif kind == "all differ":
        found = np.exp(rng.normal(0, 0.7, found.shape))
    sds: Floats = SEED_SD * found[..., None, None]
    return sds


def draw(scenario: Scenario, rng: np.random.Generator, families: int) -> Floats:
    """(families, methods, seeds, prompts) figures."""
    of, s = DISTRIBUTIONS, scenario
    distinct = s.prompts // s.copies
    size = (families, s.methods)
    of_seed = noise(s.noise, rng, *size) * of[s.by_seed](rng, (*size, s.seeds, 1))
    of_seed += s.shared * SEED_SD * rng.normal(size=(families, 1, s.seeds, 1))
    of_seed[:, -1] += s.better * SEED_SD
    if s.by_prompt.startswith("binary"):  # won with a probability that is drawn for each prompt, moved by the seed
        share = float(s.by_prompt.split()[1])
        level = special.logit(share) + rng.normal(size=(families, 1, 1, s.prompts)) + 2 * of_seed
        won = rng.random((*size, s.seeds, s.prompts)) < special.expit(level)
        return np.asarray(won, dtype=np.float64)
    own = PROMPT_SD * rng.normal(size=(*size, 1, distinct))
    if s.by_prompt != "normal":  # one method is skewed: its differences are, and those of the others are not
        own[:, 0] = 4 * PROMPT_SD * of[s.by_prompt](rng, (families, 1, distinct))
    rest = REST_SD * rng.normal(size=(*size, s.seeds, s.prompts))
    values: Floats = np.repeat(own, s.copies, -1) + of_seed + rest
    if s.copies > 1 and s.averaged:  # as prompts are that are nearly the same
        values = values.reshape(*values.shape[:-1], distinct, s.copies).mean(-1)
    return values


@np.errstate(divide="ignore", invalid="ignore")  # of binary figures, some vary nowhere
def rules(values: Floats) -> dict[str, NDArray[np.bool_]]:
    """Whether each rule tells a pair apart, (families, pairs), with every pair in the family."""
    _, methods, seeds, prompts = values.shape
    a, b = np.triu_indices(methods, 1)
    x, y = values[:, a], values[:, b]
    gap = x.mean(2) - y.mean(2)
    square = gap.mean(2) ** 2
    alpha = ALPHA / len(a)
    of_prompts = gap.var(2, ddof=1) / prompts * _t(prompts - 1, alpha) ** 2
    means = values.mean(3)
    centred = means - means.mean(2, keepdims=True)
    own = (x.mean(3) - y.mean(3)).var(2, ddof=1) / seeds
    paired = own * _t(seeds - 1, alpha) ** 2
    freedom = (methods - 1) * (seeds - 1)
    rest = ((centred - centred.mean(1, keepdims=True)) ** 2).sum((1, 2)) / freedom
    one = np.broadcast_to(2 * rest[:, None] / seeds, own.shape)
    noisier = special.fdtrc(seeds - 1, freedom, own / one) < 0.01
    pooled = np.where(noisier, paired, one * _t(freedom, alpha) ** 2)
    variance = (centred**2).sum(2) / (seeds - 1)
    limit = np.min([c.half_width(alpha) for c in criteria(x, y)], axis=0)
    found = {"pooled": pooled, "paired": paired, "moderated": _welch(*_moderated(variance, seeds - 1), a, b, alpha)}
    found["moderated"] /= seeds
    found["Welch"] = _welch(variance, np.full(len(values), seeds - 1.0), a, b, alpha) / seeds
    limits = {name: of_seeds + of_prompts for name, of_seeds in found.items()} | {"compare": limit**2}
    return {name: np.asarray(square > least) for name, least in limits.items()}


def _t(freedom: Any, alpha: float) -> Any:
    return special.stdtrit(freedom, 1 - alpha / 2)


def _welch(variance: Floats, freedom: Floats, a: Any, b: Any, alpha: float) -> Floats:
    """The sum of two variances, times the squared quantile of Satterthwaite's degrees of freedom."""
    total = variance[:, a] + variance[:, b]
    both = total**2 / (variance[:, a] ** 2 + variance[:, b] ** 2) * freedom[:, None]
    found: Floats = total * _t(both, alpha) ** 2
    return found


def _moderated(variance: Floats, freedom: int) -> tuple[Floats, Floats]:
    """Shrink (families, methods) variances to a prior fitted to their logarithms; and the degrees of freedom."""
    logs = np.log(variance) - special.digamma(freedom / 2) + np.log(freedom / 2)
    excess = logs.var(1, ddof=1) - special.polygamma(1, freedom / 2)
    grid = np.geomspace(0.02, 1000, 4000)  # trigamma falls: no excess means that all are the same
    prior = np.interp(-excess, -special.polygamma(1, grid / 2), grid)
    level = np.exp(logs.mean(1) + special.digamma(prior / 2) - np.log(prior / 2))
    total = prior + freedom
    return ((prior * level)[:, None] + freedom * variance) / total[:, None], total


def family(name: str, sizes: list[tuple[int, int]], **given: Any) -> list[Scenario]:
    """One scenario for each (methods, seeds)."""
    return [Scenario(name=name, methods=methods, seeds=seeds, **given) for methods, seeds in sizes]


ERRORS = [
    *family("equal noise", [(2, 2), (2, 3), (6, 2), (6, 3), (6, 5), (15, 3), (20, 8)]),
    *family("one method's seeds 10 times as noisy", [(2, 3), (3, 3), (6, 3), (6, 5), (15, 2), (15, 3), (20, 8)],
            noise="one 10 x"),
    *family("one method's seeds 3 times as noisy", [(6, 3), (6, 5), (15, 5)], noise="one 3 x"),
    *family("half of the methods' seeds 10 times as noisy", [(3, 3), (6, 3), (20, 5)], noise="half 10 x"),
    *family("every method's noise its own (log-normal, 0.7)", [(2, 5), (6, 3), (6, 5), (15, 3), (20, 8)],
            noise="all differ"),
    *family("seeds log-normal", [(2, 3), (6, 3), (6, 5), (15, 5)], by_seed="log-normal"),
    *family("one run in ten collapses", [(2, 3), (6, 3), (6, 5), (15, 5)], by_seed="collapsing"),
    *family("a seed moves all methods alike, 4 times as much", [(2, 3), (6, 3), (6, 5)], shared=4.0),
    *family("one method's figures log-normal over 50 prompts", [(2, 5), (6, 5), (15, 8)], by_prompt="log-normal",
            prompts=50),
    *family("one method's figures log-normal over 200 prompts", [(2, 5), (6, 5), (15, 8)], by_prompt="log-normal",
            prompts=200),
    *family("won or lost, half of them", [(2, 3), (6, 5), (15, 3)], by_prompt="binary 0.5"),
    *family("won or lost, 19 of 20", [(2, 3), (6, 5), (15, 3)], by_prompt="binary 0.95"),
    *family("300 prompts, five near copies of each of 60", [(2, 5), (6, 3), (6, 5)], prompts=300, copies=5),
    *family("the same, not averaged", [(2, 5), (6, 3), (6, 5)], prompts=300, copies=5, averaged=False),
]  # fmt: skip
SIZES = [(methods, seeds) for methods in (2, 6, 15) for seeds in (2, 3, 4, 5, 6, 8)]
POWERS = [
    *family("better by 2 seed sd", [(m, s) for m, s in SIZES if m < 15 and s in (3, 5, 8)], better=2.0, prompts=200),
    *family("better by 4 seed sd", SIZES, better=4.0, prompts=200),
    *family("better by 4, and a seed moves all methods alike, twice as much", [(6, s) for s in (3, 5, 8)], better=4.0,
            prompts=200, shared=2.0),
    *family("better by 4, and one of the others is 10 times as noisy", [(6, s) for s in (3, 5, 8)], better=4.0,
            prompts=200, noise="one 10 x"),
]  # fmt: skip


@dataclass
class Tally:
    """How many of how many, by rule."""

    of: int = 0
    found: dict[str, int] = field(default_factory=dict)

    def add(self, hits: dict[str, NDArray[np.bool_]]) -> None:
        """Count hits, one for each case."""
        self.of += next(iter(hits.values())).size
        for name, hit in hits.items():
            self.found[name] = self.found.get(name, 0) + int(hit.sum())

    def plain(self, independent: int) -> dict[str, list[float]]:
        """The share of each rule, with Wilson's 95 % interval for so many independent cases."""
        found = {}
        for name, count in self.found.items():
            share = count / self.of
            low, high = proportion_confint(share * independent, independent, method="wilson")
            found[name] = [round(float(value), 4) for value in (share, low, high)]
        return found


def measured(scenario: Scenario, families: int) -> dict[str, Any]:
    """The share of families with a verdict; where a method is better, the share of its pairs."""
    rng = np.random.default_rng([families, *json.dumps(asdict(scenario)).encode()])
    pairs = scenario.methods * (scenario.methods - 1) // 2
    chunk = max(1, CHUNK // (pairs * scenario.seeds * scenario.prompts))
    tally = Tally()
    for start in range(0, families, chunk):
        hits = rules(draw(scenario, rng, min(chunk, families - start)))
        if scenario.better:
            last = np.triu_indices(scenario.methods, 1)[1] == scenario.methods - 1
            tally.add({name: hit[:, last] for name, hit in hits.items()})
        else:
            tally.add({name: np.asarray(hit.any(1)) for name, hit in hits.items()})
    kept = {name: getattr(scenario, name) for name in ("name", "methods", "seeds", "prompts")}
    return kept | {"rules": tally.plain(families)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", type=int, default=2000)
    parser.add_argument("--only", help="print the scenarios whose name contains this, and write nothing")
    args = parser.parse_args()
    found: dict[str, Any] = {"setting": {"families": args.families, "alpha": ALPHA}}
    for part, scenarios in (("errors", ERRORS), ("power", POWERS)):
        found[part] = []
        for scenario in scenarios:
            if args.only and args.only not in scenario.name:
                continue
            row = measured(scenario, args.families // (4 if scenario.better else 1))
            found[part].append(row)
            print(row["name"], row["methods"], row["seeds"], {k: v[0] for k, v in row["rules"].items()}, flush=True)
    if not args.only:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def _table(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0]["rules"])
    lines = []
    for row in rows:
        share, low, high = row["rules"]["compare"]
        others = [f"{row['rules'][name][0]:.1%}" for name in names if name != "compare"]
        sizes = [str(row[name]) for name in ("methods", "seeds", "prompts")]
        lines.append([row["name"], *sizes, *others, f"{share:.1%} ({low:.1%} to {high:.1%})"])
    return table(["", "methods", "seeds", "prompts", *names[:-1], "`compare`"], lines)


TABLES: dict[str, Callable[[Any], str]] = {
    "verdicts/errors": lambda result: _table(result["errors"]),
    "verdicts/power": lambda result: _table(result["power"]),
}


if __name__ == "__main__":
    main()
