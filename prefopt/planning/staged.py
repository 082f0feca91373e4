"""Plans stages in a row, before the models exist that the later ones start from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from prefopt.config.run_config import RunConfig
from prefopt.engine.cpu import give_back
from prefopt.errors import UserError
from prefopt.planning.devices import Device
from prefopt.planning.plan import Plan, plan
from prefopt.runs.resolve import resolved
from prefopt.runs.stages import StageRun, in_a_row


@dataclass(frozen=True, kw_only=True)
class StagedPlan:
    """The plans of all stages of a run.

    Attributes:
        stages: each stage with its plan; None for one that an earlier call has finished, which takes nothing.
        last: the plan of the run itself.
    """

    stages: list[tuple[StageRun, Plan | None]]
    last: Plan

    def plain(self) -> dict[str, Any]:
        """As JSON values: the plan of the last run, and where there are stages theirs and the total."""
        if not self.stages:
            return self.last.plain()
        stages = {
            stage.name: {"method": stage.config.loss_name, "folder": str(stage.folder), "found": found is None}
            | ({} if found is None else found.plain())
            for stage, found in self.stages
        }
        return self.last.plain() | {"stages": stages, "total": self.total()}

    def total(self) -> dict[str, Any]:
        """Steps and seconds of all that is still to be run, and the largest peak of memory."""
        plans = [*(found for _, found in self.stages if found is not None), self.last]
        return {
            "steps": sum(one.schedule.steps for one in plans),
            "seconds": round(sum(sum(one.seconds.values()) for one in plans), 3),
            "memory_gib": max(one.memory.gib()["total"] for one in plans),
        }


def plan_stages(config: RunConfig, device: Device | None = None) -> StagedPlan:
    """Plan a run and the stages before it that are not finished.

    Training changes neither a model's shape nor, where the template is known, the tokens of its data. So a stage behind
    one that has not run yet is planned on the model which that one starts from.

    Args:
        config: the configuration of the last run.
        device: as for `prefopt.planning.plan.plan`.

    Raises:
        UserError: anything that a stage would reject, with its name.
    """
    stages, last = in_a_row(config)
    plans: list[tuple[StageRun, Plan | None]] = []
    start: RunConfig | None = None  # of the first stage that has not run; every later one is planned on its model
    for stage in stages:
        if start is None and stage.is_finished():
            plans.append((stage, None))
            continue
        plans.append((stage, _plan(f"stage {stage.name}: ", stage.config, start, device)))
        start = _start_of_next(stage, start)
    return StagedPlan(stages=plans, last=_plan("", last, start, device))


def _plan(name: str, config: RunConfig, start: RunConfig | None, device: Device | None) -> Plan:
    try:
        if start is None:
            return plan(config, device)
        template = start.data.template if config.data.template == "auto" else config.data.template
        there = replace(config, model=replace(config.model, path=start.model.path, revision=start.model.revision),
                        data=replace(config.data, template=template))  # fmt: skip
        return plan(there, device, tuned=True)
    except UserError as error:
        raise UserError(f"{name}{error}") from error
    finally:
        give_back()  # the next plan must not count this one's memory


def _start_of_next(stage: StageRun, start: RunConfig | None) -> RunConfig:
    """What the stage behind this one is planned on: the model that exists, and the template that this stage saves."""
    if start is None:
        return resolved(stage.config)
    if stage.config.data.template == "auto":
        return start
    return replace(start, data=replace(start.data, template=stage.config.data.template))
