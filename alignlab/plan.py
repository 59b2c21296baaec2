"""The plan that is printed before anything heavy: what will happen to which rows and parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from rich.console import Console
from rich.table import Table

from alignlab.config import RunConfig
from alignlab.evaluation.config import FormConfig
from alignlab.folders import folder_of
from alignlab.preparation import Plan
from alignlab.training.stages import Work


def show(plan: Plan, shared: Collection[str], console: Console) -> None:
    """A few lines: who, rows kept and dropped and why, steps, trainable share, suites left out. `shared`: the stages that
    another run has done."""
    config = plan.config
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row(
        "run",
        f"method={config.method.name} tuner={config.tuner.name} model={config.model.name} data={config.data.name}",
    )
    if plan.method.stages:
        share = 100 * plan.learned / plan.parameters
        table.add_row("tuner", f"{plan.learned:,} parameters, on a backbone of {plan.parameters:,} ({share:.3g} %)")
        table.add_row("configs", _configs(config))
        table.add_row("layout", f"expected: {plan.rows}")
    else:
        table.add_row("tuner", "nothing is trained")
    for name in ("train", "test"):
        origin = plan.source.split(name).origin if name in plan.source.readers else None
        if origin:
            table.add_row(f"data {name}", origin.sentence())
    for stage, work in zip(plan.method.stages, plan.works, strict=True):
        doing = f"{work.steps} steps, {work.note}" if stage.trains else work.note
        table.add_row(f"stage {stage.name}", f"{doing}; another run has done it" if stage.name in shared else doing)
        table.add_row("", work.account.sentence())
        for task, weight in (work.weights or {}).items():
            table.add_row("", _task(work, task, weight))
    if plan.classes:
        table.add_row("classes", _classes(plan))
    if plan.validated:
        table.add_row("validation", _validation(plan))
    where = ", ".join(point.mixture or f"{point.strength:g}" for point in plan.points)
    suites = ", ".join(config.suites) or "none"
    at = "classes" if plan.classes else "strengths"
    table.add_row("evaluation", f"{suites}; at {at} {where}" if config.suites else suites)
    if plan.decoding:
        need, weights = plan.decoding
        table.add_row("decoding", need.sentence(weights))
    if plan.held_out:
        table.add_row("", f"held-out pairs: {plan.held_out.account.sentence()}")
    if plan.held_out_items:
        table.add_row("", f"held-out responses: {plan.held_out_items.account.sentence()}")
    if plan.held_out_labels:
        table.add_row("", f"held-out texts: {plan.held_out_labels.account.sentence()}")
    for suite, reason in config.left_out.items():
        table.add_row("", f"left out: {suite} ({reason})")
    table.add_row("folder", str(folder_of(config)))
    console.print(table)


def _classes(plan: Plan) -> str:
    """How each class is told to the model."""
    assert plan.classes is not None
    edges = f"; scores cut at {', '.join(f'{edge:g}' for edge in plan.classes.edges)}" if plan.classes.edges else ""
    placeholders = f"; placeholder ids {', '.join(map(str, plan.control.placeholders))}" if plan.control.embeds else ""
    held = Counter(group.members[0].control for group in plan.works[0].groups)
    named = ", ".join(f"{name} ({held[name]})" for name in plan.classes.names)
    return f"{named}, each by a {plan.control.form}{placeholders}{edges}"


def _task(work: Work, task: str, weight: float) -> str:
    """What a stage has of one of several sources."""
    own = [group for group in work.groups if group.task == task]
    tokens = sum(len(member.ids) for group in own for member in group.members)
    return f"of {task}: {len(own)} rows, {tokens:,} tokens, weight {weight:.3g}"


def _validation(plan: Plan) -> str:
    """What is measured while which stages train."""
    wanted = plan.config.trainer.validation
    assert wanted is not None
    assert plan.validated is not None
    every = f"{wanted.every_steps} steps" if wanted.every_steps is not None else f"{wanted.every_epochs:g} epochs"
    stages = ", ".join(stage.name for stage in plan.method.stages if stage.validated(plan.config.trainer))
    records = len(plan.validated.source.split("test").records)
    kept = "; ends with the best" if wanted.keep_best else ""
    return (
        f"{wanted.suite}/{wanted.metric} every {every} of {stages}{kept};"
        f" at most {wanted.rows} of {records} records of split {wanted.split}"
    )


def _configs(config: RunConfig) -> str:
    """Where the tuner's and the method's numbers came from, the command line aside."""
    rates = f"sizing/tuner/{config.sizing.tuner}" if config.sizing.tuner else f"tuner/{config.tuner.name}"
    if isinstance(config.control, FormConfig):
        rates = f"sizing/control/{config.sizing.control}" if config.sizing.control else f"control/{config.control.name}"
    steps = f"sizing/method/{config.sizing.method}" if config.sizing.method else f"method/{config.method.name}"
    return f"{rates}, {steps}"
