"""`prefopt demo`: base, SFT and preference methods on a small world of exactly known reward; a table and a page."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from prefopt.report.demo import DemoRow
    from prefopt.worlds.review import ReviewWorld


@dataclass(frozen=True)
class Method:
    """A method of the demo, with a strength and a learning rate that suit this world."""

    title: str
    loss: str
    hyperparameters: Mapping[str, float]
    learning_rate: float

    @property
    def setting(self) -> str:
        """As one would say it to `prefopt train`."""
        strength = [f"loss.{name}={value:g}" for name, value in self.hyperparameters.items()]
        return " ".join([f"loss={self.loss}", *strength, f"trainer.learning_rate={self.learning_rate:g}"])


METHODS = (
    Method("DPO", "dpo", {"beta": 0.6}, 1e-3),
    Method("IPO", "ipo", {"tau": 0.5}, 1e-3),
    Method("KTO", "kto", {"beta": 0.3}, 1e-3),
    Method("ORPO", "orpo", {"lam": 3.0}, 1e-3),
    Method("SimPO", "simpo", {"beta": 2.5, "gamma_beta_ratio": 0.5}, 1e-3),
)
BATCH_RECORDS = 128
MAX_TOKENS = 8192
LOOKS = 4  # during training, for the learning curves
BEST_OF = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much work the demo does."""

    steps: int = 124  # two epochs of the world's pairs
    prompts: int = 512
    samples_per_prompt: int = 4

    @property
    def look_prompts(self) -> int:
        """Prompts of a look during training, one sample each."""
        return self.prompts // 2


def main(argv: list[str]) -> int:
    """Run the demo; writes `report.html` and `results.json` into the output folder."""
    parser = argparse.ArgumentParser(prog="prefopt demo", description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/demo"), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the world, the order of records and the samples")
    arguments = parser.parse_args(argv)
    run(arguments.output_dir, seed=arguments.seed)
    return 0


def run(output_dir: Path, *, seed: int = 0, size: Size = Size(), world: ReviewWorld | None = None) -> list[DemoRow]:
    """Build the world, train every method from the same weights on the same pairs in the same order, and report."""
    start = time.perf_counter()
    from rich.console import Console

    from prefopt.common.quiet import quiet
    from prefopt.worlds.review import ReviewWorld

    console = Console()
    console.print(f"[bold]prefopt demo[/bold]: {len(METHODS) + 1} methods, SFT among them, on one set of preferences "
                  "whose true reward is known")  # fmt: skip
    quiet()
    with _one_thread(), _progress(console) as progress:
        stage = _Stage(world or ReviewWorld(seed=seed), size, seed, progress)
        rows = [stage.untuned("Base"), stage.untuned("SFT"), *map(stage.tuned, METHODS)]
        yardstick = stage.yardstick()
    seconds = time.perf_counter() - start
    stage.report(output_dir, rows, yardstick, seconds)
    _print_table(console, rows)
    console.print(f"{seconds:.0f} seconds in all; open {output_dir / 'report.html'} in a browser")
    return rows


class _Stage:
    """What all methods share: the world, its pairs in tokens, the reference, the seed."""

    def __init__(self, world: ReviewWorld, size: Size, seed: int, progress: Progress) -> None:
        from prefopt.data.data_config import DataConfig
        from prefopt.data.prepare import prepare
        from prefopt.models.load import ModelConfig, load_model, load_tokenizer
        from prefopt.plugin import Data
        from prefopt.worlds.build import BASE_STEPS, SFT_STEPS, build

        self.world, self.size, self.seed, self.progress = world, size, seed, progress
        with self._bar("World, base and SFT model", BASE_STEPS + SFT_STEPS) as step:
            self.files = build(world, callbacks=[step])
        model = ModelConfig(path=str(self.files.model))
        self.reference = load_model(model)
        data = DataConfig(path=str(self.files.train), eval_path=str(self.files.validation))
        prepared = prepare(data, load_tokenizer(model), Data.PAIRS)
        assert prepared.eval is not None
        self.data, self.pairs = prepared.train, prepared.eval

    def untuned(self, name: str) -> DemoRow:
        """The row of a model that has seen no preferences: `Base` or `SFT`."""
        from prefopt.models.load import ModelConfig, load_model
        from prefopt.report.demo import DemoRow

        folder = self.files.base if name == "Base" else self.files.model
        with self._bar(f"{name}: evaluation"):
            evaluation = self._evaluate(load_model(ModelConfig(path=str(folder))))
        return DemoRow(name=name, evaluation=evaluation, seconds=self.files.seconds[name.lower()])

    def tuned(self, method: Method) -> DemoRow:
        """Train a method from the SFT weights, and evaluate it."""
        from prefopt.losses import registry
        from prefopt.models.load import ModelConfig, load_model
        from prefopt.report.demo import DemoRow
        from prefopt.train import BatchConfig, train

        policy = load_model(ModelConfig(path=str(self.files.model)))
        loss = registry.load(method.loss, **method.hyperparameters)
        looks = self._looks()
        with self._bar(method.title, self.size.steps) as step, tempfile.TemporaryDirectory() as scratch:
            result = train(
                policy,
                loss,
                self.data,
                output_dir=scratch,
                batch=BatchConfig(records=BATCH_RECORDS, max_tokens=MAX_TOKENS),
                seed=self.seed,
                callbacks=[looks, step],
                learning_rate=method.learning_rate,
                max_steps=self.size.steps,
                logging_strategy="no",
            )
            evaluation = self._evaluate(policy)
        return DemoRow(
            name=method.title,
            evaluation=evaluation,
            seconds=result.seconds - looks.seconds,
            setting=method.setting,
            paper=loss.paper,
            curve=looks.curve,
        )

    def yardstick(self) -> list[tuple[int, float, Any]]:
        """Best of n samples from SFT."""
        from prefopt.evaluate.world import best_of_n

        with self._bar("Best of n samples"):
            return best_of_n(self.world, self.reference, BEST_OF, prompts=self.size.prompts // 4, seed=self.seed)

    def report(self, folder: Path, rows: Sequence[DemoRow], yardstick: Sequence[Any], seconds: float) -> None:
        """Write the page and the figures."""
        from prefopt.report.demo import DemoFacts, demo_page
        from prefopt.report.page import write_page

        labels = [record.scores for record in self.pairs]
        facts = DemoFacts(
            world=self.world,
            seed=self.seed,
            steps=self.size.steps,
            batch=BATCH_RECORDS,
            parameters=self.reference.num_parameters(),
            samples_per_prompt=self.size.samples_per_prompt,
            look_prompts=self.size.look_prompts,
            heldout=len(labels),
            ceiling=sum(scores[0] > scores[1] for scores in labels if scores is not None) / len(labels),
            best_of_n=yardstick,
            total_seconds=seconds,
            machine=f"{os.cpu_count()} cores ({platform.machine()})",
            versions=_versions(),
        )
        folder.mkdir(parents=True, exist_ok=True)
        write_page(folder / "report.html", demo_page(rows, facts))
        write_page(folder / "results.json", json.dumps([_result(row) for row in rows], indent=1) + "\n")

    def _evaluate(self, policy: Any) -> Any:
        from prefopt.evaluate.world import evaluate

        size = {"prompts": self.size.prompts, "samples_per_prompt": self.size.samples_per_prompt}
        return evaluate(self.world, policy, self.reference, self.pairs, seed=self.seed, **size)

    def _looks(self) -> Any:
        """A callback that looks at the policy at the start and `LOOKS` times on the way (`curve`, `seconds`)."""
        from transformers import TrainerCallback

        from prefopt.evaluate.world import log_probs, sampled_reward, win_share
        from prefopt.report.demo import CurvePoint

        stage = self
        start = log_probs(self.reference, self.pairs)
        prompts = self.world.prompts(self.size.look_prompts, self.seed, "validation")

        class Looks(TrainerCallback):
            def __init__(self) -> None:
                self.curve: list[CurvePoint] = []
                self.seconds = 0.0

            def look(self, step: int, policy: Any) -> None:
                began = time.perf_counter()
                ratio = log_probs(policy, stage.pairs) - start
                reward = sampled_reward(stage.world, policy, prompts, seed=stage.seed)
                chosen, rejected = ratio.mean(0).tolist()
                self.curve.append(CurvePoint(step, reward.value, win_share(ratio).value, chosen, rejected))
                self.seconds += time.perf_counter() - began

            def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
                self.look(0, model)

            def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
                step, steps = state.global_step, stage.size.steps
                if step * LOOKS // steps > (step - 1) * LOOKS // steps:
                    self.look(step, model)

        return Looks()

    @contextlib.contextmanager
    def _bar(self, title: str, steps: int | None = None) -> Iterator[Any]:
        """A progress bar; gives a callback of transformers' kind that advances it by the steps of a trainer."""
        from transformers import TrainerCallback

        task = self.progress.add_task(title, total=steps)
        progress = self.progress

        class Advance(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                progress.advance(task)

        yield Advance()
        progress.update(task, total=steps or 1, completed=steps or 1)


def _result(row: DemoRow) -> dict[str, Any]:
    """A row of `results.json`: figures by name, each with its standard error as `<name>_se`."""
    figures: dict[str, Any] = {"method": row.name.lower(), "setting": row.setting, "seconds": round(row.seconds, 2)}
    for name, estimate in row.evaluation.estimates().items():
        figures |= {name: estimate.value, f"{name}_se": estimate.se}
    return figures | {"curve": [asdict(point) for point in row.curve]}


def _print_table(console: Console, rows: Sequence[DemoRow]) -> None:
    from rich import box
    from rich.table import Table

    from prefopt.report.demo import standing
    from prefopt.report.formatting import number, signed

    best, tied = standing(rows)
    # Fits eighty columns.
    table = Table(
        title="± is one standard error", title_justify="left", title_style="dim", header_style="bold",
        box=box.SIMPLE_HEAD, show_edge=False,
    )  # fmt: skip
    table.add_column("model")
    headings = ("true\nreward", "KL to\nreference", "pair\nacc.", "Δ logp\nchosen", "Δ logp\nrej.")
    for heading in (*headings, "len.", "valid", "sec."):
        table.add_column(heading, justify="right")
    for row in rows:
        e, still = row.evaluation, row.is_reference
        mark = " best" if row.name == best else " tie" if row.name in tied else ""
        table.add_row(
            f"[bold]{row.name}[/bold][cyan]{mark}[/cyan]",
            f"{signed(e.true_reward.value)} ±{number(e.true_reward.se)}",
            "0" if still else f"{number(e.kl.value)} ±{number(e.kl.se)}",
            "–" if still else f"{100 * e.accuracy.value:.0f} %",
            "0" if still else signed(e.chosen_change.value),
            "0" if still else signed(e.rejected_change.value),
            number(e.length.value, 1),
            f"{100 * e.valid.value:.0f} %",
            number(row.seconds, 1),
            end_section=row.is_reference,
        )
    console.print(table)


def _progress(console: Console) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """A model this small gains nothing from a second thread, and loses much where another program wants the core."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _versions() -> str:
    import torch
    import transformers

    import prefopt

    return f"prefopt {prefopt.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
