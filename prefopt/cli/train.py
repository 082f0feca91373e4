"""`prefopt train key=value ...`: one run, or with -m one run for each combination of comma-separated values."""

from __future__ import annotations


def main(argv: list[str]) -> int:
    """Compose the configuration and run it."""
    from rich.console import Console
    from rich.table import Table

    from prefopt.cli.compose import run_hydra
    from prefopt.run import RunConfig, run

    console = Console()

    def task(config: RunConfig) -> None:
        console.print(
            f"[bold]{config.loss_name}[/bold] on {config.data.path} from {config.model.path} → {config.output_dir}"
        )
        summary = run(config, say=lambda line: console.print(line, highlight=False, markup=False))
        table = Table(title=f"{config.loss_name}: held-out figures", title_justify="left")
        for column, justify in (("figure", "left"), ("before", "right"), ("after", "right")):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        before, after = summary["before"], summary["after"]
        for name in sorted(after):
            if name not in ("epoch", "runtime", "records"):
                was = before.get(name)
                table.add_row(name, f"{was:.4g}" if was is not None else "", f"{after[name]:.4g}")
        if after:
            console.print(table)
        seconds = summary["seconds"]
        console.print(f"{summary['steps']} steps, {seconds['train']} s of training, {seconds['total']} s in all; "
                      f"the model is in {config.output_dir}/final")  # fmt: skip

    run_hydra(task, argv, "prefopt train")
    return 0
