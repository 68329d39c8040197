"""Confident learning: the rule, written out image by image, and what it must never say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitcli.data.confident import NEVER, Labels, Probabilities, probably_wrong, thresholds


def drawn(seed: int, n: int, k: int) -> tuple[Probabilities, Labels]:
    """Probabilities that follow the labels loosely; some classes may have no image, some rows are ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    scores = rng.normal(0, 1, (n, k)) + 1.5 * np.eye(k)[labels]
    scores[rng.random(n) < 0.1] = 0.0
    shares = np.exp(scores)
    return shares / shares.sum(axis=1, keepdims=True), labels


def one_by_one(probabilities: Probabilities, labels: Labels) -> list[bool]:
    """cleanlab's rule (count.compute_confident_joint, then count._reduce_issues), without a vector operation."""
    k = probabilities.shape[1]
    means = []
    for j in range(k):
        own = [row[j] for row, label in zip(probabilities, labels, strict=True) if label == j]
        means.append(sum(own) / len(own) if own else 2.0)
    found = []
    for row, label in zip(probabilities, labels, strict=True):
        confident = [j for j in range(k) if row[j] >= max(means[j], 2e-6) - 1e-6]
        guess = int(np.argmax(row)) if len(confident) > 1 else confident[0] if confident else label
        raised = row.copy()
        raised[label] += 1e-6
        found.append(bool(guess != label and int(np.argmax(raised)) != label))
    return found


@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(2, 6))
def test_the_rule_is_that_of_cleanlab(seed: int, n: int, k: int) -> None:
    probabilities, labels = drawn(seed, n, k)
    assert probably_wrong(probabilities, labels).tolist() == one_by_one(probabilities, labels)


def test_thresholds_are_mean_probabilities_of_the_own_class() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.5, 0.5, 0.0], [0.2, 0.8, 0.0]])
    assert thresholds(probabilities, np.array([0, 0, 1])) == pytest.approx([0.7, 0.8, NEVER])


def test_a_sure_contradiction_is_wrong_and_a_tie_stands() -> None:
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.1, 0.9]] * 4 + [[0.95, 0.05], [0.5, 0.5]])
    labels = np.array([0] * 4 + [1] * 4 + [1, 1])
    assert np.flatnonzero(probably_wrong(probabilities, labels)).tolist() == [8]
