"""A comparison's plan and results: on the terminal, as JSON or CSV."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from rich.text import Text

from vitcli.cli.console import note, row, stdout, table
from vitcli.comparison.compare import Plan
from vitcli.comparison.report import as_csv
from vitcli.comparison.results import Findings
from vitcli.comparison.tables import Table, accuracy_table, few_shot_table, sentence
from vitcli.text import as_json, safe

Form = Literal["table", "json", "csv"]


def show_plan(plan: Plan) -> None:
    """What will be done, on standard error."""
    study = plan.study
    note(f"study    {safe(plan.folder)}: {plan.cells} cells, {plan.done} of them done")
    note(f"data     {safe(study.data)}")
    note(f"models   {', '.join(safe(model) for model in study.models)}")
    note(f"sizes    {', '.join(f'{share * 100:g}%' for share in study.shares)}")
    for stage in study.pretrainings:
        before = f"{stage.name}: {stage.share * 100:g}% of {safe(stage.data)}"
        note(f"before   {before}, then fine-tuned at {study.finetune_size:g} times the size")
    epochs = ", ".join(f"{study.epochs_of(share):.3g}" for share in study.shares)
    note(f"epochs   {epochs} by size; {study.seeds} seeds")
    for model, seconds in plan.seconds.items():
        time = f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
        note(f"cost     {model}: about {time}")
    if plan.seconds:
        hours = sum(plan.seconds.values()) / 3600
        note(f"in all   about {hours:.1f} h on this machine, stopped and resumed as you like")


def print_plan(plan: Plan) -> None:
    """What will be done, as JSON on standard output."""
    print(as_json({"schema": "vit.compare-plan/1", **asdict(plan), "folder": str(plan.folder)}))


def show(form: Form, folder: Path, found: Findings) -> None:
    """What came out, on standard output."""
    if form == "json":
        document = {
            "schema": "vit.compare/1",
            "study": asdict(found.study),
            "models": {name: {"params": size.params, "macs": size.macs} for name, size in found.sizes.items()},
            "points": [asdict(point) for point in found.points],
            "failed": found.failed,
            "crossovers": [asdict(one) for one in found.crossings],
        }
        print(as_json(document))
    elif form == "csv":
        sys.stdout.write(as_csv(found))
    else:
        _print(accuracy_table(found))
        few_shot = few_shot_table(found)
        if few_shot[1]:
            stdout().print()
            _print(few_shot)
        for one in found.crossings:
            stdout().print(Text(f"→ {sentence(one)}"))
        note(f"figure, report.html and results.csv are in {safe(folder)}")


def _print(what: Table) -> None:
    columns, rows = what
    grid = table(*columns, right=tuple(columns[1:]))
    for line in rows:
        row(grid, *line)
    stdout().print(grid)
