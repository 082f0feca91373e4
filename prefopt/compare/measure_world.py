"""Exact measures of a policy on a world: what a comparison ranks by where the true reward is known."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefopt.common.estimate import Estimate
from prefopt.compare.spec import Measured, Split
from prefopt.evaluate.world import OF_PAIRS, figures
from prefopt.worlds.review import ReviewWorld

if TYPE_CHECKING:
    from prefopt.data.tokens import TokenRecord

Floats = NDArray[np.float64]
KL_CHECK_SAMPLES = 4096  # fresh samples from which on the two estimates of KL are held against each other
KL_CHECK_SE = 5.0  # standard errors that they may differ by; of a million policies one differs by as much by chance


def measure(
    policy: Any,
    world: ReviewWorld,
    *,
    split: Split,
    prompts: int = 512,
    samples_per_prompt: int = 4,
    texts: int = 3,
    seed: int = 0,
) -> Measured:
    """Measure `policy` against the world's SFT model: true reward, KL, validity, length, diversity, held-out pairs.

    What each figure means stands in `prefopt.evaluate.world.figures`; here every prompt counts once, however many
    held-out pairs it has. The KL is Rao-Blackwellised over the vocabulary;
    `kl_gap` is what it exceeds plain Monte-Carlo by on the same samples (see `kl_doubt`).

    Args:
        policy: a causal language model with the world's vocabulary.
        world: the world it was tuned in.
        split: "validation" or "test"; they share no prompt, and neither has a prompt of the training pairs.
        prompts: at most 768 of "validation", 1,024 of "test".
        samples_per_prompt: at temperature 1.
        texts: samples to keep, to be read.
        seed: of the prompts' order and of the samples; the same for all policies that are compared.

    Raises:
        UserError: more prompts than the split has.
    """
    reference, pairs = _yardsticks(world, split)
    arrays, samples = figures(
        world, policy, reference, pairs, split=split, prompts=prompts, samples_per_prompt=samples_per_prompt, seed=seed
    )
    of_pairs = [pair.prompt.tobytes() for pair in pairs]
    arrays |= {name: by_prompt(arrays[name], of_pairs) for name in OF_PAIRS}
    arrays["kl_gap"] = arrays["kl"] - arrays["kl_monte_carlo"]
    return Measured(
        figures={name: float(array.mean()) for name, array in arrays.items()},
        arrays=arrays,
        texts=[{"prompt": s.prompt, "text": s.completion, "reward": s.reward} for s in samples[:texts]],
    )


def by_prompt(values: Floats, prompts: Sequence[Hashable]) -> Floats:
    """(Q,) means of (n,) values over those of equal prompts, in the order in which the prompts come: records of one
    prompt depend on each other, and are one observation."""
    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    group = [place[prompt] for prompt in prompts]
    means: Floats = np.bincount(group, weights=values) / np.bincount(group)
    return means


def kl_doubt(measured: Measured, samples: int) -> str | None:
    """What is wrong with a KL whose two estimates disagree by more than noise, as a sentence; None if nothing is.

    Args:
        measured: by `measure`.
        samples: that it was measured on; below 4,096 nothing is said.
    """
    gap = Estimate.of(measured.arrays["kl_gap"])
    if samples < KL_CHECK_SAMPLES or abs(gap.value) <= KL_CHECK_SE * gap.se + 1e-5:  # the rounding of float32
        return None
    kl, plain = measured.figures["kl"], measured.figures["kl_monte_carlo"]
    return (
        f"the two estimates of KL disagree on {samples} samples: {kl:.3f} by exact distributions, {plain:.3f} by "
        f"Monte-Carlo, a difference of {gap.value / gap.se:+.1f} standard errors"
    )


@functools.lru_cache(maxsize=8)
def _yardsticks(world: ReviewWorld, split: Split) -> tuple[Any, list[TokenRecord]]:
    """The reference and the held-out pairs; kept, because a worker measures many policies in one world."""
    from prefopt.data.config import DataConfig
    from prefopt.data.prepare import prepare
    from prefopt.models.load import ModelConfig, load_model, load_tokenizer
    from prefopt.plugin import Data
    from prefopt.worlds import resolve

    files = resolve(world)
    model = ModelConfig(path=str(files.model))
    held_out = files.validation if split == "validation" else files.test
    prepared = prepare(DataConfig(path=str(held_out), template="plain"), load_tokenizer(model), Data.PAIRS)
    return load_model(model), list(prepared.train)
