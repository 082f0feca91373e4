"""Every loss of the menu on the review world, from its SFT model, through the real trainer."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.data import DataConfig, prepare
from prefopt.data.tokens import TokenRecord
from prefopt.losses import load_class
from prefopt.plugin import Data
from prefopt.testing import example
from prefopt.train import BatchConfig, train
from prefopt.worlds.build import WorldFiles
from tests.losses.names import OFFLINE

STEPS, BATCH = 5, 8


@pytest.fixture(scope="module")
def records(world_files: WorldFiles) -> dict[Data, list[TokenRecord]]:
    """The world's pairs; its four samples of a prompt as a list; and as labels."""
    tokenizer = AutoTokenizer.from_pretrained(world_files.model)
    config = DataConfig(path=str(world_files.train), template="plain", max_records=160)
    pairs = list(prepare(config, tokenizer, Data.PAIRS).train)
    lists: dict[bytes, dict[bytes, tuple[Any, float]]] = defaultdict(dict)
    for pair in pairs:
        assert pair.scores is not None
        for completion, score in zip(pair.completions, pair.scores, strict=True):
            lists[pair.prompt.tobytes()][completion.tobytes()] = (completion, score)
    first = {pair.prompt.tobytes(): pair for pair in pairs}
    every = [score for pair in pairs for score in pair.scores or ()]
    low, high = min(every), max(every)
    fours = [
        replace(
            first[prompt],
            kind=Data.LISTS,
            completions=tuple(c for c, _ in samples.values()),
            scores=tuple((s - low) / (high - low) for _, s in samples.values()),  # li_po wants scores within [0, 1]
        )
        for prompt, samples in lists.items()
        if len({s for _, s in samples.values()}) == 4
    ]
    singles = [
        replace(pair, id=f"{pair.id}/{side}", kind=Data.UNPAIRED, completions=(c,), scores=None, desirable=side == 0)
        for pair in pairs
        for side, c in enumerate(pair.completions)
    ]
    return {Data.PAIRS: pairs, Data.LISTS: fours, Data.UNPAIRED: singles, Data.DEMONSTRATIONS: pairs}


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFLINE)
def test_five_steps(name: str, world_files: WorldFiles, records: dict[Data, list[TokenRecord]], tmp_path: Path) -> None:
    loss = example(load_class(name))
    if hasattr(loss, "vocab_size"):
        loss = replace(loss, vocab_size=65)  # type: ignore[type-var]
    model = AutoModelForCausalLM.from_pretrained(world_files.model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    given = records[loss.needs.data]
    if loss.needs.data is Data.PAIRS and loss.needs.scores:  # labels are noisy: odpo takes pairs that agree with them
        given = [r for r in given if r.scores is not None and r.scores[0] > r.scores[1]]
    result = train(
        model, loss, given[: 2 * BATCH], output_dir=tmp_path, store=tmp_path / "reference",
        batch=BatchConfig(records=BATCH, max_tokens=256), max_steps=STEPS, learning_rate=1e-4, warmup_steps=0,
    )  # fmt: skip
    losses = [entry["loss"] for entry in result.trainer.state.log_history if "learning_rate" in entry]
    assert len(losses) == STEPS
    assert torch.isfinite(torch.tensor(losses)).all()
    assert any(not torch.equal(before[n], p) for n, p in model.named_parameters())
