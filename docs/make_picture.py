"""Draws docs/images/predict.svg: what `vit predict` shows of two photographs in a terminal of 80 columns.

python docs/make_picture.py
"""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
COMMAND = ["predict", "docs/images/coffee.jpg", "docs/images/rocket.jpg", "-k", "3"]


def main() -> None:
    environment = {
        **os.environ,
        "FORCE_COLOR": "1",
        "COLORTERM": "truecolor",
        "COLUMNS": "80",
        "TERM": "xterm-256color",
    }
    shown = subprocess.run(
        [sys.executable, "-m", "vitcli", *COMMAND],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    console = Console(record=True, width=80, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text("$ vit " + " ".join(COMMAND), style="bold"))
    console.print(Text.from_ansi(shown.stdout))
    svg = console.export_svg(title="vit", unique_id="vit")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # the font is the reader's own: no address outside
    (ROOT / "docs" / "images" / "predict.svg").write_text(svg, "utf-8")


if __name__ == "__main__":
    main()
