"""For mkdocs: the pages' links to files outside docs/ lead to the repository."""

import re
from typing import Any


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    return re.sub(r"\]\(\.\./", f"]({config.repo_url.rstrip('/')}/blob/main/", markdown)
