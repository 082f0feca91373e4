"""Says what each option of a run changes: its weights, its measurements, its output, or only its speed."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any


class Effect(Enum):
    """The most that an option changes."""

    WEIGHTS = "the model that the run leaves"
    MEASUREMENT = "what is measured of the model"
    OUTPUT = "what is written or shown, and where"
    SPEED = "how fast it is done"


# A group stands for all of its options. What is not here changes the weights.
EFFECTS: Mapping[str, Effect] = {
    "evaluation": Effect.MEASUREMENT,
    "output_dir": Effect.OUTPUT,
    "progress": Effect.OUTPUT,
    "resume": Effect.OUTPUT,
    "sentinels": Effect.OUTPUT,  # they end a run or warn, and change no step
    "stages_folder": Effect.OUTPUT,
    "tracking": Effect.OUTPUT,
    "reference_folder": Effect.SPEED,
    "data.cache_dir": Effect.SPEED,
    "data.num_proc": Effect.SPEED,
    "trainer.eval_strategy": Effect.MEASUREMENT,
    "trainer.eval_steps": Effect.MEASUREMENT,
    "trainer.eval_delay": Effect.MEASUREMENT,
    "trainer.eval_on_start": Effect.MEASUREMENT,
    "trainer.logging_strategy": Effect.OUTPUT,
    "trainer.logging_steps": Effect.OUTPUT,
    "trainer.logging_first_step": Effect.OUTPUT,
    "trainer.save_strategy": Effect.OUTPUT,
    "trainer.save_steps": Effect.OUTPUT,
    "trainer.save_total_limit": Effect.OUTPUT,
    "trainer.save_only_model": Effect.OUTPUT,
    "trainer.disable_tqdm": Effect.OUTPUT,
    "trainer.log_level": Effect.OUTPUT,
    "trainer.dataloader_num_workers": Effect.SPEED,
}


def effect_of(option: str) -> Effect:
    """The effect of an option, such as `trainer.save_steps`, or of a whole group."""
    return EFFECTS.get(option, EFFECTS.get(option.partition(".")[0], Effect.WEIGHTS))


def options_with(config: Mapping[str, Any], *effects: Effect) -> dict[str, Any]:
    """The options of a configuration (`RunConfig.plain()`) that have one of these effects, in their groups."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if name in EFFECTS or not isinstance(value, Mapping) or not any(o.startswith(f"{name}.") for o in EFFECTS):
            if effect_of(name) in effects:
                found[name] = value
        else:
            found[name] = {key: v for key, v in value.items() if effect_of(f"{name}.{key}") in effects}
    return found


def groups_with(config: Mapping[str, Any], *effects: Effect) -> dict[str, Any]:
    """The groups and single options of a configuration that have one of these effects, whole."""
    return {name: value for name, value in config.items() if effect_of(name) in effects}
