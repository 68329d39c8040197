"""The validation split by content: its share, and what may and may not move a sample."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitcli.data.split import content_split
from vitcli.errors import UsageError


def digests(n: int, start: int = 0) -> list[bytes]:
    return [f"image {i}".encode() for i in range(start, start + n)]


def chosen(contents: list[bytes], labels: list[int] | np.ndarray, fraction: float = 0.2, seed: int = 0) -> set[bytes]:
    mask = content_split(contents, np.asarray(labels, np.int64), fraction, seed)
    assert mask.shape == (len(contents),)
    return {content for content, validates in zip(contents, mask, strict=True) if validates}


def test_the_share_is_about_right_and_the_seed_draws_another() -> None:
    contents, labels = digests(5000), np.arange(5000) % 5
    first = chosen(contents, labels)
    assert abs(len(first) - 1000) < 5 * np.sqrt(5000 * 0.2 * 0.8)  # five standard deviations of a binomial
    assert chosen(contents, labels) == first
    other = chosen(contents, labels, seed=1)
    assert len(other & first) < 0.5 * len(first)
    assert chosen(contents, labels, seed=-1) != first


def test_a_larger_share_contains_a_smaller_one() -> None:
    contents, labels = digests(1000), np.zeros(1000)
    assert chosen(contents, labels, 0.1) < chosen(contents, labels, 0.3)
    assert chosen(contents, labels, 0.0) == set()


def test_new_files_move_no_old_one_and_order_does_not_matter() -> None:
    old, new = digests(2000), digests(1000, start=2000)
    labels = np.arange(3000) % 10
    before = chosen(old, labels[:2000])
    assert {content for content in chosen(old + new, labels) if content in set(old)} == before
    assert chosen(old[::-1], labels[:2000][::-1]) == before


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4)), min_size=1, max_size=60), st.integers(0, 3))
def test_copies_stay_together_and_every_class_has_both_sides(samples: list[tuple[int, int]], seed: int) -> None:
    """Where images belong to one class each; an image under two classes may cost the smaller one its share."""
    contents = [f"{image % 7 if image > 20 else image} of {label}".encode() for image, label in samples]
    labels = np.array([label for _, label in samples], np.int64)
    mask = content_split(contents, labels, 0.25, seed)
    for content in set(contents):
        assert len({bool(side) for side, other in zip(mask, contents, strict=True) if other == content}) == 1
    for label in set(labels.tolist()):
        different = len({content for content, other in zip(contents, labels, strict=True) if other == label})
        sides = set(mask[labels == label].tolist())
        assert sides == ({True, False} if different > 1 else {False})


def test_a_class_of_one_image_trains_on_it() -> None:
    mask = content_split(digests(50), np.arange(50), 0.9, 0)
    assert not mask.any()


def test_copies_under_two_classes_stay_together_too() -> None:
    contents = digests(40) * 2
    mask = content_split(contents, np.repeat([0, 1], 40), 0.3, 0)
    assert np.array_equal(mask[:40], mask[40:])


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_senseless_fractions(fraction: float) -> None:
    with pytest.raises(UsageError, match="fraction"):
        content_split(digests(3), np.zeros(3, np.int64), fraction, 0)
