"""Measures against scikit-learn, torchmetrics, scipy and closed forms, at the ends of their ranges too."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torchmetrics.functional import classification as tm

from vitcli.metrics import BINS, clustered, confused_pairs, measure, mistakes, paired, wilson

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 7, 400)
PROBABILITIES = RNG.dirichlet(np.ones(7) * 0.5, 400)
PROBABILITIES[np.arange(400), LABELS] += 0.5
PROBABILITIES /= PROBABILITIES.sum(axis=1, keepdims=True)
NAMES = [f"class {i}" for i in range(7)]


class TestMeasure:
    def test_against_scikit_learn(self) -> None:
        found = measure(PROBABILITIES, LABELS, NAMES)
        predicted = PROBABILITIES.argmax(axis=1)
        assert found.top1 == pytest.approx(sk.accuracy_score(LABELS, predicted))
        assert found.top5 == pytest.approx(sk.top_k_accuracy_score(LABELS, PROBABILITIES, k=5))
        assert found.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(LABELS, predicted))
        assert found.macro_f1 == pytest.approx(sk.f1_score(LABELS, predicted, average="macro"))
        assert found.nll == pytest.approx(sk.log_loss(LABELS, PROBABILITIES))
        one_hot = np.eye(7)[LABELS]
        assert found.brier == pytest.approx(((PROBABILITIES - one_hot) ** 2).sum(axis=1).mean())
        np.testing.assert_array_equal(found.confusion, sk.confusion_matrix(LABELS, predicted))
        precision, recall, f1, n = sk.precision_recall_fscore_support(LABELS, predicted)
        rows = np.array([(c.precision, c.recall, c.f1, c.n) for c in found.classes])
        np.testing.assert_allclose(rows, np.stack([precision, recall, f1, n], axis=1))

    def test_calibration_error_by_hand(self) -> None:
        found = measure(PROBABILITIES, LABELS, NAMES)
        confidence, right = PROBABILITIES.max(axis=1), PROBABILITIES.argmax(axis=1) == LABELS
        which = np.minimum((confidence * BINS).astype(int), BINS - 1)
        parts = [(which == i).mean() * abs(right[which == i].mean() - confidence[which == i].mean())
                 for i in range(BINS) if (which == i).any()]  # fmt: skip
        assert found.ece == pytest.approx(sum(parts), abs=1e-9)
        assert sum(b.n for b in found.reliability) == 400
        assert [b.n for b in found.reliability] == np.bincount(which, minlength=BINS).tolist()

    def test_classes_without_images_or_answers(self) -> None:
        """Two classes of four occur, one is never predicted; means are over those that occur."""
        probabilities = np.array([[0.9, 0.1, 0, 0], [0.8, 0.2, 0, 0], [0.7, 0.1, 0.2, 0]])
        found = measure(probabilities, np.array([0, 0, 1]), list("abcd"))
        assert [c.n for c in found.classes] == [2, 1, 0, 0]
        assert [c.recall for c in found.classes] == [1.0, 0.0, None, None]
        assert [c.precision for c in found.classes] == [pytest.approx(2 / 3), None, None, None]
        assert found.balanced_accuracy == 0.5
        assert found.top5 is None

    def test_one_image_of_two_classes(self) -> None:
        found = measure(np.array([[0.0, 1.0]]), np.array([1]), ["a", "b"])
        assert (found.top1, found.nll, found.brier, found.ece) == (1.0, 0.0, 0.0, pytest.approx(0.0, abs=1e-15))
        impossible = measure(np.array([[1.0, 0.0]]), np.array([1]), ["a", "b"])
        assert impossible.brier == 2
        assert math.isfinite(impossible.nll)

    def test_of_equals_the_first_class(self) -> None:
        found = measure(np.full((2, 7), 1 / 7), np.array([0, 5]), NAMES)
        assert found.top1 == 0.5
        assert found.top5 == 0.5  # the first five

    @pytest.mark.parametrize(
        ("probabilities", "labels"),
        [(np.empty((0, 2)), []), (np.full((2, 3), 0.3), [0, 1]), (np.full((1, 2), 0.5), [2]),
         (np.full((1, 2), np.nan), [0]), (np.full((1, 2), -0.5), [0])],
    )  # fmt: skip
    def test_what_cannot_be_measured(self, probabilities: np.ndarray, labels: list[int]) -> None:
        with pytest.raises(ValueError, match=r"nothing|probabilities|labels"):
            measure(probabilities, np.array(labels, np.int64), ["a", "b"])


class TestBesideTorchmetrics:
    """The counts and the calibration error are those of torchmetrics, in float64 where it has that."""

    @staticmethod
    def drawn(seed: int, n: int, k: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        shares = rng.dirichlet(np.full(k, 0.3), n)
        if ties:  # thirds and quarters: equal classes, and shares on the edges of bins
            shares = np.round(shares * 15) / 15
        return shares, rng.integers(0, k, n)

    @given(st.integers(0, 10**6), st.integers(1, 300), st.integers(2, 12), st.booleans())
    @settings(max_examples=60, deadline=None)
    def test_counts(self, seed: int, n: int, k: int, ties: bool) -> None:
        shares, labels = self.drawn(seed, n, k, ties)
        found = measure(shares, labels, [str(i) for i in range(k)])
        answers = torch.from_numpy(shares.argmax(axis=1)), torch.from_numpy(labels)
        np.testing.assert_array_equal(found.confusion, tm.multiclass_confusion_matrix(*answers, num_classes=k).numpy())
        counts = tm.multiclass_stat_scores(*answers, num_classes=k, average="none").double().numpy()
        for one, (tp, fp, _, fn, support) in zip(found.classes, counts, strict=True):
            assert one.n == support
            assert one.precision == (tp / (tp + fp) if tp + fp else None)
            assert one.recall == (tp / support if support else None)
            assert one.f1 == (2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None)

    @given(st.integers(0, 10**6), st.integers(1, 300), st.integers(6, 12), st.booleans())
    @settings(max_examples=40, deadline=None)
    def test_top5(self, seed: int, n: int, k: int, ties: bool) -> None:
        """Ranks instead of shares: torch breaks ties in an order of its own."""
        shares, labels = self.drawn(seed, n, k, ties)
        ranks = np.argsort(np.argsort(-shares, axis=1, kind="stable"), axis=1)
        answers = torch.from_numpy(-ranks.astype(np.float64)).softmax(1), torch.from_numpy(labels)
        hits = int(tm.multiclass_stat_scores(*answers, num_classes=k, top_k=5, average="micro")[0])
        assert measure(shares, labels, [str(i) for i in range(k)]).top5 == hits / n

    @given(st.integers(0, 10**6), st.integers(1, 300), st.integers(2, 12))
    @settings(max_examples=40, deadline=None)
    def test_calibration_error(self, seed: int, n: int, k: int) -> None:
        shares, labels = self.drawn(seed, n, k, ties=False)
        right = torch.from_numpy((shares.argmax(axis=1) == labels).astype(np.int64))
        theirs = tm.binary_calibration_error(torch.from_numpy(shares.max(axis=1)), right, n_bins=BINS)
        assert measure(shares, labels, [str(i) for i in range(k)]).ece == pytest.approx(float(theirs), abs=1e-12)

    def test_more_classes_than_have_rows(self) -> None:
        """Those that occur, as a label or as an answer."""
        shares = np.full((3, 2500), 0.0)
        shares[[0, 1, 2], [7, 7, 2400]] = 1.0
        found = measure(shares, np.array([7, 30, 2400]), [str(i) for i in range(2500)])
        assert [(one.label, one.n) for one in found.classes] == [("7", 1), ("30", 1), ("2400", 1)]
        assert found.confusion == ((1, 0, 0), (1, 0, 0), (0, 0, 1))
        assert found.top1 == pytest.approx(2 / 3)


class TestIntervals:
    @given(st.integers(1, 300), st.floats(0, 1))
    @settings(max_examples=50, deadline=None)
    def test_wilson_is_scipys(self, n: int, share: float) -> None:
        correct = round(n * share)
        theirs = scipy.stats.binomtest(correct, n).proportion_ci(method="wilson")
        ours = wilson(correct, n)
        assert (ours.low, ours.high) == (pytest.approx(theirs.low, abs=1e-9), pytest.approx(theirs.high, abs=1e-9))

    @given(st.integers(0, 60), st.integers(0, 60))
    @settings(max_examples=50, deadline=None)
    def test_mcnemar_is_the_binomial_test(self, b: int, c: int) -> None:
        first = np.array([True] * b + [False] * c + [True] * 5, dtype=bool)
        second = np.array([False] * b + [True] * c + [True] * 5, dtype=bool)
        found = paired(first, second)
        assert (found.only_first, found.only_second) == (b, c)
        expected = scipy.stats.binomtest(b, b + c).pvalue if b + c else 1.0
        assert found.p_value == pytest.approx(expected)
        assert found.difference == pytest.approx((c - b) / (b + c + 5))

    def test_the_interval_of_the_difference_covers(self) -> None:
        """Simulated: 95 % of 2000 intervals of 200 pairs hold the true difference; three standard errors are 1.5 %."""
        rng = np.random.default_rng(0)
        shares, hits = [0.6, 0.12, 0.2, 0.08], 0  # both right, only first, only second, none
        for draw in rng.choice(4, size=(2000, 200), p=shares):
            found = paired(np.isin(draw, (0, 1)), np.isin(draw, (0, 2)))
            hits += found.interval.low <= 0.08 <= found.interval.high
        assert 0.935 < hits / 2000 < 0.975


class TestMistakes:
    def test_the_most_confident_come_first(self) -> None:
        names = [f"{i}.png" for i in range(400)]
        found = mistakes(PROBABILITIES, LABELS, NAMES, names)
        assert len(found) == (PROBABILITIES.argmax(axis=1) != LABELS).sum()
        assert [m.probability for m in found] == sorted((m.probability for m in found), reverse=True)
        first = int(found[0].name.removesuffix(".png"))
        assert (found[0].true, found[0].predicted) == (NAMES[LABELS[first]], NAMES[PROBABILITIES[first].argmax()])

    def test_pairs_count_the_confusion(self) -> None:
        pairs = confused_pairs(PROBABILITIES, LABELS, NAMES, [str(i) for i in range(400)])
        confusion = np.array(measure(PROBABILITIES, LABELS, NAMES).confusion)
        off = confusion - np.diag(np.diag(confusion))
        assert sum(pair.n for pair in pairs) == off.sum()
        assert pairs[0].n == off.max() == len(pairs[0].names)


def test_groups_of_one_give_wilsons_interval() -> None:
    right = np.arange(2000) % 5 > 0
    found, plain = clustered(right, np.arange(2000)), wilson(1600, 2000)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=1e-4)


def test_images_that_are_copies_count_once() -> None:
    """Up to Student's t for so many groups."""
    right = np.arange(100) % 4 > 0
    found, plain = clustered(np.repeat(right, 10), np.repeat(np.arange(100), 10)), wilson(75, 100)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=3e-3)
    for all_or_none in (0, 1):
        alike = clustered(np.full(1000, all_or_none, bool), np.repeat(np.arange(100), 10))
        assert alike == wilson(100 * all_or_none, 100)


def test_groups_say_nothing_when_there_is_one_and_never_more_than_images() -> None:
    assert clustered(np.array([True, False, True]), np.zeros(3, np.int64)) == wilson(0, 0)
    even = clustered(np.tile([True, False], 50), np.repeat(np.arange(50), 2))  # they vary less than by chance
    assert even == wilson(50, 100)


def test_the_interval_of_groups_covers_the_truth() -> None:
    """Accuracy that differs from group to group, as that of patients does; Wilson's interval would miss it often."""
    rng = np.random.default_rng(0)
    inside = np.zeros(2)
    for _ in range(400):
        sizes = rng.integers(5, 30, 40)
        groups = np.repeat(np.arange(40), sizes)
        right = rng.random(len(groups)) < np.repeat(rng.beta(4, 1, 40), sizes)
        for i, one in enumerate((clustered(right, groups), wilson(int(right.sum()), len(right)))):
            inside[i] += one.low <= 0.8 <= one.high
    assert inside[0] / 400 > 0.92
    assert inside[1] / 400 < 0.8
