"""Makes what a run on the policy's own samples learns from, of a model, a loss, a reward and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from prefopt.data.tokens import TokenRecord
from prefopt.engine.forward import unwrap
from prefopt.engine.generation import end_tokens
from prefopt.engine.layout import Layout
from prefopt.engine.limits import check_length
from prefopt.engine.policy import Policy
from prefopt.engine.randomness import remove_randomness
from prefopt.engine.reference.fingerprint import fingerprint
from prefopt.engine.values import ValueModel
from prefopt.errors import UserError
from prefopt.models.adapters import twin
from prefopt.plugin import Loss
from prefopt.train import fsdp
from prefopt.train.arguments import autocast
from prefopt.train.batch_config import BatchConfig
from prefopt.train.settings import Parts, RunReference, Settings
from prefopt.train.setup import check_same_weights, order_seed, policies, precision
from prefopt.train.sources.rollout_config import RolloutConfig
from prefopt.train.sources.rollouts import Prompt, Rollouts
from prefopt.train.sources.vllm_server import VllmServer


def own_samples(
    model: Any, loss: Loss, records: Sequence[TokenRecord], given: Settings, args: TrainingArguments
) -> Parts:
    """What learns from samples behind the prompts of `records`.

    Raises:
        UserError: options that do not go with samples.
    """
    assert given.reward is not None
    needs, batch, rollout = loss.needs, given.batch or BatchConfig(), given.rollout.settled(loss)
    rollout.check(loss)
    _check(args, given, rollout)
    prompts = prompts_of(records)
    longest = max(len(prompt.tokens) for prompt in prompts)
    check_length(unwrap(model), longest + rollout.max_new_tokens, f"a prompt of {longest} tokens with its samples")
    reads = needs.reads_reference
    name = fingerprint(model if given.reference is None else given.reference, precision(args)) if reads else None
    if name is not None:
        check_same_weights(name)
    is_start = given.reference is None or name == fingerprint(model, precision(args))
    policy, live = policies(model, twin(model, given.reference) if reads else None, batch.layout)
    if needs.values:
        body = Policy(twin(model), policy.layout) if given.value_model is None else _estimating(given, policy)
        policy.values = ValueModel(body)
        remove_randomness(body)
    positions = most_positions(longest, rollout, policy.layout.layout)
    source = Rollouts(
        prompts=prompts,
        policy=policy,
        loss=loss,
        reward=given.reward,
        config=rollout,
        tokenizer=given.tokenizer,
        ends=end_tokens(model, given.tokenizer),
        records=batch.records,
        seed=order_seed(args),
        reference=live,
        max_tokens=batch.budget(args.device.type, positions, own_samples=True),
        process=(args.process_index, args.world_size),
        precision=partial(autocast, args),
        look=given.look,
        server=server_of(rollout, Path(args.output_dir or ".")),
    )
    reference = RunReference(
        name=name,
        policy=live if needs.live_reference else None,
        is_start=is_start,
        by_step=live is not None,
    )
    return Parts(policy, source.max_tokens, {"train": source}, reference)


def server_of(rollout: RolloutConfig, folder: Path) -> VllmServer | None:
    """The server that draws the samples; None for the engine itself."""
    if rollout.sampler == "own":
        return None
    assert rollout.url is not None, "checked with the configuration"
    return VllmServer(rollout.url, folder, rollout.max_stale)


def prompts_of(records: Sequence[TokenRecord]) -> list[Prompt]:
    """The prompts of records, each once, in their order.

    Raises:
        UserError: no records, or records of one prompt with different weights.
    """
    found: dict[bytes, Prompt] = {}
    for i in range(len(records)):
        record = records[i]
        prompt = Prompt(record.id, record.prompt, record.stable_int, record.weight)
        first = found.setdefault(record.prompt.tobytes(), prompt)
        if first.weight != prompt.weight:
            raise UserError(f"the records {first.id} and {prompt.id} have the same prompt and different weights "
                            f"({first.weight:g}, {prompt.weight:g}), and samples are drawn once behind it: give the "
                            "prompt one weight, or leave the column out with data.ignore")  # fmt: skip
    if not found:
        raise UserError("there are no prompts to sample behind: see which rows were rejected, and why")
    return list(found.values())


def most_positions(longest: int, rollout: RolloutConfig, layout: Layout) -> int:
    """The most positions that the samples of one prompt take in a forward, their last tokens included."""
    count, new = rollout.num_generations, rollout.max_new_tokens
    return longest + count * new if layout == "tree" else count * (longest + new)


def _estimating(given: Settings, policy: Policy) -> Policy:
    """The reward model that the values start as, in the layout of the policy's rows."""
    body = Policy(given.value_model, policy.layout.layout)
    if not body.is_reward_model:
        raise UserError(f"{type(body.causal).__name__} as value_model: give a sequence classifier with one output")
    return body


def _check(args: TrainingArguments, given: Settings, rollout: RolloutConfig) -> None:
    if given.tokenizer is None:
        raise UserError("samples are scored as text: give the tokenizer (`tokenizer=`)")
    if fsdp.settings(args) is not None:
        raise UserError("trainer.fsdp does not go with source=rollouts: a sharded model writes no texts here; use DDP, "
                        "or peft=lora for less memory")  # fmt: skip
    if args.eval_strategy != "no" or args.eval_on_start:
        raise UserError("trainer.eval_strategy: held-out records are not scored in a run on the policy's own samples, "
                        "whose steps log `reward` and `kl`; leave it out")  # fmt: skip
    updates, every = rollout.updates, args.save_steps
    if args.save_strategy == "steps" and updates and every % updates:
        raise UserError(f"trainer.save_steps={every} must be a multiple of rollout.updates={updates}: a checkpoint in "
                        "the middle of a rollout has no samples to resume with")  # fmt: skip
