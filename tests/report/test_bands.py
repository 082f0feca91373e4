"""Bands are sound, and traits that a plugin declares choose them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prefopt.common.estimate import Estimate
from prefopt.losses import registry
from prefopt.plugin import Data, Traits, traits
from prefopt.report.bands import BANDS, State, bands_of
from prefopt.testing import example

METHOD = Traits()


def test_every_method_of_the_menu_has_its_bands() -> None:
    for name in registry.names():
        method = traits(example(registry.loss_class(name)))
        bands = bands_of(method)
        if method.needs.reward_model:
            assert set(bands) <= {"margin", "ties", "memorised"}
            continue
        assert "chosen" in bands
        assert ("grew" in bands) == (method.needs.data is not Data.DEMONSTRATIONS)


def test_declared_traits_choose_the_bands() -> None:
    neutral = bands_of(Traits())
    assert bands_of(traits(registry.load("dpo"))) == neutral
    assert bands_of(traits(registry.load("ipo")))["margin"].healthy == (0.0, 1.0)
    assert bands_of(traits(registry.load("ipo")))["margin"].bearable == (-np.inf, 2.0)
    assert bands_of(traits(registry.load("orpo")))["chosen"].healthy[0] == 0.0
    assert bands_of(traits(registry.load("mix")))["chosen"] == bands_of(traits(registry.load("orpo")))["chosen"]
    contrast = registry.load("mix", terms={"dpo": 1.0, "hinge": 0.5})
    assert bands_of(traits(contrast)) == neutral


EVERY_BAND = (*BANDS, bands_of(Traits(target_margin=0.5))["margin"])


@pytest.mark.parametrize("band", EVERY_BAND, ids=[f"{b.figure}-{i}" for i, b in enumerate(EVERY_BAND)])
def test_bands_are_sound(band: Any) -> None:
    """Healthy lies within bearable, each side that can be missed says what to do, and a reason has a source."""
    assert band.bearable[0] <= band.healthy[0] < band.healthy[1] <= band.bearable[1]
    assert band.low or band.healthy[0] in (-np.inf, 0.0)
    assert band.high or band.healthy[1] == np.inf
    assert band.why.endswith(".")
    assert band.source.startswith("https://")


def test_noise_is_no_reason_to_warn() -> None:
    band = bands_of(METHOD)["kl"]
    assert band.state(Estimate(11.0, 0.6, 32)) is State.GOOD
    assert band.state(Estimate(11.0, 0.4, 32)) is State.LOOK
    assert band.state(Estimate(41.0, 0.4, 32)) is State.BAD
