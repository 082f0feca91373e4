"""Records of the policy's own samples: prompts, K completions of each, their rewards, and the reference's log-probs.

One rollout is the samples of one global batch of prompts. It is made in the order of the steps, when the step before it
has been made, and serves `updates` steps. What is drawn is a function of (seed, rollout, prompt id): a resume, another
number of processes or another batch size draw the same texts, up to the rounding of the model's own forward.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from prefopt.common.digest import of_json
from prefopt.common.processes import from_all_processes, from_first_process
from prefopt.data.tokens import Ids, TokenRecord
from prefopt.engine.forward import Options
from prefopt.engine.generation import Blend, SampledText, sample
from prefopt.engine.packing import epoch_order
from prefopt.engine.policy import Policy
from prefopt.engine.reference.table import ReferenceTable
from prefopt.engine.scoring import Scored, score
from prefopt.engine.values import Estimates, ValueModel, estimate
from prefopt.errors import UserError
from prefopt.plugin import Data, Loss, Vocab
from prefopt.rewards.combine import digest_of
from prefopt.rewards.reward import Answer, Reward, answer, scores_of
from prefopt.train.examples import Drawn
from prefopt.train.sources.draws import LABELS, TEXTS, generator
from prefopt.train.sources.feed import Feed
from prefopt.train.sources.labels import Labelled, SampledPrompt, labelled, win_rates
from prefopt.train.sources.rollout_config import RolloutConfig
from prefopt.train.sources.source import GlobalBatch, RecordSource
from prefopt.train.sources.targets import targeted
from prefopt.train.sources.vllm_server import VllmServer, correction, sampler_figures

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt to sample behind; `seed` is the stable integer of its id, `weight` that of its records in the loss."""

    id: str
    tokens: Ids
    seed: int
    weight: float = 1.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Rollout:
    """The samples of one rollout, as they can be looked at.

    Attributes:
        number: counted from 0.
        step: the first that learns from it, counted from 1.
        answers: the texts, K of each prompt, in the order of the prompts.
        rewards: (prompts, K), penalties included.
        advantages: (prompts, K) what the loss's targets call `advantage`, where it is one number for each text.
        batch: the global batch that is made of them.
        weights: the step after which the weights were what drew them.
    """

    number: int
    step: int
    weights: int
    answers: list[Answer]
    rewards: NDArray[np.float64]
    advantages: NDArray[np.floating[Any]] | None
    batch: GlobalBatch


@dataclass(eq=False, kw_only=True)
class Rollouts(RecordSource):
    """A source of the policy's own samples.

    Attributes:
        prompts: each once.
        policy: whose samples they are, as it is when they are drawn.
        loss: what learns from them.
        reward: scores them.
        config: how they are drawn and labelled.
        tokenizer: decodes them for the reward.
        ends: the tokens that end a text.
        records: prompts of a step, on all processes together.
        seed: seeds the order of the prompts and what is drawn.
        reference: scores them; None for a loss that reads none.
        max_tokens: positions of a forward of the reference.
        process: (rank, count); each samples and scores its share of the prompts.
        precision: the context that log-probs are computed in.
        look: called with every rollout that is made.
        server: draws the samples instead of the policy.
    """

    prompts: Sequence[Prompt]
    policy: Policy
    loss: Loss
    reward: Reward
    config: RolloutConfig
    tokenizer: Any
    ends: Sequence[int]
    records: int
    seed: int
    reference: Policy | None = None
    max_tokens: int = 4096
    process: tuple[int, int] = (0, 1)
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext
    look: Callable[[Rollout], None] = lambda rollout: None
    server: VllmServer | None = None
    prefetch: bool = field(default=False, init=False)
    made: Rollout | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.config = self.config.settled(self.loss)
        self.config.check(self.loss)

    @property
    def updates(self) -> int:
        """Steps that learn from the same samples."""
        assert self.config.updates is not None
        return self.config.updates

    def __len__(self) -> int:
        return -(-len(self.prompts) // self.records) * self.updates

    def step(self, index: int) -> GlobalBatch:
        """The records of step `index`: of a new rollout, or of the last one again."""
        number, update = divmod(index, self.updates)
        if self.made is None or self.made.number != number:
            if update:
                raise UserError(f"step {index + 1} is in the middle of a rollout, whose samples are gone: resume from "
                                f"a checkpoint at a multiple of rollout.updates={self.updates}")  # fmt: skip
            with self.precision():
                self.made = self.roll(number)
            self.look(self.made)
        return self.made.batch if update == 0 else dataclasses.replace(self.made.batch, fresh=False, figures={})

    @property
    def options(self) -> Mapping[str, Any]:
        """The reward and the options of sampling, as JSON values."""
        sampling = {f"rollout.{name}": value for name, value in dataclasses.asdict(self.config).items()}
        del sampling["rollout.url"]  # the same server may listen elsewhere
        return {"reward": self.reward.name, "reward_code": digest_of(self.reward), **sampling}

    @property
    def temperature(self) -> float:
        """What logits are divided by wherever samples are scored: importance ratios are of the distribution drawn from.

        Other losses learn from the model's own log-probs, whatever temperature the samples were drawn at.
        """
        return self.config.temperature if self.loss.needs.on_policy else 1.0

    def resumes_after(self, steps: int) -> bool:
        """Between two rollouts: the samples of one are not kept."""
        return steps % self.updates == 0

    def fingerprint(self) -> str:
        """A digest of the prompts and of the tokens that end a text."""
        prompts = [[p.id, p.tokens.tolist(), *([p.weight] if p.weight != 1 else [])] for p in self.prompts]
        return of_json([prompts, list(self.ends)], size=16)

    def roll(self, number: int) -> Rollout:
        """Sample, score and label the prompts of a rollout.

        Raises:
            UserError: a reward that is not one finite number for each text.
        """
        chosen = self._prompts(number)
        samples = self._samples(number, chosen) if self.server is None else self._served(self.server, number, chosen)
        answers = [
            answer(self.tokenizer, prompt.tokens.tolist(), text.tokens, self.ends)
            for prompt, group in zip(chosen, samples, strict=True)
            for text in group
        ]
        rewards = self._rewards(answers)
        rewards = rewards - self.config.missing_end_penalty * np.array([not a.ended for a in answers])
        rewards = rewards.reshape(len(chosen), -1)
        groups = [
            SampledPrompt(prompt.id, prompt.tokens, tuple(np.array(s.tokens, np.int32) for s in group), scores,
                  self._random(number, prompt, LABELS).random(len(group) // 2), prompt.weight)
            for prompt, group, scores in zip(chosen, samples, rewards, strict=True)
        ]  # fmt: skip
        needs, temperature = self.loss.needs, self.config.label_temperature
        if needs.opponent and needs.data is Data.LISTS:
            found = win_rates(groups, temperature)
        else:
            found = labelled(groups, needs.data, self.config.label, temperature)
        batch = self._batch(found, samples)
        every = 2 if needs.opponent else 1  # the second of two samples is an opponent's
        figures = self._figures(rewards[:, ::every], [t for group in samples for t in group[::every]]) | _drift(batch)
        batch = dataclasses.replace(batch, figures=figures)
        advantages = [d.targets["advantage"] for d in batch.drawn or () if "advantage" in d.targets]
        by_text = np.stack(advantages) if advantages and advantages[0].ndim == 1 and every == 1 else None
        weights = number if self.server is None or self.server.version is None else self.server.version
        return Rollout(
            number=number,
            step=number * self.updates + 1,
            weights=weights * self.updates,
            answers=answers,
            rewards=rewards,
            advantages=by_text,
            batch=batch,
        )

    def _prompts(self, number: int) -> list[Prompt]:
        """The prompts of a rollout: every prompt once in an epoch, in an order that is new in each."""
        epoch, place = divmod(number, -(-len(self.prompts) // self.records))
        order = epoch_order(len(self.prompts), self.seed, epoch)
        return [self.prompts[i] for i in order[place * self.records : (place + 1) * self.records]]

    def _random(self, number: int, prompt: Prompt, purpose: int) -> np.random.Generator:
        return generator(self.seed, number, prompt.seed, purpose)

    def _samples(self, number: int, chosen: Sequence[Prompt]) -> list[list[SampledText]]:
        """K samples of each prompt; each process draws those of its share."""
        drawn = from_all_processes(lambda: self._drawn(number, chosen))
        return [[drawn[i, k] for k in range(self.config.num_generations)] for i in range(len(chosen))]

    def _drawn(self, number: int, chosen: Sequence[Prompt]) -> dict[tuple[int, int], SampledText]:
        """This process's share of samples, by (prompt, sample); every second one is an opponent's, if there is one."""
        rank, processes = self.process
        mine = range(rank, len(chosen), processes)
        shape = self.config.num_generations, self.config.max_new_tokens
        uniforms = np.empty((len(mine), *shape))
        for row, i in enumerate(mine):
            uniforms[row] = self._random(number, chosen[i], TEXTS).random(shape)
        writers = [self.policy.model, *([self._opponent()] if self.loss.needs.opponent else [])]
        drawn: dict[tuple[int, int], SampledText] = {}
        for first, writer in enumerate(writers):
            places = [(i, k) for i in mine for k in range(first, shape[0], len(writers))]
            texts = sample(
                writer,
                [chosen[i].tokens.tolist() for i, _ in places],
                uniforms[:, first :: len(writers)].reshape(-1, shape[1]),
                eos_token_id=self.ends,
                temperature=self.config.temperature,
                scored_at=self.temperature,
            )
            drawn |= zip(places, texts, strict=True)
        return drawn

    def _rewards(self, answers: Sequence[Answer]) -> NDArray[np.float64]:
        """(n,) scores; each process scores the answers to its share of the prompts."""
        rank, processes = self.process
        mine = [i for i in range(len(answers)) if i // self.config.num_generations % processes == rank]
        own = [answers[i] for i in mine]

        def scored() -> dict[int, float]:
            return dict(zip(mine, scores_of(self.reward(own), own, self.reward.name), strict=True)) if own else {}

        found = from_all_processes(scored)
        return np.array([found[i] for i in range(len(answers))])

    def _served(self, server: VllmServer, number: int, chosen: Sequence[Prompt]) -> list[list[SampledText]]:
        """K samples of each prompt by the server, with its log-probs and the policy's. The first process asks it."""

        def draw() -> list[list[SampledText]]:
            server.sync(self.policy.model, number)
            return server.draw(
                [prompt.tokens.tolist() for prompt in chosen],
                self.config.num_generations,
                [int(self._random(number, prompt, TEXTS).integers(2**31)) for prompt in chosen],
                self.ends,
                max_new_tokens=self.config.max_new_tokens,
                temperature=self.config.temperature,
            )

        drawn = from_first_process(draw)
        records = [
            TokenRecord(id=prompt.id, kind=Data.PROMPTS, prompt=prompt.tokens,
                        completions=tuple(np.array(text.tokens, np.int32) for text in texts))
            for prompt, texts in zip(chosen, drawn, strict=True)
        ]  # fmt: skip
        options = Options(temperature=self.temperature)
        own = self._of_all(
            records, lambda mine: score(self.policy, mine, max_tokens=self.max_tokens, tokens=True, options=options)
        )
        return [
            [SampledText(text.tokens, logps, text.logps) for text, logps in zip(texts, scored.token or (), strict=True)]
            for texts, scored in zip(drawn, own, strict=True)
        ]

    def _figures(self, rewards: NDArray[np.float64], texts: Sequence[SampledText]) -> dict[str, float]:
        """What is logged of the policy's texts and their rewards, and how far another sampler is from the policy."""
        figures = {
            "reward": rewards.mean(),
            "reward_std": rewards.std(1).mean(),
            "entropy": -np.mean([text.logps.sum(dtype=np.float64) for text in texts]),
            "completions/mean_length": np.mean([len(text.tokens) for text in texts]),
            "completions/ended": np.mean([text.tokens[-1] in self.ends for text in texts]),
        }
        theirs = [SampledText(t.tokens, t.sampler_logps) for t in texts if t.sampler_logps is not None]
        apart = sampler_figures(theirs, [text.logps for text in texts]) if theirs else {}
        return {name: float(value) for name, value in figures.items()} | apart

    def _corrected(self, drawn: Drawn, texts: Sequence[SampledText]) -> Drawn:
        """Advantages times the ratio of the policy's probability to the sampler's, where another one drew the texts.

        Raises:
            UserError: weights of tokens for a loss whose advantages are of whole texts.
        """
        how, limit = self.config.correction, self.config.correction_limit
        if how is None or "advantage" not in drawn.targets:
            return drawn
        advantage = drawn.targets["advantage"]
        weights = [correction(how, limit, t.sampler_logps, t.logps) for t in texts if t.sampler_logps is not None]
        if advantage.ndim == 1 and how == "token_clip":
            raise UserError("rollout.correction=token_clip needs a loss whose advantages are of tokens: choose "
                            "rollout.correction=sequence_mask")  # fmt: skip
        if advantage.ndim == 1:
            factor = np.array([w[0] for w in weights])
        else:
            factor = np.stack([np.pad(w, (0, advantage.shape[1] - len(w))) for w in weights])
        return dataclasses.replace(drawn, targets={**drawn.targets, "advantage": advantage * factor})

    def _opponent(self) -> Any:
        """What writes an opponent's texts."""
        assert self.reference is not None
        share: float = self.loss.mixture_coef  # type: ignore[attr-defined]
        return self.reference.model if share == 1 else Blend(self.policy.model, self.reference.model, share)

    def _batch(self, found: Labelled, samples: Sequence[Sequence[SampledText]]) -> GlobalBatch:
        """The records with what the reference says of them, and what they were drawn with."""
        feed = Feed(found.records, self.loss.needs, whole=False, seed=self.seed)
        records = [feed[i] for i in range(len(feed))]
        table = ReferenceTable.of(self._reference(records)) if self.reference is not None else None
        drawn = [
            Drawn(tuple(samples[group][k].logps for k in members[: len(record.completions)]),
                  tuple(samples[group][k].tokens[-1] in self.ends for k in members[: len(record.completions)]))
            for record, group, members in zip(records, found.group, found.members, strict=True)
        ]  # fmt: skip
        if self.loss.needs.opponent:
            sides = [tuple(k % 2 == 1 for k in members) for members in found.members]
            drawn = [dataclasses.replace(d, opponent=side) for d, side in zip(drawn, sides, strict=True)]
        if self.loss.needs.values:
            estimates = self._of_all(records, self._estimates)
            drawn = [dataclasses.replace(d, values=e) for d, e in zip(drawn, estimates, strict=True)]
        if self.loss.needs.on_policy:
            drawn = targeted(self.loss, records, drawn, table)
        if self.server is not None:
            members = zip(found.group, found.members, strict=True)
            drawn = [self._corrected(d, [samples[g][k] for k in ks]) for d, (g, ks) in zip(drawn, members, strict=True)]
        return GlobalBatch(feed, np.arange(len(feed)), table, drawn=drawn, temperature=self.temperature)

    def _reference(self, records: Sequence[TokenRecord]) -> list[Scored]:
        options = Options(entropy=Vocab.REF_ENTROPY in self.loss.needs.vocab, temperature=self.temperature)
        return self._of_all(
            records, lambda mine: score(self.reference, mine, max_tokens=self.max_tokens, tokens=True, options=options)
        )

    def _estimates(self, records: Sequence[TokenRecord]) -> list[Estimates]:
        assert isinstance(self.policy.values, ValueModel)
        return estimate(self.policy.values, records, max_tokens=self.max_tokens)

    def _of_all(self, records: Sequence[TokenRecord], of: Callable[[list[TokenRecord]], list[T]]) -> list[T]:
        """`of` the records; each process computes those of its share."""
        rank, count = self.process
        mine = range(rank, len(records), count)
        found = from_all_processes(lambda: dict(zip(mine, of([records[i] for i in mine]), strict=True)))
        return [value for _, value in sorted(found.items())]


def _drift(batch: GlobalBatch) -> dict[str, float]:
    """The mean log-ratio of the samples to the reference, an estimate of KL(policy || reference) in nats a text."""
    if batch.reference is None or batch.drawn is None:
        return {}
    drawn = np.array([total for d in batch.drawn for total in d.sums])
    opponent = np.array([o for d in batch.drawn for o in d.opponent or (False,) * len(d.logps)])
    return {"kl": float((drawn - batch.reference.sum)[~opponent].mean())}
