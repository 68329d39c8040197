"""Two machines train together (network namespaces with a cable between them): one is lost and comes back.

`python -m tests.fuzz.nodes` also cuts the cable and makes it slow.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.fuzz import nodes
from vitcli.training import train as training
from vitcli.training.events import Stepped


@pytest.mark.skipif(not nodes.may_make_networks(), reason="network namespaces cannot be made here")
def test_one_of_two_is_killed_and_started_again(tmp_path: Path) -> None:
    """The same command on both; what they end with is the curve of one process."""
    nodes.make_data(tmp_path / "data")
    losses = nodes.train(tmp_path, "killed")
    assert len(losses) == nodes.STEPS
    settings, data = training.resumed(tmp_path / "killed")
    training.begin(settings, data, tmp_path / "alone")
    events = training.train(settings, data, tmp_path / "alone", device="cpu")
    np.testing.assert_allclose(losses, [event.loss for event in events if isinstance(event, Stepped)], rtol=5e-3)
