"""Mix: a weighted sum of losses, such as MPO (Wang et al., 2024)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from prefopt.losses import MENU, load_class
from prefopt.plugin import (
    PERTURBED,
    Audit,
    Data,
    DemoLogps,
    Level,
    Loss,
    LossOutput,
    Needs,
    Ranking,
    SearchSpace,
    State,
    require,
    traits,
    value_at_reference,
)

_MPO = {"dpo": 0.8, "bco_pair": 0.2, "sft": 1.0}


@dataclass(frozen=True, kw_only=True)
class Mix:
    r"""Weighted sum of built-in losses.

    L = sum_i w_i * L_i

    Value at policy = reference: sum of w_i times the value of L_i there; a term without a reference has its own value
    on the reference's log-probs.

    Identities: mix(terms={'dpo': 1.0, 'sft': 0.7}) = irpo(alpha=0.7); mix(terms={'cpo': 1.0, 'sft': 0.7},
    options={'cpo': {'alpha': 0.0}}) = cpo(alpha=0.7).

    Differences: the default is MPO, 0.8 `dpo` + 0.2 `bco_pair` + 1.0 `sft`, with the weights of its authors' script.
    Terms on demonstrations get the chosen
    side. Each term's unweighted value is logged under its name. A weight of 0 leaves a term out.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2411.10442"
    search_space: ClassVar[SearchSpace] = {}  # no strength to search: learning rates instead
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE,
        "OpenGVLab/InternVL internvl_chat/shell/internvl2.0_mpo/preference_optimization/"
        "internvl2_8b_internlm2_7b_dynamic_res_mpo_full.sh@db29b7e",
        "2026-11-30",
    )

    terms: dict[str, float] = field(default_factory=lambda: dict(_MPO))  # name -> weight; useful range by term
    options: dict[str, Any] = field(default_factory=dict)  # name -> {hyper-parameter: value}; defaults where left out

    def __post_init__(self) -> None:
        require(
            self,
            terms=any(self.terms.values()) and all(-math.inf < weight < math.inf for weight in self.terms.values()),
            options=set(self.options) <= set(self.terms),
        )
        kinds = {term.needs.data for term in self._losses().values()} - {Data.DEMONSTRATIONS}
        if len(kinds) > 1:
            shapes = ", ".join(sorted(kind.value for kind in kinds))
            raise ValueError(f"terms of a mix must share one shape of data, beside demonstrations; these need {shapes}")
        if Data.DEMONSTRATIONS in self._kinds() and kinds and kinds != {Data.PAIRS}:
            raise ValueError("only pairs have a chosen side for terms on demonstrations, such as sft")
        if len({term.needs.reward_model for term in self._losses().values()}) > 1:
            raise ValueError("terms that train a reward model can only be mixed with each other")
        if any(term.needs.control_text for term in self._losses().values()):
            raise ValueError("a loss behind a control text cannot be mixed: the other terms would see that text too")

    def _losses(self) -> dict[str, Loss]:
        unknown = [name for name in self.terms if name not in MENU or name == "mix"]
        if unknown:
            raise ValueError(f"cannot mix {', '.join(unknown)}: terms are built-in losses other than mix itself")
        return {name: load_class(name)(**self.options.get(name, {})) for name, weight in self.terms.items() if weight}

    def _kinds(self) -> set[Data]:
        return {term.needs.data for term in self._losses().values()}

    @property
    def needs(self) -> Needs:
        """The union of the terms' needs."""
        all_needs = [term.needs for term in self._losses().values()]
        data = next((kind for kind in self._kinds() if kind is not Data.DEMONSTRATIONS), Data.DEMONSTRATIONS)
        flags = [f.name for f in dataclasses.fields(Needs) if f.name not in ("data", "vocab")]
        return Needs(
            data=data,
            vocab=frozenset().union(*(needs.vocab for needs in all_needs)),
            **{flag: any(getattr(needs, flag) for needs in all_needs) for flag in flags},
        )

    @property
    def ranking(self) -> Ranking:
        """The ranking of the term that compares most completions."""
        found = {traits(term).ranking for term in self._losses().values()}
        return next(r for r in (Ranking.LISTWISE, Ranking.PAIRWISE, Ranking.POINTWISE) if r in found)

    @property
    def chosen_rises(self) -> bool | None:
        """Whether a term with a positive weight raises the chosen side."""
        raising = (self.terms[name] > 0 and traits(term).chosen_rises for name, term in self._losses().items())
        return True if any(raising) else None

    @property
    def reference_update(self) -> tuple[float, int]:
        """The update of the one term whose reference moves."""
        update: tuple[float, int] = self._of_one("reference_update", lambda needs: needs.moving_reference)
        return update

    @property
    def epsilon(self) -> float:
        """That of the one term that compares the policy with moved ones."""
        epsilon: float = self._of_one("epsilon", lambda needs: bool(needs.vocab & PERTURBED))
        return epsilon

    def _of_one(self, name: str, has: Callable[[Needs], bool]) -> Any:
        """An attribute of the one term whose needs say that it has it."""
        found = [term for term in self._losses().values() if has(term.needs)]
        if len(found) != 1:
            raise AttributeError(f"a mix has `{name}` if one term has it; here {len(found)} have")
        return getattr(found[0], name)

    def initial_state(self) -> State:
        return {
            f"{name}.{key}": value
            for name, term in self._losses().items()
            if term.needs.state
            for key, value in term.initial_state().items()  # type: ignore[attr-defined]
        }

    def __call__(self, logps: Any, /, *state: State) -> LossOutput:
        outputs = {
            name: term(_view(logps, term), *(_part(given, name) for given in state if term.needs.state))
            for name, term in self._losses().items()
        }
        new_state = {f"{n}.{k}": v for n, output in outputs.items() for k, v in (output.state or {}).items()}
        metrics = {f"{n}/{k}": v for n, output in outputs.items() for k, v in output.metrics.items()}
        first = next((o for o in outputs.values() if o.chosen_reward is not None or o.reward is not None), LossOutput)
        return LossOutput(
            loss=torch.stack([self.terms[name] * output.loss for name, output in outputs.items()]).sum(0),
            chosen_reward=first.chosen_reward,
            rejected_reward=first.rejected_reward,
            reward=first.reward,
            metrics=metrics | {name: output.loss.detach() for name, output in outputs.items()},
            state=new_state if state else None,
        )

    def at_reference(self, logps: Any, /) -> torch.Tensor | None:
        if not self.needs.reference:
            return None
        at_start = _policy_at_reference(logps)
        total = torch.zeros_like(_sums(logps))
        for name, term in self._losses().items():
            value = value_at_reference(term, _view(logps, term))
            if value is None:
                value = term(_view(at_start, term)).loss.detach()
            total = total + self.terms[name] * value
        return total


def _view(logps: Any, term: Loss) -> Any:
    """The batch in the term's shape of data: the chosen side for a term on demonstrations."""
    if term.needs.data is Data.DEMONSTRATIONS and not isinstance(logps, DemoLogps):
        return DemoLogps(chosen=logps.chosen, ids=logps.ids)
    return logps


def _part(state: State, name: str) -> Mapping[str, torch.Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def _policy_at_reference(logps: Any) -> Any:
    """The batch as it is where policy = reference."""
    sides = {}
    for field_name in ("chosen", "rejected", "completion", "completions", "mismatched"):
        side = getattr(logps, field_name, None)
        if side is not None and side.ref_sum is not None:
            sides[field_name] = dataclasses.replace(side, sum=side.ref_sum, token=side.ref_token)
    return dataclasses.replace(logps, **sides)


def _sums(logps: Any) -> torch.Tensor:
    side = getattr(logps, "chosen", None) or getattr(logps, "completion", None) or logps.completions
    sums: torch.Tensor = side.sum if side.sum.ndim == 1 else side.sum[:, 0]
    return sums
