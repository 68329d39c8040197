"""What several tests of training begin with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.data import write_stripes


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 images of 16×16 in three classes."""
    folder = tmp_path_factory.mktemp("stripes")
    write_stripes(folder, np.arange(100) % 3, 16)
    return folder


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """What `torch.compile` traces: it makes no machine code, which takes a compiler and minutes."""
    found: list[torch.fx.GraphModule] = []

    def traced(graph: torch.fx.GraphModule, _: Any) -> Any:
        found.append(graph)
        return graph.forward

    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: whole(model, backend=traced))
    torch._dynamo.reset()
    return found
