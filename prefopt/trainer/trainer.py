"""`transformers.Trainer` for any loss plugin: global batches in token-budgeted micro-batches, exact figures, checkpoints
that are whole or absent.

It knows no loss by name: it reads `needs`. What transformers' loop calls a batch is here a whole optimizer step.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments

from prefopt.engine.forward import Ask, install, unwrap
from prefopt.engine.gates import choose_layout
from prefopt.engine.head import Head, Reference
from prefopt.engine.plan import Cost
from prefopt.engine.reference import ReferenceTable
from prefopt.errors import TrainingError, UserError
from prefopt.plugin import Loss, LossOutput, State, Vocab
from prefopt.trainer.batches import BatchConfig, GlobalBatch, Steps, StepSampler, Work, loader
from prefopt.trainer.checkpoints import point, rotate, writing
from prefopt.trainer.examples import Examples, Facts, Flat, examples_of
from prefopt.trainer.feed import Feed
from prefopt.trainer.metrics import Tally, tally_batch

LOSS_STATE = "loss_state.safetensors"
REFERENCE = "reference.safetensors"


@dataclass(frozen=True, eq=False)
class Scored:
    """Some records, scored, and the loss on them."""

    facts: Sequence[Facts]
    flat: Flat
    examples: Examples
    output: LossOutput

    @property
    def weighted(self) -> Tensor:
        """(B,) the loss times the weight of the record it belongs to."""
        weights = torch.tensor([f.weight for f in self.facts], device=self.output.loss.device)
        return self.output.loss * weights[self.examples.record].to(self.output.loss.dtype)


class PreferenceTrainer(Trainer):
    """Trains a causal language model with a loss plugin.

    Args:
        model: the policy.
        loss: the plugin.
        args: transformers' arguments; one "batch" of theirs is one optimizer step here, so
            `gradient_accumulation_steps` must be 1.
        train, eval: records in tokens.
        batch: global batch and token budget.
        train_reference, eval_reference: the reference's log-probs of the same feeds, where there is a reference.
        reference_model: a live reference, for losses that need its whole vocabulary or move it; a PEFT policy without
            one uses itself with the adapter off.
        policy_is_reference: the policy starts as the reference, so the first batch's loss is known beforehand.
        tokenizer: saved with the checkpoints.

    Raises:
        UserError: arguments that do not fit together, or that the planner or the gates refuse.
    """

    def __init__(
        self,
        model: Any,
        loss: Loss,
        args: TrainingArguments,
        *,
        train: Feed,
        eval: Feed | None = None,
        batch: BatchConfig | None = None,
        train_reference: ReferenceTable | None = None,
        eval_reference: ReferenceTable | None = None,
        reference_model: Any = None,
        policy_is_reference: bool = False,
        tokenizer: Any = None,
        callbacks: list[Any] | None = None,
    ) -> None:
        if args.gradient_accumulation_steps != 1:
            raise UserError("trainer.gradient_accumulation_steps must stay 1: batch.records is the size of a step, "
                            "and batch.max_tokens of one forward")  # fmt: skip
        if loss.needs.reference and train_reference is None and not loss.needs.moving_reference:
            raise UserError("this loss needs a reference, and none was given")
        self.loss = loss
        self.batch = batch or BatchConfig()
        self.tokenizer = tokenizer
        self.layout = choose_layout(model, self.batch.layout)
        install(model, self.layout.layout)
        self.feeds = {"train": train, "eval": eval}
        self.tables = {"train": train_reference, "eval": eval_reference}
        self.reference_model = reference_model
        if reference_model is not None:
            install(reference_model, self.layout.layout).eval().requires_grad_(False)
        self.check_first = policy_is_reference and loss.needs.reference
        self.loss_state: State | None = loss.initial_state() if loss.needs.state else None  # type: ignore[attr-defined]
        self.tally = Tally()
        self.tokens_seen = 0
        self._tokens_logged, self._logged_at = 0, time.perf_counter()
        dataset = Steps(train, loss.needs, self.layout.layout, train_reference)
        super().__init__(model=model, args=args, train_dataset=dataset, callbacks=callbacks)
        self.remove_callback(PrinterCallback)
        if reference_model is not None:
            self._move_model_to_device(reference_model, args.device)

    # ---- data

    def get_train_dataloader(self) -> DataLoader[GlobalBatch]:
        """A plain loader whose batches are whole steps; accelerate does not touch it."""
        sampler = self._sampler("train", shuffle=True)
        pin = self.args.dataloader_pin_memory and self.args.device.type == "cuda"
        return loader(self.train_dataset, sampler, num_workers=self.args.dataloader_num_workers, pin_memory=pin)

    def _sampler(self, split: str, *, shuffle: bool) -> StepSampler:
        feed = self.feeds[split]
        assert feed is not None
        config = unwrap(self.model).config.get_text_config()
        cost = Cost.of(
            hidden_size=config.hidden_size, num_layers=config.num_hidden_layers, vocab_size=config.vocab_size
        )
        process = (self.args.process_index, self.args.world_size)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return StepSampler(
            feed, self.loss.needs, self.batch, self.layout.layout, cost, seed=seed, process=process, shuffle=shuffle
        )

    def _get_num_items_in_batch(self, batch_samples: list[GlobalBatch], device: torch.device) -> None:
        return None  # a global batch knows its own size

    def floating_point_ops(self, inputs: GlobalBatch) -> int:  # type: ignore[override]
        """Six per token and weight, by the tokens fed."""
        return 6 * inputs.tokens_fed * int(self.model.num_parameters(exclude_embeddings=True))

    # ---- one step

    def training_step(self, model: nn.Module, inputs: GlobalBatch, num_items_in_batch: Any = None) -> Tensor:  # type: ignore[override]
        """Forward and backward of one optimizer step; returns this process's share of the global mean, times the
        number of processes (transformers averages over them)."""
        model.train()
        if hasattr(self.optimizer, "train") and callable(self.optimizer.train):
            self.optimizer.train()
        first = self.check_first and self.state.global_step == 0
        cached = self.loss.needs.coupled and (len(inputs.work) > 1 or self.args.world_size > 1)
        value = self._step_in_two_passes(model, inputs, first) if cached else self._step(model, inputs, first)
        self.tokens_seen += inputs.tokens_fed
        return value

    def _step(self, model: nn.Module, inputs: GlobalBatch, first: bool) -> Tensor:
        """Each micro-batch forward and backward; the loss of an example does not depend on the others."""
        value = torch.zeros((), device=self.args.device)
        for i, work in enumerate(inputs.work):
            with self._sync(model, last=i == len(inputs.work) - 1):
                with self.compute_loss_context_manager():
                    scored = self._call_loss(work.facts, self._score(model, work))
                    objective = scored.weighted.sum() / inputs.examples * self.args.world_size
                if not work.real:
                    objective = objective.nan_to_num() * 0.0
                else:
                    self._inspect(scored, first)
                    tally_batch(self.tally, scored.facts, scored.flat, scored.examples, scored.output)
                self._backward(objective)
            self._keep_state(scored.output)
            value += objective.detach()
        return value

    def _step_in_two_passes(self, model: nn.Module, inputs: GlobalBatch, first: bool) -> Tensor:
        """A loss that couples examples, over several micro-batches or processes (a gradient cache).

        Without graph, score the whole global batch; the loss on it gives d loss / d log-prob; with graph, score again
        and carry that back. Random state is restored, so dropout draws the same.
        """
        states, flats = [], []
        with torch.no_grad():
            for work in inputs.work:
                states.append(_random_state(self.args.device))
                with self.compute_loss_context_manager():
                    flats.append(self._score(model, work))
        whole, facts, places = self._gather(inputs.work, flats)
        leaf = replace(whole, sum=whole.sum.detach().requires_grad_(True))
        scored = self._call_loss(facts, leaf)
        self._inspect(scored, first)
        objective = scored.weighted.sum() / inputs.examples
        (pull,) = torch.autograd.grad(objective, leaf.sum)
        if self.args.process_index == 0:
            tally_batch(self.tally, scored.facts, scored.flat, scored.examples, scored.output)
        for i, (work, state, place) in enumerate(zip(inputs.work, states, places, strict=True)):
            _set_random_state(state, self.args.device)
            with self._sync(model, last=i == len(inputs.work) - 1):
                with self.compute_loss_context_manager():
                    out = self._score(model, work)
                    part = out.sum * pull[place] if work.real else out.sum * 0.0
                self._backward(part.sum() * self.args.world_size)
        self._keep_state(scored.output)
        return objective.detach()

    def _gather(self, work: Sequence[Work], flats: Sequence[Flat]) -> tuple[Flat, list[Facts], list[Tensor]]:
        """The whole global batch from all processes, in the order of the data; and where this process's completions
        stand in it."""
        device = flats[0].sum.device
        mine: list[tuple[int, Facts, list[Tensor | None]]] = []
        for w, flat in zip(work, flats, strict=True):
            if w.real:
                sizes = [f.completions for f in w.facts]
                columns = [c.detach().cpu().split(sizes) if c is not None else [None] * len(sizes)
                           for c in (flat.sum, flat.num_tokens, flat.ref_sum)]  # fmt: skip
                mine += [(i, f, list(parts)) for i, f, *parts in zip(w.index, w.facts, *columns, strict=True)]
        everyone = gather_object(mine) if self.args.world_size > 1 else mine
        everyone = sorted(everyone, key=lambda entry: entry[0])
        columns = [[entry[2][c] for entry in everyone] for c in range(3)]
        cat = [torch.cat(c).to(device) if c[0] is not None else None for c in columns]  # type: ignore[arg-type]
        start, at = {}, 0
        for index, facts, _ in everyone:
            start[index] = at
            at += facts.completions
        places = [
            torch.tensor([start[i] + c for i, f in zip(w.index, w.facts, strict=True) for c in range(f.completions)])
            if w.real
            else torch.empty(0, dtype=torch.long)
            for w in work
        ]
        assert cat[0] is not None
        assert cat[1] is not None
        return Flat(cat[0], cat[1], cat[2]), [f for _, f, _ in everyone], [p.to(device) for p in places]

    def _score(self, model: nn.Module, work: Work) -> Flat:
        needs = self.loss.needs
        ask = Ask(vocab=needs.vocab & {Vocab.LOG_SUM_SQ, Vocab.KL})
        if Vocab.KL in needs.vocab:
            row = work.batch.row.to(self.args.device)
            with torch.no_grad(), self._reference(model) as reference:
                hidden = reference(prefopt_row=row, prefopt_ask=Ask(hidden_only=True))
                ask = ask._replace(reference=Reference(hidden, Head.of(unwrap(reference))))
        flat = work.flat(work.batch.forward(model, ask), needs)
        if needs.moving_reference:
            with torch.no_grad(), self._reference(model) as reference:
                out = work.batch.forward(reference)
            flat = replace(flat, ref_sum=out.sum, ref_token=out.stats.logp if flat.token is not None else None)
        return flat

    @contextlib.contextmanager
    def _reference(self, model: nn.Module) -> Iterator[Any]:
        """The live reference: the model given as such, or a PEFT policy with its adapter off."""
        if self.reference_model is not None:
            yield self.reference_model
        elif hasattr(self.model, "disable_adapter"):
            with self.model.disable_adapter():
                yield model
        else:
            raise UserError("this loss needs a live reference model, and none was given")

    def _call_loss(self, facts: Sequence[Facts], flat: Flat) -> Scored:
        examples = examples_of(facts, flat, self.loss.needs)
        state = (self.loss_state,) if self.loss.needs.state else ()
        return Scored(facts, flat, examples, self.loss(examples.logps, *state))

    def _keep_state(self, output: LossOutput) -> None:
        if output.state is not None:
            self.loss_state = {name: value.detach().clone() for name, value in output.state.items()}

    def _inspect(self, scored: Scored, first: bool) -> None:
        """Stop a run that is wrong: a loss that is not finite, or a first batch that is not what it must be."""
        loss = scored.output.loss.detach()
        bad = (~torch.isfinite(loss)).nonzero().flatten().tolist()
        if bad:
            ids = sorted({scored.facts[int(scored.examples.record[b])].id for b in bad})
            raise TrainingError(
                f"step {self.state.global_step + 1}: the loss is {loss[bad[0]].item()} on {len(bad)} of {len(loss)} "
                f"examples (records {', '.join(ids[:5])}); lower trainer.learning_rate, or look at these records"
            )
        if not first:
            return
        expected = self.loss.at_reference(scored.examples.logps)
        if expected is None:
            return
        want = torch.as_tensor(expected, dtype=torch.float64).mean().item()
        got = loss.double().mean().item()
        slack = 0.01 if next(self.model.parameters()).dtype == torch.float32 and not self.args.bf16 else 0.05
        if not math.isclose(got, want, rel_tol=slack, abs_tol=slack):
            raise TrainingError(
                f"the first batch's loss is {got:.5g}, but where policy and reference are equal this loss is "
                f"{want:.5g}: policy and reference are not the same model (other weights, other precision, dropout?); "
                "if that is meant, say model.policy_is_reference=false"
            )

    def _sync(self, model: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Let processes exchange gradients with the last micro-batch only."""
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            self.accelerator.gradient_state._set_sync_gradients(last)
            return contextlib.nullcontext()
        return contextlib.nullcontext() if last else self.accelerator.no_sync(model=model)

    def _backward(self, objective: Tensor) -> None:
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        self.accelerator.backward(objective, **({"scale_wrt_gas": False} if deepspeed else {}))

    # ---- evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Figures over all held-out records, each counted once, whatever the batches and processes.

        A loss that couples examples is evaluated on global batches of `batch.records`, in the order of the data.
        """
        feed = self.feeds["eval"]
        if feed is None:
            raise UserError(
                "there are no held-out records: set data.eval_records, data.eval_fraction or data.eval_path"
            )
        steps = Steps(feed, self.loss.needs, self.layout.layout, self.tables["eval"])
        tally, start = Tally(), time.perf_counter()
        model = self.model_wrapped
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                for inputs in loader(steps, self._sampler("eval", shuffle=False)):
                    self._evaluate_batch(model, inputs, tally)
        finally:
            model.train(training)
        metrics = self._all(tally).means(f"{metric_key_prefix}_")
        metrics[f"{metric_key_prefix}_records"] = float(len(feed))
        metrics[f"{metric_key_prefix}_runtime"] = round(time.perf_counter() - start, 4)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluate_batch(self, model: nn.Module, inputs: GlobalBatch, tally: Tally) -> None:
        with self.compute_loss_context_manager():
            flats = [self._score(model, work) for work in inputs.work]
        if self.loss.needs.coupled:
            whole, facts, _ = self._gather(inputs.work, flats)
            parts = [(facts, whole)] if self.args.process_index == 0 else []
        else:
            parts = [(list(w.facts), flat) for w, flat in zip(inputs.work, flats, strict=True) if w.real]
        for facts, flat in parts:
            scored = self._call_loss(facts, flat)
            tally_batch(tally, scored.facts, scored.flat, scored.examples, scored.output)

    def _all(self, tally: Tally) -> Tally:
        if self.args.world_size == 1:
            return tally
        return Tally().merge(gather_object([(tally.total, tally.count)]))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the figures since the last log to transformers' own (`loss`, `grad_norm`, `learning_rate`)."""
        if "learning_rate" in logs:
            figures = self._all(self.tally).means()
            figures.pop("loss", None)
            now = time.perf_counter()
            tokens = self.tokens_seen - self._tokens_logged
            logs |= figures | {"tokens_per_second": tokens / max(now - self._logged_at, 1e-9)}
            self.tally, self._tokens_logged, self._logged_at = Tally(), self.tokens_seen, now
        super().log(logs, start_time)

    # ---- checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Everything that a resume needs, in `checkpoint-<step>`, whole or not at all."""
        run = Path(self.args.output_dir)
        target = run / f"checkpoint-{self.state.global_step}"
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(run / f"checkpoint-{self.state.best_global_step}")
        self.store_flos()
        self.accelerator.wait_for_everyone()
        with writing(target, writes=self.args.should_save) as folder:
            self.accelerator.wait_for_everyone()
            self.save_model(str(folder), _internal_call=True)
            if not self.args.save_only_model:
                self._save_optimizer_and_scheduler(str(folder))
                self._save_scaler(str(folder))
                self._save_rng_state(str(folder))
            if self.args.should_save:
                self._save_extras(folder)
            self.accelerator.wait_for_everyone()
        if self.args.should_save:
            point(run / "last", target)
            if self.state.best_model_checkpoint and Path(self.state.best_model_checkpoint).is_dir():
                point(run / "best", Path(self.state.best_model_checkpoint))
            rotate(run, self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()

    def _save_extras(self, folder: Path) -> None:
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        if self.loss_state is not None:
            save_file({k: v.contiguous() for k, v in self.loss_state.items()}, folder / LOSS_STATE)
        if self.loss.needs.moving_reference and self.reference_model is not None:
            weights = {n: p.detach().cpu().contiguous() for n, p in self.reference_model.named_parameters()}
            save_file(weights, folder / REFERENCE)
        for callback in [*self.callback_handler.callbacks, self.control]:
            if hasattr(callback, "state") and type(callback).__name__ in self.state.stateful_callbacks:
                self.state.stateful_callbacks[type(callback).__name__] = callback.state()
        self.state.save_to_json(str(folder / "trainer_state.json"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        folder = Path(resume_from_checkpoint)
        if self.loss.needs.state:
            self.loss_state = load_file(folder / LOSS_STATE)
        if self.loss.needs.moving_reference and self.reference_model is not None:
            weights = load_file(folder / REFERENCE)
            self.reference_model.load_state_dict(weights, strict=False)


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
