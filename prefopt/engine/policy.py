"""The policy: a module around a causal language model that scores rows and writes texts, or around a reward model.

Wrappers (DDP, FSDP2, autocast) go around it, so that they see one forward; adapters (PEFT) stay inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from prefopt.engine.attention import NAME
from prefopt.engine.cpu import install
from prefopt.engine.forward import PLAIN, Options, check_model, is_reward_model, score_row, set_attention, unwrap
from prefopt.engine.gates import LayoutVerdict, choose_layout
from prefopt.engine.generation import generate
from prefopt.engine.head import Head, TokenStats
from prefopt.engine.layout import Row

__all__ = ["Options", "Policy", "opened"]


class Policy(nn.Module):
    """A causal language model that scores rows: `policy(row)` gives per-token log-probs.

    While a policy is open the model has the attention that the layout needs, and on CPUs faster kernels. `close` (or
    the end of a `with` block) leaves the model as it was found.

    Args:
        model: a transformers causal language model, or a sequence classifier with one output; a PEFT model around one.
        layout: "auto", "tree" (refused where it is not safe) or "padded"; or a verdict, which is trusted.

    Attributes:
        model: the wrapped model.
        layout: the layout of its rows, and why.
        frozen_modes: modules that stay in evaluation mode in training, because they are random in it.
        values: a value model (`prefopt.engine.values`) that is trained beside the model, or None.

    Raises:
        UserError: no causal language model, or one that the gates refuse.
    """

    def __init__(self, model: Any, layout: str | LayoutVerdict = "auto") -> None:
        super().__init__()
        check_model(model)
        self.model = model
        self.layout = layout if isinstance(layout, LayoutVerdict) else choose_layout(model, layout)
        self.frozen_modes: Sequence[nn.Module] = ()
        self.values: nn.Module | None = None
        self._kernels = install(model)
        self._own_attention: str | None = None
        if self.layout.layout == "tree":
            self._own_attention = set_attention(self.causal, NAME)

    @property
    def causal(self) -> Any:
        """The causal language model, or the sequence classifier, below adapters."""
        return unwrap(self.model)

    @property
    def is_reward_model(self) -> bool:
        """Whether it scores texts by one number, instead of the log-probs of their tokens."""
        return is_reward_model(self.causal)

    @property
    def device(self) -> torch.device:
        """The device of its weights."""
        return next(self.parameters()).device

    @property
    def head(self) -> Head:
        """The output layer as it is now."""
        return Head.of(self.causal)

    def get_base_model(self) -> Any:
        """The wrapped model."""
        return self.model

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation mode, but for `frozen_modes`."""
        super().train(mode)
        for module in self.frozen_modes:
            module.training = False
        return self

    def forward(self, row: Row, options: Options = PLAIN) -> TokenStats | Tensor:
        """Per-token statistics of a row, (N,), with scores in place of log-probs for a reward model; hidden states
        (N, H) with `options.hidden_only`."""
        found = score_row(self.causal, row, options)
        if not options.values:
            return found
        assert isinstance(found, TokenStats)
        assert self.values is not None
        return found._replace(value=self.values(row))

    def generate(self, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
        """One continuation of every prompt: see `prefopt.engine.generation.generate`."""
        return generate(self.model, prompts, **options)

    def close(self) -> None:
        """Leave the model as it was found. Its last backward must be over."""
        self._kernels.remove()
        if self._own_attention is not None:
            set_attention(self.causal, self._own_attention)
            self._own_attention = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def opened(model: Any, layout: str | LayoutVerdict = "auto") -> Iterator[Policy]:
    """A policy of this layout as it is, or one around the model, which is closed at the end."""
    wanted = layout.layout if isinstance(layout, LayoutVerdict) else layout
    if isinstance(model, Policy) and wanted in ("auto", model.layout.layout):
        yield model
        return
    with Policy(model.model if isinstance(model, Policy) else model, layout) as policy:
        yield policy
