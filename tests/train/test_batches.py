"""What the loss and the weights must not depend on: micro-batches, layout, order in a micro-batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prefopt.losses.registry import load
from prefopt.plugin import Data
from prefopt.train import BatchConfig
from prefopt.train.examples import split
from tests.train import tiny

# name, its data, and what it adds to the core: coupling, state, per-token log-probs, statistics of the vocabulary
LOSSES = [
    *((name, Data.PAIRS) for name in tiny.CORE),
    ("kto", Data.UNPAIRED),
    ("sft", Data.DEMONSTRATIONS),
    ("plackett_luce", Data.LISTS),
    ("aot", Data.PAIRS),
    ("bco", Data.UNPAIRED),
    ("beta_dpo", Data.PAIRS),
    ("sft_token_mean", Data.PAIRS),
    ("ld_dpo", Data.PAIRS),
    ("wpo", Data.PAIRS),
    ("tdpo2", Data.PAIRS),
    ("epsilon_dpo", Data.PAIRS),
    ("tr_dpo", Data.PAIRS),
]
OPTIONS = {"tr_dpo": {"tau": 1}}


@pytest.mark.parametrize(("name", "kind"), LOSSES, ids=lambda value: getattr(value, "value", value))
def test_loss_and_weights_are_those_of_one_forward(name: str, kind: Data, tmp_path: Path) -> None:
    """1 micro-batch of 16 records, 2 of 8, 16 of 1."""
    loss = load(name, **OPTIONS.get(name, {}))
    data = tiny.records(kind, 32, weights=True, level=True)
    size = int(tiny.make(loss, data, tmp_path).sources["train"].feed.lengths().tokens().max())
    runs = {}
    for count in (1, 2, 16):
        config = BatchConfig(records=16, max_tokens=16 * size // count)
        runs[count] = tiny.run(loss, data, tmp_path, batch=config)
        trainer = runs[count].trainer
        if not trainer.sources["train"].feed.first_only:  # the chosen sides alone are of unequal lengths
            assert {len(batch.work) for batch in trainer.shares("train")} == {count}
    for count in (2, 16):
        assert runs[count].losses == pytest.approx(runs[1].losses, rel=1e-6)
        assert tiny.apart(runs[count].weights, runs[1].weights) < 1e-6
        assert runs[count].logs[-1].keys() == runs[1].logs[-1].keys()
    assert tiny.apart(runs[1].weights, dict(tiny.model().named_parameters())) > 1e-3


@pytest.mark.parametrize("name", ["dpo", "kto", "sft"])
def test_loss_and_weights_do_not_depend_on_the_layout(name: str, tmp_path: Path) -> None:
    data = tiny.records(Data.PAIRS, 32)
    tree, padded = (
        tiny.run(load(name), data, tmp_path, batch=BatchConfig(records=16, layout=layout))
        for layout in ("tree", "padded")
    )
    assert tree.trainer.layout.layout == "tree"
    assert padded.trainer.layout.layout == "padded"
    assert padded.losses == pytest.approx(tree.losses, rel=1e-6)
    assert tiny.apart(padded.weights, tree.weights) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_log_probs_are_those_of_a_plain_forward_in_every_split(dtype: torch.dtype, tmp_path: Path) -> None:
    data = tiny.records(Data.PAIRS, 24)
    policy = tiny.model(dtype=dtype)
    with torch.no_grad():
        truth = {r.id: [float(tiny.plain_logps(policy, r.prompt, c).sum()) for c in r.completions] for r in data}
    for layout in ("tree", "padded"):
        for size, max_tokens, seed in ((24, 4096, 0), (8, 100, 1), (5, 60, 2)):
            config = BatchConfig(records=size, max_tokens=max_tokens, layout=layout)
            trainer = tiny.make(load("simpo"), data, tmp_path, policy, batch=config, seed=seed)
            found = {}
            for batch in trainer.shares("train"):
                for work in batch.work:
                    with torch.no_grad():
                        parts = split(trainer.step.score(work), work.completions)
                    found |= {f.id: part.sum.tolist() for f, part in zip(work.facts, parts, strict=True)}
            assert found.keys() == truth.keys()
            for name in truth:
                assert found[name] == pytest.approx(truth[name], abs=1e-5 if dtype == torch.float32 else 1e-6)
