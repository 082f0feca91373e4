"""What each option changes."""

from __future__ import annotations

from prefopt.config.compose import compose
from prefopt.config.effects import EFFECTS, Effect, effect_of, groups_with, options_with


def test_every_option_with_an_effect_of_its_own_is_there() -> None:
    plain = compose([]).plain()
    for option in EFFECTS:
        group, _, name = option.partition(".")
        assert group in plain
        assert not name or name in plain[group], option


def test_what_is_not_listed_changes_the_weights() -> None:
    assert effect_of("loss.beta") is effect_of("trainer.learning_rate") is effect_of("seed") is Effect.WEIGHTS
    assert effect_of("evaluation.texts") is Effect.MEASUREMENT, "as its group"
    assert effect_of("trainer.save_steps") is Effect.OUTPUT


def test_options_are_chosen_by_their_effect() -> None:
    plain = {"seed": 1, "output_dir": "x", "tracking": {"mode": None}, "data": {"path": "p", "num_proc": 2}, "loss": {}}
    assert options_with(plain, Effect.WEIGHTS) == {"seed": 1, "data": {"path": "p"}, "loss": {}}
    assert options_with(plain, Effect.SPEED) == {"data": {"num_proc": 2}}
    assert groups_with(plain, Effect.WEIGHTS) == {"seed": 1, "data": plain["data"], "loss": {}}
