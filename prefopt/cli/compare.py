"""`prefopt compare losses=[dpo,ipo] ...`: compares methods on the same data with equal budgets.

usage: prefopt compare losses=[dpo,ipo,kto,orpo,simpo] [budget.trials=4] [seeds=5] [controls=true] [output_dir=DIR]
                       [data=...] [model=...] [any option of `prefopt train`] [workers=N] [--dry-run] [--list]

  losses=[A,B]            names of the menu (`prefopt losses`); base and SFT on the chosen side are always included;
                          A@rollouts is the loss A on the policy's own samples, as losses such as rloo always are
  reward=R                scores samples: world (the default there), a reward model's run, module:function or
                          file.py:function; rollout.OPTION for how they are drawn
  methods.NAME.OPTION=V   an option of one method only: methods.simpo.loss.gamma_beta_ratio=0.3
  methods.NAME.loss=A     another method with the loss A: methods.dpo2.loss=dpo methods.dpo2.trainer.max_steps=32
  budget.trials=N         settings tried for each method, measured on validation prompts
  seeds=N                 runs of each method's best setting, measured on test prompts
  controls=true           the first method under a second name, and DPO with its sides swapped; of the first method on
                          own samples a second name, and runs with rewards negated and shuffled
  judge=FOLDER            a reward model that scores the texts, or judge=module:function that compares them
  tasks=[NAME_OR_FILE]    lm-evaluation-harness tasks (pip install 'prefopt-zoo[lm-eval]')
  measure.prompts=N       prompts that every model answers; measure.samples_per_prompt=N samples for each
  workers=N               the number of worker processes; 0 works in this process
  launcher=joblib         run the jobs with a Hydra launcher: joblib, submitit_slurm, ray, ...; hydra.launcher.OPTION=V
                          sets an option of it; see docs/compare.md
  only=KEY                run one job of `--list` and stop
  --dry-run               show what would run, and how long it may take
  --list                  list the jobs that are known so far, with their keys
  --json                  print the content of results.json and nothing else

A second call with the same output_dir resumes the comparison; a method that is new to it is added.
"""

from __future__ import annotations

from prefopt.errors import UserError, nearest

FLAGS = ("--dry-run", "--list", "--json")


def main(argv: list[str]) -> int:
    """Run a comparison, or show what it would run.

    Raises:
        UserError: an option that cannot be used.
    """
    if not argv or "-h" in argv or "--help" in argv:
        print(__doc__)
        return 0
    flags = [word for word in argv if word.startswith("--")]
    for flag in flags:
        if flag not in FLAGS:
            raise UserError(f"there is no option {flag}{nearest(flag, [*FLAGS, '--help'])}")
    words = [word for word in argv if word not in flags]
    from prefopt.cli import compare_jobs
    from prefopt.cli.compare_options import parse
    from prefopt.common.quiet import quiet

    config, comparison = parse(words)
    modes = [*(flag for flag in FLAGS if flag in flags), *(["only=KEY"] if config.only is not None else [])]
    if len(modes) > 1:
        raise UserError(f"{' and '.join(modes)} exclude each other: each prints something of its own")
    if config.workers and config.launcher is not None and config.only is None:
        raise UserError(f"workers={config.workers}: launcher={config.launcher} starts the processes, and has an option "
                        "of its own for their number (such as hydra.launcher.n_jobs of joblib)")  # fmt: skip
    quiet()
    if config.only is not None:
        return compare_jobs.run_one(comparison, config)
    if "--list" in flags:
        return compare_jobs.print_list(comparison, config)
    if "--dry-run" in flags:
        return compare_jobs.dry_run(comparison, config)
    return compare_jobs.run_all(comparison, config, words, as_json="--json" in flags)
