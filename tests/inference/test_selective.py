"""Accuracy against coverage: the surest images first, whatever order they come in."""

import numpy as np
import pytest

from vitcli.inference.selective import LEVELS, selective


def probabilities_of(sure: np.ndarray, answers: np.ndarray, classes: int = 3) -> np.ndarray:
    """(N, K) whose largest value is `sure` (N,) at `answers` (N,)."""
    shares = np.repeat((1 - sure[:, None]) / (classes - 1), classes, axis=1)
    shares[np.arange(len(sure)), answers] = sure
    return shares


@pytest.mark.parametrize("n", [1, 2, 19, 20, 1000])
def test_is_the_accuracy_of_the_surest_images(n: int) -> None:
    rng = np.random.default_rng(n)
    sure, answers, labels = rng.uniform(0.5, 1, n), rng.integers(3, size=n), rng.integers(3, size=n)
    found = selective(probabilities_of(sure, answers), labels)
    order = sorted(range(n), key=lambda i: -sure[i])
    right = [float(answers[i] == labels[i]) for i in order]
    for one in found.at:
        answered = next(k for k in range(1, n + 1) if k / n >= one.coverage - 1e-12)  # enough of them
        assert one.accuracy == pytest.approx(sum(right[:answered]) / answered)
    assert [one.coverage for one in found.at] == list(LEVELS)
    assert found.aurc == pytest.approx(np.mean([1 - sum(right[:k]) / k for k in range(1, n + 1)]))
    for point in found.curve:
        answered = round(point.coverage * n)
        assert point.accuracy == pytest.approx(sum(right[:answered]) / answered)
    assert found.curve[-1].coverage == 1


def test_equally_sure_images_have_no_order() -> None:
    shares = probabilities_of(np.full(10, 0.9), np.zeros(10, int))
    labels = np.array([0] * 4 + [1] * 6)
    for turned in (labels, labels[::-1].copy()):
        assert [one.accuracy for one in selective(shares, turned).at] == pytest.approx([0.4] * 3)


def test_a_model_that_knows_when_it_is_wrong_gains_by_silence() -> None:
    sure = np.linspace(0.5, 1, 100)
    labels = (np.arange(100) < 20).astype(int)  # the least sure fifth is wrong
    found = selective(probabilities_of(sure, np.zeros(100, int)), labels)
    assert [one.accuracy for one in found.at] == pytest.approx([1, 80 / 90, 80 / 95])
