"""`prefopt compare losses=[dpo,ipo] ...`: methods on the same data with an equal budget, and what can be told of them.

usage: prefopt compare losses=[dpo,ipo,kto,orpo,simpo] [budget.trials=4] [seeds=3] [controls=true] [output_dir=DIR]
                       [data=...] [model=...] [any option of `prefopt train`] [workers=N] [--dry-run] [--list]

  losses=[A,B]            names of the menu (`prefopt losses`); base and SFT on the chosen side are always there
  methods.NAME.OPTION=V   an option of one row alone: methods.simpo.loss.gamma_beta_ratio=0.3
  methods.NAME.loss=A     a row of another name: methods.dpo_slow.loss=dpo methods.dpo_slow.trainer.max_steps=32
  budget.trials=N         settings tried for each method, on validation prompts
  seeds=N                 trainings of each method's chosen setting, on test prompts
  controls=true           the first method under a second name, and DPO with its sides swapped
  judge=FOLDER            a reward model that scores the texts, or judge=module:function that compares them
  tasks=[NAME_OR_FILE]    lm-evaluation-harness tasks (pip install 'prefopt-zoo[lm-eval]')
  measure.prompts=N       prompts that every model continues; measure.samples_per_prompt=N of each
  workers=N               processes; 0 for this one
  launcher=joblib         run the jobs by a Hydra launcher: joblib, submitit_slurm, ray, ... ; hydra.launcher.OPTION=V
                          is an option of it; see docs/compare.md
  only=KEY                run one job of `--list` and stop
  --dry-run               what would be run, and how long it may take
  --list                  the jobs that are known by now, with their keys

A second call with the same output_dir goes on where the first stopped; another method is only added.
"""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefopt.compare.spec import Budget, Comparison, MeasureConfig, Method
from prefopt.errors import UserError, first_line, nearest

LAUNCHER_OPTION = "hydra.launcher."


@dataclass(kw_only=True)
class CompareConfig:
    """The options of `prefopt compare` beside those of `prefopt train`."""

    losses: list[str] = field(default_factory=list)
    budget: Budget = field(default_factory=Budget)
    seeds: int = 3
    controls: bool = False
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    judge: str | None = None
    tasks: list[str] = field(default_factory=list)
    workers: int | None = None
    launcher: str | None = None
    only: str | None = None
    output_dir: str = "runs/compare"


def main(argv: list[str]) -> int:
    """Hold a comparison, or say what it would be."""
    if any(a in ("-h", "--help") for a in argv) or not argv:
        print(__doc__)
        return 0
    flags = {a for a in argv if a.startswith("--")}
    if unknown := flags - {"--dry-run", "--list"}:
        wrong = sorted(unknown)[0]
        raise UserError(f"there is no option {wrong}{nearest(wrong, ['--dry-run', '--list', '--help'])}")
    given = [a for a in argv if a not in flags]
    config, comparison = parse(given)
    from prefopt.cli import compare_jobs
    from prefopt.common.quiet import quiet

    quiet()
    if config.only is not None:
        return compare_jobs.run_one(comparison, config)
    if "--list" in flags:
        return compare_jobs.print_list(comparison, config)
    if "--dry-run" in flags:
        return compare_jobs.dry_run(comparison, config)
    return _hold(comparison, config, given)


def _hold(comparison: Comparison, config: CompareConfig, argv: list[str]) -> int:
    from rich.console import Console

    from prefopt.cli.compare_jobs import launched
    from prefopt.compare.comparison import compare, default_workers
    from prefopt.compare.progress_display import ProgressDisplay
    from prefopt.compare.rounds import Rounds
    from prefopt.compare.wandb_tracking import track
    from prefopt.report.compare import write_comparison
    from prefopt.report.compare_text import print_outcome

    console = Console()
    rounds = Rounds(comparison)
    workers = default_workers(rounds) if config.workers is None else config.workers
    command = shlex.join(["prefopt", "compare", *argv])
    with ProgressDisplay(console, (rounds.trial_count, rounds.final_count), workers) as progress:
        result = compare(
            rounds,
            config.output_dir,
            workers=workers,
            command=command,
            progress=progress,
            runner=launched(argv, config) if config.launcher else None,
        )
    write_comparison(Path(config.output_dir), result)
    print_outcome(console, result)
    track(result, rounds.base_config.tracking, Path(config.output_dir))
    console.print(
        f"{result.seconds:.0f} s; open {Path(config.output_dir) / 'report.html'} in a browser", highlight=False
    )
    return 0


def parse(argv: list[str]) -> tuple[CompareConfig, Comparison]:
    """Our options from `key=value` words of Hydra's grammar; the rest go to `prefopt train` as they are.

    Raises:
        UserError: a word that neither knows, or a value that cannot be, with the nearest name.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from prefopt.config.compose import KEYS

    node = OmegaConf.structured(CompareConfig)
    for part in (node, node.measure):  # frozen dataclasses come read-only
        OmegaConf.set_readonly(part, False)
    ours = [*map(str, node), "methods"]
    rest: list[str] = []
    rows: dict[str, dict[str, str]] = {}
    parser = OverridesParser.create()
    for word in argv:
        try:
            override = parser.parse_override(word)
        except HydraException as error:
            raise UserError(f"{word}: {first_line(error)}; give key=value, and lists as losses=[dpo,ipo]") from error
        key = str(override.key_or_group)
        key = {"hydra/launcher": "launcher"}.get(key, key)
        head = key.split(".", 1)[0].split("@", 1)[0].split("/", 1)[0]
        if head == "methods":
            name, option, given = _of_one_row(word)
            rows.setdefault(name, {})[option] = given
            continue
        if key.startswith(LAUNCHER_OPTION):
            continue  # for `compare_jobs.launched`
        if head not in ours:
            if head not in (*KEYS, "experiment"):
                raise UserError(f"there is no option {key!r}{nearest(head, [*ours, *KEYS, 'experiment'])}; "
                                "`prefopt compare --help` tells more")  # fmt: skip
            rest.append(word)
            continue
        if override.is_sweep_override():
            raise UserError(f"{word}: a comparison is one run; give lists in brackets: losses=[dpo,ipo]")
        value: Any = override.value()
        try:
            node = OmegaConf.merge(node, _nested(key, value))
        except OmegaConfBaseException as error:
            raise UserError(_refusal(word, key, node, first_line(error))) from error
        except (TypeError, ValueError) as error:
            raise UserError(f"{word}: {error}") from error
    try:
        config: Any = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        raise UserError(first_line(error)) from error
    if config.workers is not None and config.workers < 0:
        raise UserError(f"workers={config.workers} must be at least 0, which works in this process; leave it out for "
                        "one for each core")  # fmt: skip
    if config.launcher is None and (options := [word for word in argv if word.startswith(LAUNCHER_OPTION)]):
        raise UserError(f"{options[0]}: say which launcher, with launcher=NAME")
    return config, comparison(config, rest, rows)


def _of_one_row(word: str) -> tuple[str, str, str]:
    """(name, option, value) of `methods.NAME.OPTION=VALUE`."""
    key, _, value = word.partition("=")
    _, _, tail = key.partition(".")
    name, _, option = tail.partition(".")
    if not name or not option:
        raise UserError(f"{word}: give methods.NAME.loss=LOSS, or methods.NAME.OPTION=VALUE of `prefopt train`")
    return name, option, value


def _nested(key: str, value: Any) -> dict[str, Any]:
    """{a: {b: value}} of the key a.b."""
    head, _, tail = key.partition(".")
    return {head: _nested(tail, value) if tail else value}


def _refusal(word: str, key: str, node: Any, reason: str) -> str:
    """Why a word is refused: an unknown part of a group, or a value of another type."""
    from omegaconf import DictConfig, OmegaConf

    head, _, tail = key.rpartition(".")
    group = OmegaConf.select(node, head) if head else node
    if isinstance(group, DictConfig) and tail not in group:
        return f"there is no option {key!r}{nearest(tail, list(map(str, group)))}; `prefopt compare --help` tells more"
    return f"{word}: {reason}"


def comparison(config: CompareConfig, overrides: list[str], rows: dict[str, dict[str, str]]) -> Comparison:
    """What the options say.

    Args:
        config: ours.
        overrides: those of all rows.
        rows: those of one row alone, by its name; `loss` says which loss a row of another name is.
    """
    from prefopt.losses import registry

    methods = []
    for name in [*config.losses, *(name for name in rows if name not in config.losses)]:
        own = dict(rows.get(name, {}))
        method = Method(name=name, loss=own.pop("loss", name), overrides=tuple(f"{k}={v}" for k, v in own.items()))
        registry.loss_class(method.loss)  # an unknown name is refused before anything is composed
        methods.append(method)
    measure = dataclasses.replace(
        config.measure,
        judge=config.judge if config.judge is not None else config.measure.judge,
        tasks=tuple(config.tasks) or tuple(config.measure.tasks),
    )
    return Comparison(
        methods=tuple(methods),
        overrides=tuple(overrides),
        budget=config.budget,
        seeds=config.seeds,
        measure=measure,
        controls=config.controls,
    )
