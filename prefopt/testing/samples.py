"""Random and extreme numbers for any shape of data, and what a loss with given needs sees of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from prefopt.plugin import BESIDE_REFERENCE, Data, Needs, Vocab
from prefopt.testing.numbers import SIDES, Numbers

Named = dict[str, Tensor]
COMPLETIONS = 4  # K of the lists below; one of them has only 3
STATISTICS = tuple(statistic.value for statistic in Vocab)


def random_numbers(data: Data, *, seed: int, examples: int = 6) -> Named:
    """Draw every kind of number that this shape of data can have, in float64; lengths are 1 to 6."""
    generator = torch.Generator().manual_seed(seed)
    numbers: Named = {"ids": torch.arange(examples) * 7919 + seed}
    for index, (side, lengths) in enumerate(SIDES[data]):
        shape = (examples, COMPLETIONS) if data is Data.LISTS else (examples,)
        num_tokens = torch.randint(1, 7, shape, generator=generator)
        num_tokens.view(-1)[index] = 6
        if data is Data.LISTS:
            num_tokens[0, -1] = 0
        numbers[lengths] = num_tokens
        inside = torch.arange(6) < num_tokens.unsqueeze(-1)

        def draw(scale: float, *, inside: Tensor = inside) -> Tensor:
            return scale * torch.rand(inside.shape, generator=generator, dtype=torch.float64) * inside

        token = -draw(2.5)
        # A common shift per batch, so that means over the batch (such as KTO's z0) take both signs.
        shift = torch.randn((), generator=generator, dtype=torch.float64) * 0.3 * inside
        numbers[f"{side}_token"] = token
        numbers[f"ref_{side}_token"] = (token - shift - draw(1.5) + draw(1.5)).clamp(max=0)
        numbers[f"{side}_log_sum_sq"] = -draw(3.0)
        numbers[f"{side}_ref_entropy"] = draw(3.0)
        numbers[f"{side}_kl"] = draw(1.0)
        numbers[f"{side}_log_away"] = 0.02 * numbers[f"{side}_kl"]
        numbers[f"{side}_log_toward"] = -0.006 * numbers[f"{side}_ref_entropy"]
        numbers[side] = token.sum(-1)
        numbers[f"ref_{side}"] = numbers[f"ref_{side}_token"].sum(-1)
    if data is Data.PAIRS:
        numbers["rejected_score"] = torch.rand(examples, generator=generator, dtype=torch.float64)
        gap = 0.1 + 2 * torch.rand(examples, generator=generator, dtype=torch.float64)
        numbers["chosen_score"] = numbers["rejected_score"] + gap
        numbers["margin"] = 2 * torch.rand(examples, generator=generator, dtype=torch.float64)
        numbers["probability"] = 0.55 + 0.4 * torch.rand(examples, generator=generator, dtype=torch.float64)
        numbers["tied"] = torch.arange(examples) % 3 == 1
        numbers["opponent"] = torch.rand(examples, generator=generator) < 0.5
    if data is Data.LISTS:
        numbers["scores"] = torch.rand(examples, COMPLETIONS, generator=generator, dtype=torch.float64)
        # The policy has moved a little since it wrote the texts.
        token = numbers["completions_token"]
        numbers["old_completions_token"] = token * (1 + 0.1 * torch.rand(token.shape, generator=generator).double())
        numbers["old_completions"] = numbers["old_completions_token"].sum(-1)
        numbers["ended"] = torch.rand(examples, COMPLETIONS, generator=generator) < 0.8
        for name in ("completions_value", "old_completions_value"):
            numbers[name] = torch.rand(token.shape, generator=generator).double() * (token != 0)
        numbers["old_completions_value_after"] = torch.rand(examples, COMPLETIONS, generator=generator).double()
    if data is Data.UNPAIRED:
        labels = torch.arange(examples) % 2 == 0
        numbers["desirable"] = labels[torch.randperm(examples, generator=generator)]
    return numbers


def declared(needs: Needs, numbers: Numbers) -> Named:
    """What the engine passes to a loss with these needs: sums and lengths always, the rest only where declared."""
    keep: Named = {}
    for name, value in numbers.items():
        reference, base = name.startswith("ref_"), name.removeprefix("ref_")
        if reference and not needs.reference:
            continue
        if (name.startswith("old_") and not needs.on_policy) or (name == "ended" and not needs.ended):
            continue
        if base == "opponent" and not needs.opponent:
            continue
        if base.endswith(("_value", "_value_after")) and not needs.values:
            continue
        if base.endswith("_token") and not needs.tokens:
            continue
        if base.endswith(STATISTICS) and not any(base.endswith(v.value) for v in needs.vocab):
            continue
        if base.endswith("_score") and not needs.scores:
            continue
        if name in ("margin", "probability", "tied") and name not in needs.of_pairs:
            continue
        if base.startswith("mismatched") and not needs.mismatched:
            continue
        keep[name] = value
    if needs.tokens:  # the sums then follow from the tokens, gradient included
        sums = [side for side, _ in SIDES[needs.data]]
        keep = {n: value for n, value in keep.items() if n.removeprefix("ref_").removeprefix("old_") not in sums}
    return keep


def leaves(needs: Needs, numbers: Numbers) -> list[str]:
    """The names in `declared` that carry gradient: sums, or per-token log-probs where declared, KL and values."""
    suffix = "_token" if needs.tokens else ""
    wanted = [f"{side}{suffix}" for side, _ in SIDES[needs.data] if side != "mismatched"]
    return [n for n in numbers if n in wanted or (n.endswith(("_kl", "_value")) and not n.startswith(("ref_", "old_")))]


def at_reference(numbers: Numbers) -> Named:
    """Set the policy to the reference: log-probs are the reference's, also those of sampling, and what both together
    give is 0, such as the KL."""
    same = dict(numbers)
    for name in numbers:
        reference = f"ref_{name.removeprefix('old_')}"
        if reference in numbers:
            same[name] = numbers[reference]
        if name.endswith(tuple(f"_{statistic.value}" for statistic in BESIDE_REFERENCE)):
            same[name] = torch.zeros_like(numbers[name])
    return same


def jittered(numbers: Numbers, seed: int) -> Named:
    """Change the policy's log-probs by a millionth of themselves up or down, as another packing of a forward does."""
    generator = torch.Generator().manual_seed(seed)
    near = dict(numbers)
    for name, value in numbers.items():
        if f"ref_{name}" in numbers:
            near[name] = value * (1 + 2e-6 * (torch.rand(value.shape, generator=generator, dtype=value.dtype) - 0.5))
    return near


def extreme_numbers(data: Data) -> Named:
    """Log-ratios of +-1e4, probabilities of 1, lengths 1 and 64, in every combination of the sides; float64."""
    points = [(-10000.5, -0.5), (-0.5, -10000.5), (0.0, -10000.0), (-10000.0, 0.0), (-1e-6, -0.5), (-3.0, -3.0)]
    if data is Data.LISTS:
        lists = list(itertools.product(points, points, points, [points[-1]]))
        sums = torch.tensor(lists, dtype=torch.float64)  # (B, K, 2)
        numbers = {"completions": sums[..., 0], "ref_completions": sums[..., 1], "old_completions": sums[..., 0] / 2}
        numbers["num_tokens"] = torch.where(torch.arange(len(lists)).unsqueeze(-1) % 2 == 0, 1, 64).expand(-1, 4)
        within = torch.arange(64) < numbers["num_tokens"].unsqueeze(-1)
        for name in ("completions", "ref_completions", "old_completions"):
            numbers[f"{name}_token"] = (numbers[name] / numbers["num_tokens"]).unsqueeze(-1) * within
        numbers["scores"] = torch.tensor([1.0, 0.625, 0.25, 0.0], dtype=torch.float64).repeat(len(lists), 1)
        numbers["ended"] = torch.ones_like(numbers["scores"], dtype=torch.bool)
        numbers["completions_value"], numbers["old_completions_value"] = 0.25 * within, 0.125 * within
        numbers["old_completions_value_after"] = torch.full_like(numbers["scores"], 0.25)
        return numbers | {"ids": torch.arange(len(lists))}
    pairs = [(a, b, n) for a in points for b in points for n in (1, 64)]
    numbers = {"ids": torch.arange(len(pairs))}
    length = torch.tensor([n for *_, n in pairs])
    inside = torch.arange(64) < length.unsqueeze(-1)
    for index, (side, lengths) in enumerate(SIDES[data]):
        totals = torch.tensor([pair[index] for pair in pairs], dtype=torch.float64)
        numbers[lengths] = length
        numbers[side], numbers[f"ref_{side}"] = totals[:, 0], totals[:, 1]
        numbers[f"{side}_token"] = (totals[:, :1] / length.unsqueeze(-1)) * inside
        numbers[f"ref_{side}_token"] = (totals[:, 1:] / length.unsqueeze(-1)) * inside
        numbers[f"{side}_log_sum_sq"] = -10.0 * inside * (torch.arange(len(pairs)).unsqueeze(-1) % 2)
        numbers[f"{side}_ref_entropy"] = 5.0 * inside * (torch.arange(len(pairs)).unsqueeze(-1) % 2)
        numbers[f"{side}_kl"] = (numbers[side] - numbers[f"ref_{side}"]).abs().unsqueeze(-1) / 64 * inside
        numbers[f"{side}_log_away"] = numbers[f"{side}_kl"] / 128
        numbers[f"{side}_log_toward"] = -numbers[f"{side}_kl"] / 256
    if data is Data.PAIRS:
        numbers["chosen_score"] = torch.ones(len(pairs), dtype=torch.float64)
        numbers["rejected_score"] = torch.arange(len(pairs), dtype=torch.float64) / len(pairs)
        numbers["margin"] = numbers["chosen_score"] - numbers["rejected_score"]
        numbers["probability"] = 0.5 + numbers["margin"] / 2
        numbers["tied"] = torch.arange(len(pairs)) % 3 == 1
        numbers["opponent"] = torch.arange(len(pairs)) % 3 == 0
    if data is Data.UNPAIRED:
        numbers["desirable"] = torch.arange(len(pairs)) % 4 < 2
    return numbers


def rows(numbers: Numbers, index: Tensor) -> Named:
    """Select examples, in a given order."""
    return {name: value[index] for name, value in numbers.items()}


def padded(data: Data, numbers: Numbers) -> Named:
    """Add 3 columns of padding: tokens, or absent completions of lists."""
    at = 1 if data is Data.LISTS else -1
    wide = dict(numbers)
    for name, value in numbers.items():
        if value.ndim >= 2:
            more = list(value.shape)
            more[at] = 3
            wide[name] = torch.cat([value, value.new_zeros(more)], at)
    return wide


def perturbed(numbers: Numbers, which: Callable[[str], bool], seed: int) -> Named:
    """Add noise to some floating-point numbers; 0 stays, since it marks positions past the end."""
    generator = torch.Generator().manual_seed(seed)
    noisy = dict(numbers)
    for name, value in numbers.items():
        if which(name):
            noise = 0.5 + torch.rand(value.shape, generator=generator, dtype=torch.float64)
            noisy[name] = torch.where(value == 0, value, value - noise)
    return noisy


def cast(numbers: Numbers, dtype: torch.dtype) -> Named:
    """Convert floating-point numbers to another precision."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in numbers.items()}
