"""Draws several samples of each prompt of a data set, and makes records for training of samples and their rewards.

Samples are stored as `prefopt sample num_generations=K --json` prints them, records as rows of a data file. Each row of
both says where it came from.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.data.data_config import DataConfig
from prefopt.data.images.image_places import as_columns, asked_with, images_of
from prefopt.data.images.inputs import remember
from prefopt.data.make import content_hash
from prefopt.data.prepare import prepare
from prefopt.data.reader import read
from prefopt.data.record import Record, Text
from prefopt.data.row_facts import ARGUMENTS, ENDED
from prefopt.data.tokenize import Encoder
from prefopt.data.tokens import TokenRecord
from prefopt.engine.generation import end_tokens, sample
from prefopt.engine.policy import opened
from prefopt.errors import UserError, first_line
from prefopt.evaluate.texts import Sampling, continuation
from prefopt.plugin import Data
from prefopt.rewards.reward import Answer, Reward, answer, scores_of
from prefopt.train.sources.draws import LABELS, TEXTS, generator
from prefopt.train.sources.labels import LabelRule, SampledPrompt, check_samples, labelled

TOGETHER = 256  # prompts whose random numbers are held at once
_MAKE = "make it with `prefopt sample MODEL data.path=FILE num_generations=4 --to FILE`"


@dataclass(frozen=True, kw_only=True)
class SourcePrompt:
    """A prompt of a data set, in tokens and as the data has it."""

    record: TokenRecord
    given: Text
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SampleGroup:
    """The samples of one prompt.

    Attributes:
        id: of the record that the prompt is of.
        given: the prompt as the data has it: a text, or turns.
        arguments: what the data gives the chat template beside the turns.
        sampling: the options that the samples were drawn with, and of all prompts' chat template.
        answers: the samples.
        texts: the same as a data file has completions: without end token.
        logps: the log-prob of each token of each sample.
        models: the model that wrote each.
        weight: of the record that the prompt is of.
    """

    id: str
    given: Text
    arguments: Mapping[str, Any]
    sampling: Mapping[str, Any]
    answers: tuple[Answer, ...]
    texts: tuple[str, ...]
    logps: tuple[tuple[float, ...], ...]
    models: tuple[str, ...]
    weight: float = 1.0

    def plain(self) -> dict[str, Any]:
        """The group as JSON values."""
        first = self.answers[0]
        texts = [
            {"model": model, "text": text, "raw": a.text, "tokens": list(a.completion), "logps": list(logps),
             "ended": a.ended}
            for model, text, a, logps in zip(self.models, self.texts, self.answers, self.logps, strict=True)
        ]  # fmt: skip
        return {
            "id": self.id,
            "prompt": first.prompt_text,
            **as_columns(self.given, "given"),
            **({"arguments": dict(self.arguments)} if self.arguments else {}),
            **({"weight": self.weight} if self.weight != 1 else {}),
            "prompt_tokens": list(first.prompt),
            "sampling": dict(self.sampling),
            "texts": texts,
        }

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> SampleGroup:
        """The group of a row that `plain` made; KeyError, TypeError or ValueError for any other."""
        prompt, texts = tuple(map(int, row["prompt_tokens"])), row["texts"]
        given = row["given"] if isinstance(row["given"], str) else tuple(row["given"])
        given = asked_with(given, row.get("images", ()))
        remember(prompt, images_of(given))
        answers = tuple(
            Answer(prompt=prompt, completion=tuple(map(int, t["tokens"])), prompt_text=row["prompt"], text=t["raw"],
                   ended=bool(t["ended"]))
            for t in texts
        )  # fmt: skip
        if not answers:
            raise ValueError("a prompt without samples")
        return cls(
            id=str(row["id"]),
            given=given,
            arguments=row.get("arguments", {}),
            sampling=row["sampling"],
            answers=answers,
            texts=tuple(str(t["text"]) for t in texts),
            logps=tuple(tuple(map(float, t["logps"])) for t in texts),
            models=tuple(str(t["model"]) for t in texts),
            weight=float(row.get("weight", 1.0)),
        )


def source_prompts(data: DataConfig, tokenizer: Any) -> tuple[list[SourcePrompt], list[SourcePrompt] | None]:
    """The prompts of data, each once: those to learn from, and those that are held out (None if none are).

    Raises:
        UserError: data that cannot be read.
    """
    prepared = prepare(data, tokenizer, None)
    other = data.held_out()
    return (
        _with_texts(prepared.train, read(data).records),
        None if prepared.eval is None else _with_texts(prepared.eval, read(other or data).records),
    )


def given_prompts(texts: Sequence[str], tokenizer: Any, written: DataConfig) -> list[SourcePrompt]:
    """Prompts that are given as texts; the id of each is a hash of its text."""
    encoder = Encoder(tokenizer, written)

    def prompt(text: str) -> SourcePrompt:
        tokens = np.array(encoder.prompt(text), np.int32)
        record = TokenRecord(id=content_hash(text), kind=Data.PROMPTS, prompt=tokens, completions=())
        return SourcePrompt(record=record, given=text)

    return [prompt(text) for text in texts]


def _with_texts(tokens: Sequence[TokenRecord], records: Sequence[Record]) -> list[SourcePrompt]:
    wanted: dict[str, TokenRecord] = {}
    seen: set[bytes] = set()
    for record in (tokens[i] for i in range(len(tokens))):
        if (key := record.prompt.tobytes()) not in seen:
            seen.add(key)
            wanted[record.id.partition(":")[0]] = record  # a tie that was split has its side in its id
    return [SourcePrompt(record=wanted[r.id], given=r.prompt, arguments=r.arguments) for r in records if r.id in wanted]


def draw(
    name: str, model: Any, tokenizer: Any, prompts: Sequence[SourcePrompt], count: int, sampling: Sampling,
    template_arguments: Mapping[str, Any] | None = None,
) -> list[SampleGroup]:  # fmt: skip
    """`count` samples of each prompt. What is drawn is a function of (seed, id of the prompt's record).

    Args:
        name: the model's, for the record.
        sampling: a temperature above 0.
        template_arguments: `data.chat_template_kwargs` of the prompts, for the record.

    Raises:
        UserError: neither model nor tokenizer has an end token, or the temperature is 0.
    """
    ends = end_tokens(model, tokenizer)
    if not ends:
        raise UserError("neither the model nor its tokenizer has an end token (eos_token): a text would never end")
    if count < 1:
        raise UserError(f"num_generations={count} must be at least 1")
    if sampling.temperature <= 0:
        raise UserError("at temperature 0 all samples of a prompt are the same text: give --temperature 1")
    options = dataclasses.asdict(sampling) | ({ARGUMENTS: dict(template_arguments)} if template_arguments else {})
    groups = []
    with opened(model) as policy:
        for start in range(0, len(prompts), TOGETHER):
            part = prompts[start : start + TOGETHER]
            uniforms = [
                generator(sampling.seed, 0, p.record.stable_int, TEXTS).random((count, sampling.max_new_tokens))
                for p in part
            ]
            tokens = [p.record.prompt.tolist() for p in part for _ in range(count)]
            texts = sample(policy.model, tokens, np.concatenate(uniforms), eos_token_id=ends,
                           temperature=sampling.temperature)  # fmt: skip
            for at, prompt in enumerate(part):
                drawn = texts[at * count : (at + 1) * count]
                head = prompt.record.prompt.tolist()
                groups.append(
                    SampleGroup(
                        id=prompt.record.id,
                        given=prompt.given,
                        arguments=prompt.arguments,
                        sampling=options,
                        answers=tuple(answer(tokenizer, head, one.tokens, ends) for one in drawn),
                        texts=tuple(continuation(tokenizer, head, one.tokens, ends) for one in drawn),
                        logps=tuple(tuple(one.logps.tolist()) for one in drawn),
                        models=(name,) * count,
                        weight=prompt.record.weight,
                    )
                )
    return groups


def joined(several: Sequence[Sequence[SampleGroup]]) -> list[SampleGroup]:
    """The samples that several models drew for the same prompts, in one group for each prompt."""

    def all_of(groups: Sequence[SampleGroup], name: str) -> tuple[Any, ...]:
        return tuple(value for group in groups for value in getattr(group, name))

    fields = ("answers", "texts", "logps", "models")
    return [
        dataclasses.replace(groups[0], **{name: all_of(groups, name) for name in fields})
        for groups in zip(*several, strict=True)
    ]


def read_groups(path: Path) -> list[SampleGroup]:
    """The samples in a file: one JSON list, or one JSON object a line.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    line = 1
    try:
        text = path.read_text(encoding="utf-8")
        if text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            rows = []
            for written in text.split("\n"):
                rows += [json.loads(written)] if written.strip() else []
                line += 1
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or first_line(error)}); {_MAKE}") from error
    except ValueError as error:
        raise UserError(f"{path}, line {line}: {first_line(error)}; was the file cut short? Sample again") from error
    try:
        groups = [SampleGroup.of(row) for row in rows]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} does not have samples ({type(error).__name__}: {first_line(error)}); {_MAKE}"
        ) from error
    if not groups:
        raise UserError(f"{path} has no samples")
    return groups


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """How samples become records.

    Attributes:
        data: the shape of the records: pairs, lists or demonstrations.
        rule, temperature: of pairs (`prefopt.train.sources.labels`).
        seed: seeds the labels.
        keep_cut: keep texts that were cut off, as open completions; else they are in no row.
    """

    data: Data = Data.PAIRS
    rule: LabelRule = LabelRule.BT
    temperature: float = 1.0
    seed: int = 0
    keep_cut: bool = True


@dataclass(frozen=True, eq=False, kw_only=True)
class Rewarded:
    """Samples with their rewards, and the rows that were made of them.

    Attributes:
        rewards: one array for each group.
        rows: of a data file.
        left_out: why samples or pairs are in no row, with counts.
    """

    rewards: list[NDArray[np.float64]]
    rows: list[dict[str, Any]]
    left_out: Counter[str]

    def figures(self) -> dict[str, float]:
        """The mean reward of a sample and of the best one of each prompt, and the number of rows."""
        best = float(np.mean([scores.max() for scores in self.rewards]))
        return {"reward": float(np.concatenate(self.rewards).mean()), "reward_best": best, "rows": len(self.rows)}


def reward_groups(groups: Sequence[SampleGroup], reward: Reward, how: Labelling) -> Rewarded:
    """Score samples and make records of them, but for pairs of equal texts.

    A text that was cut off is an open completion (`ended: false`): it gets no end token, which the model did not write.

    Raises:
        UserError: a reward that is not one finite number for each sample, or a number of samples that cannot be paired.
    """
    answers = [a for group in groups for a in group.answers]
    scores = scores_of(reward(answers), answers, reward.name)
    rewards = np.split(scores, np.cumsum([len(group.answers) for group in groups])[:-1])
    left_out: Counter[str] = Counter()
    about: dict[str, Any] = {"reward": reward.name}
    if how.data is Data.PAIRS:
        rows = list(_pairs(groups, rewards, how, left_out))
        about |= {"label": how.rule.value, "label_temperature": how.temperature, "label_seed": how.seed}
    else:
        rows = list(_whole_groups(groups, rewards, how, left_out))
    for row in rows:
        row["provenance"] |= about
    return Rewarded(rewards=list(rewards), rows=rows, left_out=left_out)


def _pairs(
    groups: Sequence[SampleGroup], rewards: Sequence[NDArray[np.float64]], how: Labelling, left_out: Counter[str]
) -> Iterator[dict[str, Any]]:
    prompts = []
    for group, scores in zip(groups, rewards, strict=True):
        check_samples(Data.PAIRS, len(group.answers))
        record = TokenRecord(id=group.id, kind=Data.PROMPTS, prompt=np.array(group.answers[0].prompt, np.int32),
                             completions=())  # fmt: skip
        completions = tuple(np.array(a.completion, np.int32) for a in group.answers)
        draws = generator(how.seed, 0, record.stable_int, LABELS).random(len(completions) // 2)
        prompts.append(SampledPrompt(group.id, record.prompt, completions, scores, draws, group.weight))
    found = labelled(prompts, Data.PAIRS, how.rule, how.temperature)
    made: set[tuple[int, frozenset[int]]] = set()
    for record, at, (chosen, rejected) in zip(found.records, found.group, found.members, strict=True):
        group, scores, pair = groups[at], rewards[at], (at, frozenset((chosen, rejected)))
        if how.rule is LabelRule.ARGMAX and pair in made:
            continue  # a tie is one row, whose equal scores say that it is one (`data.ties`)
        again = pair in made
        made.add(pair)
        if not all(_usable(group, k, how) for k in (chosen, rejected)):
            left_out["pairs with a text that was cut off"] += not again
        elif group.texts[chosen] == group.texts[rejected]:
            left_out["pairs of equal texts"] += not again
        else:
            yield {
                **_prompt(group),
                "chosen": group.texts[chosen],
                "rejected": group.texts[rejected],
                **_open(group, [chosen, rejected]),
                "chosen_score": float(scores[chosen]),
                "rejected_score": float(scores[rejected]),
                **({"weight": record.weight} if how.rule is LabelRule.SOFT else {}),
                "provenance": _origin(group, [chosen, rejected]),
            }


def _whole_groups(
    groups: Sequence[SampleGroup], rewards: Sequence[NDArray[np.float64]], how: Labelling, left_out: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Lists of the samples, or the best of them."""
    for group, scores in zip(groups, rewards, strict=True):
        kept = [k for k in range(len(group.answers)) if _usable(group, k, how)]
        left_out["texts that were cut off"] += len(group.answers) - len(kept)
        if len(kept) < (2 if how.data is Data.LISTS else 1):
            left_out["prompts with too few texts that ended"] += 1
        elif how.data is Data.LISTS:
            texts = [group.texts[k] for k in kept]
            yield {**_prompt(group), "completions": texts, **_open(group, kept),
                   "scores": [float(scores[k]) for k in kept], "provenance": _origin(group, kept)}  # fmt: skip
        else:
            best = max(kept, key=lambda k: scores[k])
            yield {**_prompt(group), "completion": group.texts[best], **_open(group, [best]),
                   "provenance": {**_origin(group, [best]), "best_of": len(group.answers),
                                  "score": float(scores[best])}}  # fmt: skip


def _usable(group: SampleGroup, k: int, how: Labelling) -> bool:
    """Whether a sample can be in a row: it ended, or may be open and says something."""
    return group.answers[k].ended or (how.keep_cut and bool(group.texts[k].strip()))


def _open(group: SampleGroup, members: Sequence[int]) -> dict[str, list[bool]]:
    """The column that says which completions end, where not all do."""
    ended = [group.answers[k].ended for k in members]
    return {} if all(ended) else {ENDED: ended}


def _prompt(group: SampleGroup) -> dict[str, Any]:
    """The columns of a prompt, and of what its chat template was given."""
    arguments = {**group.sampling.get(ARGUMENTS, {}), **group.arguments}
    tools = {"tools": arguments.pop("tools")} if "tools" in arguments else {}
    tools |= {"weight": group.weight} if group.weight != 1 else {}
    return {**as_columns(group.given, "prompt"), **tools, **({ARGUMENTS: arguments} if arguments else {})}


def _origin(group: SampleGroup, members: Sequence[int]) -> dict[str, Any]:
    """Where the completions of a row came from."""
    return {"record": group.id, "models": [group.models[k] for k in members], **group.sampling}
