"""Losses of other packages that are not what a loss must be."""

from __future__ import annotations

import dataclasses
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefopt.errors import UserError
from prefopt.losses import registry
from prefopt.plugin import Data, LossOutput, Needs, outside
from prefopt.testing import check_loss, example
from prefopt.train import BatchConfig
from tests.fuzz.hostile import altered, attempt, cases, values, words
from tests.train import tiny

MODULE = "prefopt_hostile_plugin"
NEEDS = Needs(data=Data.PAIRS, reference=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain:
    """A loss as it should be; the tests take something from it."""

    paper: ClassVar[str] = "https://example.org"
    needs: ClassVar[Any] = NEEDS
    gives: ClassVar[Any] = None
    beta: float = 1.0

    def __call__(self, logps: Any, /, *state: Any) -> Any:
        gap = logps.chosen.sum - logps.rejected.sum
        loss = -torch.nn.functional.logsigmoid(self.beta * gap)
        return LossOutput(loss=loss) if self.gives is None else self.gives(loss)

    def at_reference(self, logps: Any, /) -> None:
        return None


def raising(error: BaseException) -> Any:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


ERRORS = [ValueError("no"), TypeError("no"), RuntimeError("no"), ZeroDivisionError(), KeyError("x"), IndexError(),
          AttributeError("x"), RecursionError(), MemoryError(), NotImplementedError(), AssertionError(),
          OSError("no"), UnicodeDecodeError("utf-8", b"", 0, 1, "no")]  # fmt: skip
OUTPUTS: list[Any] = [
    lambda loss: None, lambda loss: loss, lambda loss: {"loss": loss}, lambda loss: LossOutput(loss=loss.mean()),
    lambda loss: LossOutput(loss=loss[:, None]), lambda loss: LossOutput(loss=loss[:1]),
    lambda loss: LossOutput(loss=loss.detach()), lambda loss: LossOutput(loss=loss * float("nan")),
    lambda loss: LossOutput(loss=loss / 0), lambda loss: LossOutput(loss=loss.long()),
    lambda loss: LossOutput(loss=0.5), lambda loss: LossOutput(loss=None),  # type: ignore[arg-type]
    lambda loss: LossOutput(loss=loss, metrics={"x": "text"}), lambda loss: LossOutput(loss=loss, metrics={3: loss}),  # type: ignore[dict-item]
    lambda loss: LossOutput(loss=loss, metrics={"x": loss[:2]}),
    lambda loss: LossOutput(loss=loss, chosen_reward=loss[:1]), lambda loss: LossOutput(loss=loss, state={"a": 1}),  # type: ignore[dict-item]
    lambda loss: LossOutput(loss=loss.to(torch.complex64)), *map(raising, ERRORS),
]  # fmt: skip


def installed(monkeypatch: pytest.MonkeyPatch, points: list[EntryPoint]) -> None:
    monkeypatch.setattr(outside, "entry_points", lambda group: points)
    registry._outside.cache_clear()


@pytest.fixture(autouse=True)
def forget() -> Any:
    yield
    registry._outside.cache_clear()


names = st.one_of(words, st.sampled_from(["dpo", "mine", "_x", "x y", "../x", "x/y", "x.y", "mine\n", "é"]))


places = st.one_of(words, st.sampled_from(["os:system", "a:b.c", ":", "os", "json:x"]))


def test_names_and_places() -> None:
    """What an entry point says: a name, and where to import from."""
    with pytest.MonkeyPatch.context() as monkeypatch:

        @cases(0.1)
        @given(st.lists(st.tuples(names, places), max_size=3))
        def check(given_points: list[tuple[str, str]]) -> None:
            installed(monkeypatch, [EntryPoint(n, v, registry.ENTRY_POINT_GROUP) for n, v in given_points])

            def use() -> None:
                for name in registry.names():
                    assert "/" not in name
                    assert ".." not in name
                for name, _ in given_points:
                    registry.load(name)

            attempt(use)

        check()


ATTRIBUTES = st.one_of(
    values,
    st.sampled_from([NEEDS, Needs, dataclasses.replace(NEEDS, coupled=True), property(raising(ValueError("no")))]),
)


def test_objects() -> None:
    """What is found there: anything but a frozen dataclass with needs is refused by name."""
    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = module
    with pytest.MonkeyPatch.context() as monkeypatch:
        installed(monkeypatch, [EntryPoint("mine", f"{MODULE}:Found", registry.ENTRY_POINT_GROUP)])

        @cases(0.1)
        @given(st.sampled_from(["needs", "paper", "__post_init__", "__call__", "search_space", "beta", "whole"]),
               ATTRIBUTES, st.booleans(), st.sampled_from(ERRORS), values)  # fmt: skip
        def check(part: str, value: Any, frozen: bool, error: Exception, setting: Any) -> None:
            body = {
                k: v for k, v in vars(Plain).items() if k in ("paper", "needs", "gives", "__call__", "at_reference")
            }
            body["beta"] = 1.0
            body["__annotations__"] = {"beta": float}
            body[part] = raising(error) if part == "__post_init__" else value
            found: Any
            try:
                found = value if part == "whole" else dataclasses.dataclass(frozen=frozen)(type("Found", (), body))
            except (TypeError, ValueError):  # dataclasses' own refusal: no such module can exist
                return
            module.Found = found  # type: ignore[attr-defined]
            attempt(lambda: registry.load("mine"))
            attempt(lambda: registry.load("mine", beta=setting))
            attempt(lambda: registry.load("mine", **{"betta": setting}))

        check()
    del sys.modules[MODULE]


def test_files_of_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is not Python, or fails while it is imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    source = (
        b"import dataclasses\nfrom prefopt.plugin import Data, Needs\n@dataclasses.dataclass(frozen=True)\n"
        b"class Found:\n    needs = Needs(data=Data.PAIRS, reference=False)\n    beta: float = 1.0\n"
    )
    count = iter(range(10**9))

    @cases(0.02)
    @given(altered(source))
    def check(content: bytes) -> None:
        name = f"{MODULE}_{next(count)}"
        (tmp_path / f"{name}.py").write_bytes(content)
        installed(monkeypatch, [EntryPoint("mine", f"{name}:Found", registry.ENTRY_POINT_GROUP)])
        attempt(lambda: registry.load("mine"))
        sys.modules.pop(name, None)

    check()


@pytest.mark.parametrize("gives", OUTPUTS)
def test_what_a_loss_returns(gives: Any, tmp_path: Path) -> None:
    """The kit names what is wrong with it; a training run with it is a run, or stops with an error of ours."""
    Bad = dataclasses.make_dataclass(
        "Bad", [], bases=(Plain,), frozen=True, kw_only=True, namespace={"gives": staticmethod(gives)}
    )
    found = attempt(lambda: check_loss(example(Bad)))
    assert found is None or not all(check.ok for check in found)
    data = tiny.records(Data.PAIRS, 8)
    attempt(lambda: tiny.run(Bad(), data, tmp_path, batch=BatchConfig(records=4), max_steps=1))


def test_a_loss_of_the_wrong_shape_is_named(tmp_path: Path) -> None:
    """(B, 1) was broadcast against the records' weights to (B, B)."""
    Bad = dataclasses.make_dataclass(
        "Bad", [], bases=(Plain,), frozen=True, kw_only=True, namespace={"gives": staticmethod(OUTPUTS[4])}
    )
    with pytest.raises(UserError, match=r"Bad.*\(4, 1\).*\(4,\)"):
        tiny.run(Bad(), tiny.records(Data.PAIRS, 8), tmp_path, batch=BatchConfig(records=4), max_steps=1)
