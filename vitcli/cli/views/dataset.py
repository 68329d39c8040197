"""What `vit check` found, as tables for people."""

from rich.text import Text

from vitcli.cli.console import piped, row, stdout, table
from vitcli.data.check import Report
from vitcli.text import safe

CLASSES_SHOWN = 40  # on a terminal
EXAMPLES = 5  # of a finding
INDENT = " " * 8


def show(report: Report) -> None:
    """Images of each class and split, their sizes, and what was found, with advice."""
    console = stdout()
    splits = list(report.counts)
    counts = table("class", *splits, right=tuple(splits))
    most = len(report.classes) if piped() else CLASSES_SHOWN
    for i, name in enumerate(report.classes[:most]):
        row(counts, name, *(report.counts[split][i] for split in splits))
    if len(report.classes) > most:
        row(counts, f"{len(report.classes) - most} more classes", *("…" for _ in splits), style="dim")
    row(counts, "all", *(sum(report.counts[split]) for split in splits), style="bold")
    if splits:
        console.print(counts)
        console.print()
    if report.sizes:
        low_w, high_w, low_h, high_h = report.sizes
        console.print(Text(f"sizes   {_range(low_w, high_w)} wide, {_range(low_h, high_h)} high, in pixels"))
    for line in report.notes:
        console.print(Text(f"note    {safe(line, None)}"))
    if not report.findings:
        console.print(Text("nothing found that would spoil a measurement, and nothing odd", style="green"))
    for finding in report.findings:
        spoils = finding.grade == "spoils a measurement"
        console.print()
        console.print(
            Text.assemble(
                (f"{'SPOILS' if spoils else 'note  '}  ", "red" if spoils else "dim"), safe(finding.what, None)
            )
        )
        console.print(Text(f"{INDENT}→ {finding.advice}"))
        for example in finding.examples[:EXAMPLES]:
            console.print(Text(f"{INDENT}{safe(example, None)}", style="dim"))
        if (more := len(finding.examples) - EXAMPLES) > 0:
            console.print(Text(f"{INDENT}and {more} more; --json names all", style="dim"))


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"
