"""Collects the settings of another program as prefopt's, with what has no equivalent and what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import torch
import yaml
from transformers.utils.import_utils import is_torch_bf16_gpu_available

from prefopt.config.grammar import value_of
from prefopt.migrate.no_equivalent import asks

COMPAT = "experiment/compat"  # presets; the third comment line of each says how the formula differs


@dataclass
class Translation:
    """Settings of another program, and their equivalents here.

    Attributes:
        source: the program and class.
        given: its settings; each is removed once it is handled.
        groups: the choice in each of our groups, such as `loss`.
        settings: our options by dotted name.
        no_equal: each of its options without an equivalent, and why.
        no_effect: names of its options that ask for what always happens here, or that change no result.
        differs: where the same setting has another meaning.
    """

    source: str
    given: dict[str, Any]
    groups: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    no_equal: dict[str, str] = field(default_factory=dict)
    no_effect: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)

    def take(self, name: str, default: Any = None) -> Any:
        """Remove one of their options and return its value; `default` if it was not given."""
        value = self.given.pop(name, None)
        return default if value is None else value

    def set(self, **values: Any) -> None:
        """Set our options; `__` stands for a dot, and None sets nothing."""
        self.settings |= {name.replace("__", "."): value for name, value in values.items() if value is not None}

    def drop(self, name: str, why: str) -> None:
        """Remove one of their options; if it was given, record that it has no equivalent."""
        if asks(name, self.given.pop(name, None)):
            self.no_equal[name] = why

    def ignore(self, *names: str) -> None:
        """Remove options that change no result; those that were given are listed."""
        self.no_effect += [name for name in names if asks(name, self.given.pop(name, None))]

    def rename(self, **names: str) -> None:
        """Give options the name that another program has for them: `theirs="other"`."""
        for name, other in names.items():
            if (value := self.given.pop(name, None)) is not None:
                self.given.setdefault(other, value)

    def set_sources(self, found: Sequence[Mapping[str, Any]]) -> None:
        """Set the data: one source, or a mixture of several; none is left to be given."""
        if len(found) > 1:
            self.set(data__mixture=[dict(source) for source in found])
        else:
            self.set(**{f"data__{key}": value for key, value in (found[0] if found else {"path": "???"}).items()})

    def hold_out(self, size: float) -> None:
        """Hold out records: so many, or below 1 a share of them; 0 sets nothing."""
        if size >= 1:
            self.set(data__eval_records=int(size))
        elif size:
            self.set(data__eval_fraction=size)

    def explain_thinking(self) -> None:
        """Remove `enable_thinking`, and record how it is given here: only some templates read it."""
        if (think := self.take("enable_thinking")) is not None:
            self.differs.append(
                f"enable_thinking: give data.chat_template_kwargs={{enable_thinking: {str(think).lower()}}} where the "
                "template reads it"
            )

    def set_loss(self, name: str, preset: str | None = None, /, **settings: Any) -> None:
        """Choose a loss with its settings, and record the difference that the compat preset documents."""
        self.groups["loss"] = name
        self.set(**{f"loss__{key}": value for key, value in settings.items()})
        if preset and (text := difference(preset)):
            self.differs.append(text)

    @property
    def overrides(self) -> list[str]:
        """The overrides for `prefopt train`."""
        return [
            *(f"{group}={choice}" for group, choice in self.groups.items()),
            *(f"{name}={value_of(value)}" for name, value in self.settings.items()),
        ]

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "source": self.source,
            "overrides": self.overrides,
            "no_equal": self.no_equal,
            "no_effect": self.no_effect,
            "differs": self.differs,
            "unavailable": self.unavailable(),
        }

    def unavailable(self) -> dict[str, str]:
        """What this machine cannot do of it: the override that leaves it out, and why."""
        found = {}
        if self.settings.get("trainer.bf16") and not is_torch_bf16_gpu_available():
            found["trainer.bf16=false"] = "no GPU here computes in bfloat16"
        gpu = torch.cuda.is_available()
        if self.settings.get("trainer.fp16") and not gpu:
            found["trainer.fp16=false"] = "float16 needs a GPU"
        if self.settings.get("trainer.tf32") and not gpu:
            found["trainer.tf32=null"] = "TF32 needs a GPU"
        if self.groups.get("peft") == "qlora" and not gpu:
            found["peft=lora"] = "4-bit weights need a GPU"
        if "bit" in (optimizer := str(self.settings.get("trainer.optim", ""))) and not gpu:
            found["trainer.optim=adamw_torch"] = f"{optimizer} needs a GPU and bitsandbytes"
        return found

    def yaml(self) -> str:
        """The experiment for `prefopt train experiment=FILE.yaml`."""
        nested: dict[str, Any] = {}
        for name, value in self.settings.items():
            *groups, key = name.split(".")
            node = nested
            for group in groups:
                node = node.setdefault(group, {})
            node[key] = value
        comments = [f"From {self.source}, by `prefopt import`."]
        comments += [f"No equivalent: {name}: {why}." for name, why in self.no_equal.items()]
        comments += [f"Differs: {text}" for text in self.differs]
        comments += [f"No effect here: {', '.join(self.no_effect)}."] if self.no_effect else []
        head = "".join(f"# {' '.join(line.split())}\n" for line in comments)
        defaults = "".join(f"  - override /{group}: {choice}\n" for group, choice in self.groups.items())
        body = yaml.safe_dump(nested, sort_keys=False, allow_unicode=True, width=120) if nested else ""
        return f"# @package _global_\n{head}defaults:\n{defaults}\n{body}"


def difference(preset: str) -> str | None:
    """The difference that a preset of `conf/experiment/compat` documents, or None if the loss is the same."""
    text = (files("prefopt.conf") / COMPAT / f"{preset}.yaml").read_text()
    comments = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    documented = comments[2] if len(comments) > 2 else ""
    return None if documented in ("", "The same.") else f"{comments[1]}: {documented}"
