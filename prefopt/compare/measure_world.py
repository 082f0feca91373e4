"""Measures a policy exactly on a world, where the true reward is known."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.common.estimate import Estimate
from prefopt.compare.spec import Measurement, Split
from prefopt.data.data_config import DataConfig
from prefopt.data.prepare import prepare
from prefopt.data.tokens import TokenRecord
from prefopt.evaluate.world import OF_PAIRS, figures
from prefopt.models.load import load_model, load_tokenizer
from prefopt.models.model_config import ModelConfig
from prefopt.plugin import Data
from prefopt.worlds import ReviewWorld, World, resolve

Floats = NDArray[np.float64]
KL_CHECK_SAMPLES = 4096  # fresh samples needed to check the two estimates of KL against each other
KL_CHECK_SE = 5.0  # standard errors by which they may differ; by chance one policy in a million differs by as much


def measure(
    policy: Any,
    world: World,
    *,
    split: Split,
    prompts: int = 512,
    samples_per_prompt: int = 4,
    texts: int = 3,
    seed: int = 0,
) -> Measurement:
    """Measure `policy` against the world's start: true reward, KL, validity, length, diversity, held-out pairs.

    `prefopt.evaluate.world.figures` defines the figures; here every prompt counts once, however many held-out pairs it
    has. The KL is Rao-Blackwellised over the vocabulary; `kl_gap` is its excess over plain Monte-Carlo on the same
    samples (see `kl_warning`).

    Args:
        policy: a causal language model with the world's vocabulary.
        world: the world it was tuned in.
        split: "validation" or "test"; they share no prompt with each other or with the training pairs.
        prompts: at most those of the split; 768 and 1,024 in the review world.
        samples_per_prompt: samples of each prompt at temperature 1.
        texts: samples to keep for reading.
        seed: seeds the order of the prompts and the samples; the same for all policies that are compared.

    Raises:
        UserError: more prompts than the split has.
    """
    reference, pairs = _reference_and_pairs(world, split)
    arrays, samples = figures(
        world, policy, reference, pairs, split=split, prompts=prompts, samples_per_prompt=samples_per_prompt, seed=seed
    )
    of_pairs = [pair.prompt.tobytes() for pair in pairs]
    arrays |= {name: by_prompt(arrays[name], of_pairs) for name in OF_PAIRS}
    arrays["kl_gap"] = arrays["kl"] - arrays["kl_monte_carlo"]
    return Measurement(
        figures={name: float(array.mean()) for name, array in arrays.items()},
        arrays=arrays,
        texts=[{"prompt": s.prompt, "text": s.completion, "reward": s.reward} for s in samples[:texts]],
    )


def by_prompt(values: Floats, prompts: Sequence[Hashable]) -> Floats:
    """Average (n,) values over equal prompts, in the order in which the prompts come: (Q,) means.

    Records of one prompt depend on each other, so they are one observation.
    """
    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    group = [place[prompt] for prompt in prompts]
    means: Floats = np.bincount(group, weights=values) / np.bincount(group)
    return means


def kl_warning(measured: Measurement, samples: int) -> str | None:
    """Return a warning where the two estimates of the KL disagree by more than noise, else None.

    Args:
        measured: what `measure` returned.
        samples: the number of samples it was measured on; below 4,096 there is no warning.
    """
    gap = Estimate.of(measured.arrays["kl_gap"])
    if samples < KL_CHECK_SAMPLES or abs(gap.value) <= KL_CHECK_SE * gap.se + 1e-5:  # the rounding of float32
        return None
    kl, plain = measured.figures["kl"], measured.figures["kl_monte_carlo"]
    return (
        f"the two estimates of KL disagree on {samples} samples: {kl:z.3f} by exact distributions, {plain:z.3f} by "
        f"Monte-Carlo, a difference of {gap.value / gap.se:+z.1f} standard errors"
    )


@functools.lru_cache(maxsize=8)
def _reference_and_pairs(world: World, split: Split) -> tuple[Any, list[TokenRecord]]:
    """Load the reference and the held-out pairs; kept, because a worker measures many policies in one world."""
    files = resolve(world)
    model = ModelConfig(path=str(files.model))
    template = "plain" if isinstance(world, ReviewWorld) else "auto"
    held_out = files.validation if split == "validation" else files.test
    prepared = prepare(DataConfig(path=str(held_out), template=template), load_tokenizer(model), Data.PAIRS)
    return load_model(model), list(prepared.train)
