"""Lists cut short and sizes, as messages write them."""

import pytest

from vitcli.text import by, some


@pytest.mark.parametrize(
    ("names", "more", "shown"),
    [
        ([], {}, ""),
        (["a", "b"], {}, "a, b"),
        (["a", "b", "c"], {}, "a, b, …"),
        (["a", "b", "c"], {"counted": True}, "a, b and 1 more"),
        (["a", "b"], {"counted": True}, "a, b"),
        (["a", "b", "c"], {"quote": "'"}, "'a', 'b', …"),
        (["x\x1b[2J", 3], {"quote": "'"}, "'x\\x1b[2J', '3'"),
        (["12345", "1"], {"limit": 4}, "1234…, 1"),
    ],
)
def test_some_of_many_names(names: list[object], more: dict[str, object], shown: str) -> None:
    assert some(names, 2, **more) == shown


def test_a_size_in_words() -> None:
    assert by((224, 320)) == "224×320"
    assert by([28, 28], "x") == "28x28"
