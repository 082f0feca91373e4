"""Makes what an on-policy loss learns from beside the log-probs, such as advantages, of a whole rollout."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prefopt.data.tokens import TokenRecord
from prefopt.engine.reference.table import ReferenceTable
from prefopt.plugin import ListLogps, Logps, Loss, with_targets
from prefopt.train.examples import Drawn, Facts, examples_of


def targeted(
    loss: Loss, records: Sequence[TokenRecord], drawn: Sequence[Drawn], table: ReferenceTable | None
) -> list[Drawn]:
    """`drawn` with what the loss's `targets` makes of the whole rollout, shared out to its records."""
    facts = [Facts.of(r, len(r.completions), d) for r, d in zip(records, drawn, strict=True)]
    lists = examples_of(facts, _drawn_logps(drawn, table), loss.needs).logps
    assert isinstance(lists, ListLogps)
    targets = {name: value.numpy() for name, value in with_targets(loss, lists).targets.items()}
    return [
        dataclasses.replace(d, targets={name: value[i] for name, value in targets.items()}) for i, d in enumerate(drawn)
    ]


def _drawn_logps(drawn: Sequence[Drawn], table: ReferenceTable | None) -> Logps:
    """Log-probs of all completions of a rollout, as they were drawn."""
    texts = [logps for d in drawn for logps in d.logps]
    token = _padded(texts)
    reference = None if table is None else [t for i in range(len(drawn)) for t in table.token(i)]
    return Logps(
        sum=torch.tensor([logps.sum(dtype=np.float64) for logps in texts], dtype=torch.float32),
        num_tokens=torch.tensor([len(logps) for logps in texts]),
        ref_sum=None if table is None else torch.from_numpy(table.sum),
        token=token,
        ref_token=None if reference is None else _padded(reference),
    )


def _padded(texts: Sequence[NDArray[np.floating[Any]]]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(np.array(t)) for t in texts], batch_first=True)
