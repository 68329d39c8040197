"""The validation split by content: its share, and what may and may not move a sample."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitcli.data.split import content_split, folds, in_one_fold, together
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


grouped = st.lists(
    st.tuples(st.integers(0, 25), st.sampled_from(["", "a", "b", "c", "d", "e"]), st.integers(0, 3)),
    min_size=1,
    max_size=60,
)


def sides_of(names: list[str], found: np.ndarray) -> dict[str, set[int]]:
    return {
        name: {int(side) for side, own in zip(found, names, strict=True) if own == name} for name in {*names} - {""}
    }


@given(grouped, st.integers(2, 5), st.integers(0, 3))
def test_groups_and_copies_stay_together(samples: list[tuple[int, str, int]], k: int, seed: int) -> None:
    """In the validation split and in folds; every class keeps training images."""
    contents = [f"image {image}".encode() for image, _, _ in samples]
    names = [group for _, group, _ in samples]
    labels = np.array([label for _, _, label in samples], np.int64)
    keys = together(contents, names)
    for found in (content_split(keys, labels, 0.3, seed), folds(keys, labels, k, seed)):
        assert all(len(sides) == 1 for sides in sides_of(names, found).values())
        assert all(len(sides) == 1 for sides in sides_of([c.decode() for c in contents], found).values())
    assert set(labels[~content_split(keys, labels, 0.3, seed)]) == set(labels)
    assert found.min() >= 0
    assert found.max() < k


def test_a_copy_joins_two_groups_and_nothing_else_does() -> None:
    contents = [b"p", b"q", b"q", b"r", b"s"]
    keys = together(contents, ["anna", "anna", "bert", "cem", ""])
    assert len({*keys[:3]}) == 1
    assert len({keys[0], keys[3], keys[4]}) == 3
    assert together(contents, None) == contents
    assert together(contents, [""] * 5) == contents  # so that an empty column splits as none does


def test_a_new_image_of_a_group_moves_no_other() -> None:
    names = [f"patient {i % 40}" for i in range(400)]
    contents, labels = digests(500), np.arange(500) % 3
    before = content_split(together(contents[:400], names), labels[:400], 0.2)
    after = content_split(together(contents, [*names, *[f"patient {i % 40}" for i in range(100)]]), labels, 0.2)
    assert (after[:400] == before).all()


@pytest.mark.parametrize("k", [2, 5, 7])
def test_folds_have_equal_shares_of_each_class(k: int) -> None:
    labels = np.repeat([0, 1, 2], [100, 33, 7])
    found = folds(digests(140), labels, k)
    counts = np.array([np.bincount(labels[found == fold], minlength=3) for fold in range(k)])
    assert (np.ptp(counts, axis=0) <= 1).all()
    order = np.random.default_rng(0).permutation(140)
    shuffled = folds([digests(140)[i] for i in order], labels[order], k)
    assert (shuffled == found[order]).all()
    assert (folds(digests(140), labels, k, seed=1) != found).any()


def test_a_class_of_two_groups_is_in_two_folds() -> None:
    """Small ones too, whose groups are full of a larger class."""
    names = [f"house {i // 10}" for i in range(60)]
    labels = np.zeros(60, np.int64)
    labels[[3, 17]] = 1
    labels[[22, 44]] = 2
    found = folds(together(digests(60), names), labels, 2)
    assert in_one_fold(found, labels) == []
    labels[44] = 0
    assert in_one_fold(folds(together(digests(60), names), labels, 2), labels) == [2]
