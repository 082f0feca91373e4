"""Makes what training needs by its options: accelerator, wrapped model, optimizer, schedule."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from torch import nn
from transformers import PreTrainedConfig, Trainer, TrainingArguments, get_scheduler
from transformers.trainer_pt_utils import get_parameter_names

from prefopt.common.environment import environment_kept
from prefopt.common.option_limits import check_limits
from prefopt.data.images.inputs import has_images, inputs_of
from prefopt.data.token_table import TokenTable
from prefopt.data.tokens import Ids, TokenRecord
from prefopt.engine.forward import decoder_of, evaluating, is_reward_model, unwrap
from prefopt.engine.gates import TOLERANCE, choose_layout
from prefopt.engine.packing import Cost
from prefopt.engine.policy import Policy
from prefopt.engine.scoring import Branch, MicroBatch
from prefopt.errors import UserError, first_line, nearest
from prefopt.plugin import Loss, Needs
from prefopt.train import fsdp
from prefopt.train.arguments import autocast, computed_in
from prefopt.train.metrics import figure_names
from prefopt.train.settings import RunReference
from prefopt.train.sources.source import RecordSource
from prefopt.train.trainer_config import OWN, TrainerConfig

# Weights that do not decay: of layer norms, and those with such names.
NO_DECAY = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")
ROUTER_LOSSES = ("router_aux_loss_coef", "router_z_loss_coef", "aux_loss_coef")  # weights of a router's losses
ALWAYS = ("records", "runtime")  # figures of every evaluation
HOLD_OUT = "set data.eval_records, data.eval_fraction or data.eval_path"
_NO_SEARCH = "trainer.ddp_find_unused_parameters=false, or use_reentrant in trainer.activation_checkpointing_kwargs"
BY_METRIC = ("reduce_lr_on_plateau", "greedy")  # schedules that step after an evaluation, by its metric


def check_options(args: TrainingArguments, loss: Loss, measured: Collection[str] = ()) -> None:
    """Raise UserError for options with which a run could not be made or ended, before anything is loaded for it.

    Optimizer and schedule are made for two weights, and the metric of the best model is looked for among the figures
    of an evaluation.

    Args:
        args: the options.
        loss: the plugin.
        measured: names of figures that are measured beside the loss's.
    """
    check_limits({name: limit for name, limit in TrainerConfig.LIMITS.items() if name not in OWN}, args, "trainer")
    try:
        optimizer = make_optimizer(args, nn.Linear(1, 1))
    except Exception as error:  # of torch, of transformers, of a package that is not installed
        if args.optim_target_modules and not isinstance(error, ImportError):
            return  # layers of these names are looked for, which the two weights have not
        raise UserError(f"trainer.optim={_plain(args.optim)} cannot be used: {first_line(error)[:300]}") from error
    try:
        make_schedule(args, optimizer, 100)
    except Exception as error:
        raise UserError(
            f"trainer.lr_scheduler_type={_plain(args.lr_scheduler_type)} cannot be used: {first_line(error)[:300]}; "
            "its arguments are trainer.lr_scheduler_kwargs"
        ) from error
    wanted = (args.metric_for_best_model or "loss").removeprefix("eval_")
    known = figure_names(loss)
    if known and wanted not in (known := {*known, *measured, *ALWAYS}):
        raise UserError(f"trainer.metric_for_best_model={wanted} is not a figure of the evaluation"
                        f"{nearest(wanted, sorted(known))}; it has {', '.join(sorted(known))}")  # fmt: skip


def check_kind(model: Any, needs: Needs) -> None:
    """Raise UserError where a loss that trains a reward model is given a policy, or the other way round."""
    found = is_reward_model(unwrap(model))
    if found and not needs.reward_model:
        raise UserError(f"{type(unwrap(model)).__name__} is a reward model, which this loss cannot train: it needs a "
                        "causal language model, and loss=bradley_terry trains a reward model")  # fmt: skip
    if needs.reward_model and not found:
        raise UserError("this loss trains a reward model: give a sequence classifier with one output "
                        "(`prefopt.models.reward_model.load_reward_model`)")  # fmt: skip


def check_router_loss(model: Any, weight: float) -> None:
    """Check `trainer.router_aux_loss` against the model.

    Raises:
        UserError: no weight of a loss; the model has no experts; or its config asks for a loss of its router, which
            only the option adds.
    """
    TrainerConfig.LIMITS["router_aux_loss"].check("trainer.router_aux_loss", weight)
    if weight:
        if not hasattr(unwrap(model).config.get_text_config(), "num_experts_per_tok"):
            raise UserError(f"trainer.router_aux_loss={weight} balances experts, and {type(unwrap(model)).__name__} "
                            "has none: leave it out")  # fmt: skip
        return
    for part in _parts_of(unwrap(model).config):
        found = next((name for name in ROUTER_LOSSES if getattr(part, name, 0)), None)
        if found and getattr(part, "output_router_logits", False):
            raise UserError(
                f"the model's config asks for its router's auxiliary loss (output_router_logits: true, {found}: "
                f"{getattr(part, found)}): give its weight as trainer.router_aux_loss, or set output_router_logits to "
                "false in config.json, which leaves the balance of the experts as it is"
            )


def _parts_of(config: Any) -> Iterator[Any]:
    """A config and the configs in it, such as that of the text model."""
    yield config
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig):
            yield from _parts_of(part)


def _plain(value: Any) -> Any:
    """The value of an option that is an enum."""
    return getattr(value, "value", value)


def check_parts(
    loss: Loss, args: TrainingArguments, sources: Mapping[str, RecordSource], reference: RunReference
) -> None:
    """Raise UserError for parts of a training that do not fit together."""
    needs = loss.needs
    if args.gradient_accumulation_steps != 1:
        raise UserError("trainer.gradient_accumulation_steps must stay 1: batch.records is the size of a step, and "
                        "batch.max_tokens of one forward")  # fmt: skip
    if needs.reference and not ("train" in reference.tables or reference.by_step or needs.moving_reference):
        raise UserError("this loss needs a reference, and none was given")
    if needs.live_reference and reference.policy is None:
        raise UserError("this loss needs a live reference model, and none was given")
    if "eval" not in sources and (args.eval_strategy != "no" or args.eval_on_start):
        raise UserError(f"trainer.eval_strategy needs held-out records: {HOLD_OUT}")
    fsdp.check(args, moving_reference=needs.moving_reference)


def check_images(
    model: Any, args: TrainingArguments, splits: Mapping[str, Sequence[TokenRecord] | None], *, sampled: bool = False,
    router: bool = False,
) -> bool:  # fmt: skip
    """Check that no process of a run waits for another because only one of them has images.

    With shards, every process gathers those of the weights for images where one has an image: rows of texts alone get
    an image beside them (`Batcher.blank`). DDP, unless it looks for weights without a gradient, waits for theirs.

    Args:
        model: only one that was loaded with its processor takes images.
        args: the options.
        splits: `train` and `eval`; the latter has no gradients.
        sampled: the policy writes texts in training.
        router: the router's loss is added.

    Returns:
        Whether rows of texts alone need an image beside them.

    Raises:
        UserError: they would wait.
    """
    shards = fsdp.asked_for(args)
    if args.world_size < 2 or inputs_of(unwrap(model)) is None:
        return False
    if not shards and (finds_unused(args, model) or not _learns_to_see(unwrap(model))):
        return False
    found = {
        split: {has_images(prompt) for prompt in _prompts(records)} for split, records in splits.items()
        if records is not None and (split == "train" or shards)
    }  # fmt: skip
    mixed = any(len(kinds) > 1 for kinds in found.values())
    blocked = "source=rollouts" if sampled else "trainer.router_aux_loss" if router else None
    if mixed and (blocked or not shards):
        option = f"{blocked} and trainer.fsdp together" if shards else _NO_SEARCH
        raise UserError("some records have images and some have none, and processes would wait for each other: "
                        f"train image and text records apart, or without {option}")  # fmt: skip
    if not shards and False in found.get("train", ()):
        raise UserError("the records have no images, and processes would wait for the gradients of the weights "
                        f"that see: train without {_NO_SEARCH}")  # fmt: skip
    return mixed


def _prompts(records: Sequence[TokenRecord]) -> Iterator[Ids]:
    return records.prompts() if isinstance(records, TokenTable) else (record.prompt for record in records)


def _learns_to_see(causal: Any) -> bool:
    """Whether weights are trained that only images reach."""
    head = causal.score if is_reward_model(causal) else causal.get_output_embeddings()
    text = {id(weight) for part in (decoder_of(causal).get_decoder(), head) for weight in part.parameters()}
    return any(weight.requires_grad and id(weight) not in text for weight in causal.parameters())


def finds_unused(args: TrainingArguments, model: Any) -> bool:
    """Whether DDP looks for weights without a gradient; it cannot find them behind reentrant recomputation."""
    if args.ddp_find_unused_parameters is not None:
        return bool(args.ddp_find_unused_parameters)
    if args.activation_checkpointing:
        given: Any = args.activation_checkpointing_kwargs or {}
        return not given.get("use_reentrant", False)
    return not getattr(model, "is_activation_checkpointing", False)  # set up by the caller, in whichever way


def make_accelerator(args: TrainingArguments, model: Any) -> Accelerator:
    """accelerate for these options; it wraps in DDP, clips, scales, and lets processes exchange what they have."""
    options: dict[str, Any] = {"find_unused_parameters": finds_unused(args, model)}
    if args.ddp_bucket_cap_mb is not None:
        options["bucket_cap_mb"] = args.ddp_bucket_cap_mb
    with environment_kept(fsdp.SWITCH):
        os.environ.pop(fsdp.SWITCH, None)  # `fsdp.shard` does it, on CPUs too
        return Accelerator(
            mixed_precision=args.mixed_precision,
            dynamo_backend="no",
            kwargs_handlers=[DistributedDataParallelKwargs(**options)],
        )


def wrap(policy: Policy, accelerator: Accelerator, args: TrainingArguments) -> Any:
    """The policy as processes train it together: sharded, or in DDP; a single process trains it as it is."""
    settings = fsdp.settings(args)
    if args.torch_compile:
        compile_blocks(policy, args)
    if settings is None:
        return accelerator.prepare_model(policy)
    if settings.activation_checkpointing:
        _recompute(policy.model, {}, offload=bool(settings.activation_checkpointing_offload))
    fsdp.shard(policy, settings, args)
    return policy


def compile_blocks(policy: Policy, args: TrainingArguments) -> None:
    """Compile the layers of the model, one by one, and check that its log-probs stay what they are.

    Raises:
        UserError: they change by more than rounding, or a layer cannot be compiled.
    """
    rows = [Branch(np.arange(1, 6, dtype=np.int32), np.arange(1, n, dtype=np.int32)) for n in (4, 7)]
    batch = MicroBatch.of(rows, policy.layout.layout)

    def score() -> Any:
        with torch.no_grad(), evaluating(policy), autocast(args):
            return batch.forward(policy).stats.logp

    before = score()
    try:
        for layer in fsdp.layers(policy):
            layer.compile(backend=args.torch_compile_backend, mode=args.torch_compile_mode)
        off = float((score() - before).abs().max())
    except Exception as error:  # of dynamo, of the backend, of a compiler
        raise UserError(f"trainer.torch_compile: the layers of {type(policy.causal).__name__} cannot be compiled "
                        f"({first_line(error)[:300]}); leave it out") from error  # fmt: skip
    if not off <= TOLERANCE.get(computed_in(args, policy), 0.25):
        raise UserError(f"trainer.torch_compile changes log-probs by {off:.2g} nats a token in the layout "
                        f"{policy.layout.layout}: leave it out, or try batch.layout=padded")  # fmt: skip


def recompute_activations(model: Any, args: TrainingArguments) -> None:
    """Compute activations again in the backward, instead of keeping them."""
    given: Any = args.activation_checkpointing_kwargs or {}
    options = dict(given)
    _recompute(model, options, every=options.pop("every_n_layers", 1), offload=options.pop("offload", False))


def _recompute(model: Any, options: dict[str, Any], *, every: int = 1, offload: bool = False) -> None:
    options = {"use_reentrant": False} | options
    model.activation_checkpointing_enable(
        activation_checkpointing_kwargs=options, every_n_layers=every, offload=offload
    )


def make_optimizer(args: TrainingArguments, model: nn.Module, values: nn.Module | None = None) -> Any:
    """The optimizer `args.optim` over the trainable weights of the model and of its value model, in two groups each:
    with weight decay and without."""
    groups: Any = []
    for part in (model, values) if values is not None else (model,):
        decaying = set(get_parameter_names(part, [nn.LayerNorm], list(NO_DECAY)))  # type: ignore[no-untyped-call]
        trainable = [(name, weight) for name, weight in part.named_parameters() if weight.requires_grad]
        groups.append({"params": [w for n, w in trainable if n in decaying], "weight_decay": args.weight_decay})
        groups.append({"params": [w for n, w in trainable if n not in decaying], "weight_decay": 0.0})
    made, options = Trainer.get_optimizer_cls_and_kwargs(args, model)  # type: ignore[arg-type]
    for name in ("params", "model", "optimizer_dict"):  # optimizers that choose their weights themselves
        groups = options.pop(name, groups)
    return made(groups, **options)


def make_schedule(args: TrainingArguments, optimizer: Any, steps: int) -> Any:
    """The schedule `args.lr_scheduler_type` of the learning rate over so many steps."""
    return get_scheduler(
        args.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=args.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,  # type: ignore[arg-type]
    )


def by_metric(args: TrainingArguments) -> bool:
    """Whether the schedule follows a metric instead of the steps."""
    return str(_plain(args.lr_scheduler_type)) in BY_METRIC


def learning_rate(args: TrainingArguments, optimizer: Any, schedule: Any) -> float:
    """The learning rate of the step that was just made."""
    rate = optimizer.param_groups[0]["lr"] if by_metric(args) else schedule.get_last_lr()[0]
    return float(rate)


def policies(model: Any, live: Any, wish: str) -> tuple[Policy, Policy | None]:
    """The policy and a live reference, which score the same rows: in a layout that both can take."""
    verdicts = [choose_layout(m, wish) for m in (model, live) if m is not None]
    verdict = next((v for v in verdicts if v.layout == "padded"), verdicts[0])
    reference = None if live is None else Policy(live, verdict).eval().requires_grad_(False)
    return Policy(model, verdict), reference


def cost_of(model: Any) -> Cost:
    """What tokens cost in a model."""
    causal = unwrap(model)
    config = causal.config.get_text_config()
    vocab = 0 if is_reward_model(causal) else config.vocab_size  # a reward model has no output layer over words
    return Cost.of(hidden_size=config.hidden_size, num_layers=config.num_hidden_layers, vocab_size=vocab)


def precision(args: TrainingArguments) -> str | None:
    """The precision that log-probs are computed in, other than that of the weights: what a fingerprint tells apart."""
    return "bf16" if args.bf16 else "fp16" if args.fp16 else None


def order_seed(args: TrainingArguments) -> int:
    """The seed of the order of records or prompts."""
    return args.seed if args.data_seed is None else args.data_seed


def check_same_weights(name: str) -> None:
    """Raise UserError where the processes start from different weights; `name` is a fingerprint."""
    if PartialState().num_processes > 1 and len(set(gather_object([name]))) > 1:
        raise UserError("the processes of this run started from different weights: was the model loaded with the same "
                        "seed and all of its weights on each?")  # fmt: skip
