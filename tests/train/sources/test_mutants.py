"""Mistakes of other libraries in learning from a model's own samples: each, made here, fails the test that is named.

A mistake is an edit of our source: a function is compiled again with a piece of its text replaced.
"""

from __future__ import annotations
import __future__

import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pytest

from prefopt.engine import layout
from prefopt.errors import PrefoptError
from prefopt.losses import grpo, ppo, reinforce_pp, rloo
from prefopt.plugin import with_targets
from prefopt.rewards import model
from prefopt.testing import numbers
from prefopt.train import api
from prefopt.train import step as steps
from prefopt.train.sources import labels, rollouts, vllm_server
from tests.losses import rollouts as worlds
from tests.losses import test_grpo, test_ppo, test_rloo
from tests.rewards import test_model, test_reward
from tests.train import test_reward_models, test_values
from tests.train.sources import test_labels, test_rollouts, test_vllm_server

stub = test_vllm_server.stub  # a fixture


@dataclass(frozen=True)
class Edit:
    """A piece of the source of `owner.name`, and what stands there instead."""

    owner: Any
    name: str
    old: str
    new: str

    def make(self, patch: pytest.MonkeyPatch) -> None:
        """Put the changed function in the place of the right one."""
        kept = inspect.getattr_static(self.owner, self.name)
        function = kept.fget if isinstance(kept, property) else getattr(kept, "func", kept)  # of a cached property
        source = textwrap.dedent(inspect.getsource(function))
        assert source.count(self.old) == 1, f"{self.name} no longer reads {self.old!r}: write the mistake anew"
        namespace = dict(function.__globals__)
        code = compile(source.replace(self.old, self.new), function.__code__.co_filename, "exec",
                       flags=__future__.annotations.compiler_flag)  # fmt: skip
        exec(code, namespace)
        made = namespace[function.__name__]
        if isinstance(kept, cached_property):
            made.__set_name__(self.owner, self.name)
        patch.setattr(self.owner, self.name, made)


@dataclass(frozen=True)
class Mistake:
    """A mistake, where it was made, and the test that fails where it is made here."""

    what: str
    where: str
    edits: tuple[Edit, ...]
    killed_by: Callable[..., None]
    given: Mapping[str, Any] = field(default_factory=dict)


NO_KL = Edit(rloo, "penalised", "rollout.scores - ", "rollout.scores - 0 * ")


def in_the_loss(estimator: str) -> tuple[Edit, Edit]:
    """The KL moved from RLOO's rewards into its loss."""
    surrogate = '-ratio * logps.targets["advantage"]'
    return NO_KL, Edit(rloo.RLOO, "__call__", surrogate, f"{surrogate} + self.beta * {estimator}")


def in_the_loss_of_tokens(estimator: str) -> tuple[Edit, Edit]:
    """The KL moved from the rewards of Dr. GRPO into its loss, token by token."""
    surrogate = "surrogate(token_ratio(logps), advantage, loss.epsilon)"
    moved = Edit(grpo, "_clipped", surrogate, f"{surrogate} - loss.beta * {estimator}")
    return Edit(grpo, "penalised", NO_KL.old, NO_KL.new), moved


EXACT = test_rloo.test_rloo_gives_the_exact_gradient_in_expectation
SPLITS = test_rollouts.test_splits_change_nothing
OWN_REWARD = test_rollouts.test_each_text_has_its_own_reward
RHO = "logps.completions.ratio"

MISTAKES = {
    "1 k1": Mistake("KL by k1 in the loss, sold as RLHF", "TRL #2854, #4967", in_the_loss(RHO), EXACT),
    "1 k2": Mistake(
        "KL by k2 of tokens in the loss, sold as RLHF", "OpenRLHF #1309",
        in_the_loss_of_tokens("(now.per_token - now.ref_per_token).square() / 2"),
        test_grpo.test_dr_grpo_gives_the_exact_gradient_in_expectation_but_for_the_factor,
    ),
    "1 k3": Mistake(
        "KL by k3 in the loss, sold as RLHF", "open-instruct #534", in_the_loss(f"k3({RHO}, 0 * {RHO})"), EXACT
    ),
    "2": Mistake(
        "a reward model's score read before the end token", "TRL #1893, #3750, #5338",
        (Edit(layout.Tree, "fed", "branch if self.closing else branch[:-1]", "branch[:-1]"),),
        test_reward_models.test_the_score_is_read_at_the_last_token,
    ),
    "2 padding": Mistake(
        "the padding token ends texts, so a classifier reads them one token early", "TRL #1893",
        (Edit(test_model, "set_padding", "token is not None and token not in ends", "token is not None"),),
        test_model.test_padding_that_ends_texts_is_refused_or_replaced,
    ),
    "3 missing": Mistake(
        "texts are scored without their end token", "TRL",
        (Edit(test_reward, "answer", "decode(list(completion))",
              "decode(list(completion), skip_special_tokens=True)"),),
        test_reward.test_an_answer_keeps_its_end_token,
    ),
    "3 pasted": Mistake(
        "an end token is pasted on texts that were cut off", "OpenRLHF #238",
        (Edit(test_reward, "answer", "decode(list(completion))", "decode([*completion, ends[0]])"),),
        test_reward.test_a_text_that_was_cut_off_has_no_end_token,
    ),
    "4 prompt": Mistake(
        "an end token is looked for in the prompt, too", "TRL #6802",
        (Edit(test_reward, "answer", "completion[-1] in ends", "any(t in ends for t in (*prompt, *completion))"),),
        test_reward.test_a_text_that_was_cut_off_has_no_end_token,
    ),
    "4 replaces": Mistake(
        "the penalty of a missing end replaces the reward", "TRL #2012",
        (Edit(rollouts.Rollouts, "roll",
              "rewards - self.config.missing_end_penalty * np.array([not a.ended for a in answers])",
              "np.where([a.ended for a in answers], rewards, -self.config.missing_end_penalty)"),),
        test_rollouts.test_a_text_that_was_cut_off_costs_and_stays_in_the_baseline,
    ),
    "5 masked": Mistake(
        "cut-off samples are masked, but stay in the baseline", "TRL #3248",
        (Edit(rloo.RLOO, "targets", ".clamp(min=1)", ".clamp(min=1) * rollout.ended"),),
        test_rollouts.test_texts_and_advantages_are_those_of_the_loss,
    ),
    "5 moved": Mistake(
        "advantages go to other texts after filtering", "open-instruct #1794",
        (Edit(rollouts, "targeted", "value[i] for", "value[i - 1] for"),),
        test_rollouts.test_texts_and_advantages_are_those_of_the_loss,
    ),
    "6 tokens": Mistake(
        "a mean over the tokens of each micro-batch", "open-instruct #1161, verl #7321",
        (Edit(reinforce_pp.ReinforcePP, "__call__", "logps.targets[\"share\"]",
              "(len(logps.scores) / now.num_tokens.sum())"),),
        SPLITS, {"name": "reinforce_pp"},
    ),
    "6 steps": Mistake(
        "gradients grow with the number of micro-batches", "verl #7321",
        (Edit(steps.Step, "micro_batch", "outcome.weighted.sum() / examples", "outcome.weighted.mean()"),),
        SPLITS, {"name": "rloo"},
    ),
    "7 config": Mistake(
        "the model's generation_config decides how texts are drawn", "TRL #5783",
        (Edit(rollouts.Rollouts, "_drawn", "temperature=self.config.temperature",
              "temperature=self.policy.model.generation_config.temperature or 1.0"),),
        test_rollouts.test_the_models_own_generation_config_changes_nothing,
    ),
    "7 one side": Mistake(
        "a temperature on the sampler's side alone", "TRL #4159",
        (Edit(rollouts.Rollouts, "_drawn", "scored_at=self.temperature", "scored_at=1.0"),),
        test_rollouts.test_ratios_are_of_the_distribution_drawn_from, {"name": "rloo"},
    ),
    "7 top-p": Mistake(
        "top-p cuts the distribution that ratios are of", "TRL #6789",
        (Edit(vllm_server.VllmServer, "draw", "**WHOLE_DISTRIBUTION}", "**{**WHOLE_DISTRIBUTION, 'top_p': 0.9}}"),),
        test_vllm_server.test_a_run_learns_from_texts_of_the_server, {"name": "rloo"},
    ),
    "8": Mistake(
        "a log-prob that the sampler did not give is filled with 0", "NeMo #4218",
        (Edit(vllm_server, "_text", "    missing =", "    found = [value or 0.0 for value in found]\n    missing ="),),
        test_vllm_server.test_an_incomplete_answer_stops_the_run, {"fault": "no log-prob", "message": "no log-prob"},
    ),
    "9": Mistake(
        "texts of stale weights are learnt from", "NeMo #4018",
        (Edit(steps.Step, "_check_drawn", "work.fresh and work.real", "False"),),
        test_rollouts.test_another_sampler_stops_the_run,
    ),
    "9 cache": Mistake(
        "the server keeps the prefix cache of the old weights", "NeMo #4018",
        (Edit(vllm_server.VllmServer, "_reload", 'self._call("/reset_prefix_cache", {})', "None"),),
        test_vllm_server.test_a_run_learns_from_texts_of_the_server, {"name": "rloo"},
    ),
    "10": Mistake(
        "dropout stays on", "TRL #3234",
        (Edit(api, "_build", "remove_randomness(parts.policy)", "None"),),
        test_rollouts.test_dropout_is_off_where_texts_are_learnt_from,
    ),
    "11": Mistake(
        "a group whose deviation is rounding has advantages of thousands", "NeMo #4158",
        (Edit(grpo.GRPO, "targets", "divisor(deviation, reward)", "deviation"),),
        test_grpo.test_a_group_of_equal_rewards_teaches_nothing,
    ),
    "12": Mistake(
        "rewards are clipped behind the baseline", "OpenRLHF",
        (Edit(rloo.RLOO, "targets", "(reward - group_mean(reward, mask))",
              "(reward - group_mean(reward, mask)).clamp(-0.1, 0.1)"),),
        test_rloo.test_rloo_at_reference,
    ),
    "13 dual clip": Mistake(
        "plain PPO bounds the fall of a bad text from below", "verl",
        (Edit(ppo, "surrogate", "return ", "return torch.where(advantage < 0, 3 * advantage, -torch.inf).maximum("
              "ratio * advantage) if True else "),),
        test_ppo.test_a_bad_text_that_rose_is_not_let_off,
    ),
    "13 one": Mistake(
        "a group of one keeps its reward", "OpenRLHF",
        (Edit(rloo.RLOO, "targets", "group_mean(reward, mask)", "group_mean(reward, mask) * (count > 1)"),),
        test_rloo.test_a_group_of_one_teaches_nothing,
    ),
    "14 padding": Mistake(
        "a figure of the KL counts padding", "TRL",
        (Edit(rollouts, "_drift", "[~opponent].mean()", "[~opponent].sum() / (5 * len(drawn))"),),
        test_rollouts.test_kl_is_the_mean_log_ratio_of_texts,
    ),
    "14 ties": Mistake(
        "ties are trained as wins", "TRL",
        (Edit(labels, "_preferences", "np.sign(gap)", "(1.0 if gap >= 0 else -1.0)"),),
        test_labels.test_equal_rewards_are_no_win,
    ),
    "15": Mistake(
        "a reward model's texts are cut up by the policy's tokenizer", "TRL #6952",
        (Edit(model.ModelReward, "reads_tokens", "same_tokens(own, writer.tokenizer) and (", "True or ("),),
        test_model.test_another_tokenizer_reads_the_text_anew,
    ),
    "16 terminal": Mistake(
        "a text that was cut off counts as one that ended", "TRL",
        (Edit(ppo.PPO, "targets", "rollout.ended | ", "torch.ones_like(rollout.ended) | "),),
        test_ppo.test_ppo_by_hand,
    ),
    "16 transposed": Mistake(
        "groups are transposed: rewards go to texts of other prompts", "TRL",
        (Edit(rollouts.Rollouts, "roll", "rewards.reshape(len(chosen), -1)", "rewards.reshape(-1, len(chosen)).T"),),
        OWN_REWARD,
    ),
    "16 attached": Mistake(
        "advantages carry a gradient", "verl",
        (Edit(numbers, "with_targets", "completions=logps.old, old=None, targets={})\n    return "
              "dataclasses.replace(logps, targets={name: t.detach()", "old=None, targets={})\n    return "
              "dataclasses.replace(logps, targets={name: t"),),
        test_grpo.test_dr_grpo_is_rloo_but_for_a_factor, {"seed": 0},  # RLOO's own sum to 0, whatever they carry
    ),
    "16 old": Mistake(
        "PPO's old policy is the reference", "TRL",
        (Edit(ppo, "token_ratio", "drawn(logps).per_token", "logps.completions.ref_per_token"),),
        test_ppo.test_ppo_by_hand,
    ),
    "16 values": Mistake(
        "values are clipped around themselves, which clips nothing", "a public PPO trainer",
        (Edit(ppo.PPO, "_value_term", "old + (values - old)", "values + (values - old)"),),
        test_ppo.test_ppo_by_hand,
    ),
    "17": Mistake(
        "the value loss reaches the policy's weights", "TRL",
        (Edit(api, "own_samples", "Policy(twin(model), policy.layout)", "Policy(model, policy.layout)"),),
        test_values.test_the_value_term_never_touches_the_policy,
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_the_mistake_is_caught(
    mistake: Mistake, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = dict(mistake.given)
    wanted = set(inspect.signature(mistake.killed_by).parameters) & {"tmp_path", "monkeypatch", "stub"}
    given |= {name: request.getfixturevalue(name) for name in wanted}
    for edit in mistake.edits:
        edit.make(monkeypatch)
    with pytest.raises((AssertionError, ValueError, PrefoptError, pytest.fail.Exception)):
        mistake.killed_by(**given)


def test_the_right_code_passes_where_an_edit_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling a function again is not what fails the tests."""
    Edit(rloo.RLOO, "targets", "rollout.mask", "rollout.mask").make(monkeypatch)
    Edit(worlds, "with_targets", "t.detach()", "t.detach()").make(monkeypatch)
    assert worlds.with_targets is not with_targets
    EXACT()


def test_every_mistake_of_the_list_is_made() -> None:
    assert {name.split()[0] for name in MISTAKES} == {str(number) for number in range(1, 18)}
