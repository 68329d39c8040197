"""Classes of a data set and labels of a model: what is one name, and what never is."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.checkpoints import PREPROCESS, write_tiny
from vitcli.data.folders import alike
from vitcli.errors import UsageError
from vitcli.inference.class_names import map_classes
from vitcli.text import folded
from vitcli.training.teacher import load_teacher

MEANINGS = [
    ("-1", "1"), ("+1", "1"), ("-1", "+1"), ("_1", "1"), ("\u22121", "1"), ("1.5", "15"), ("2.5", "25"), ("2,5", "2"),
    ("1/2", "1 2"), ("1/2", "12"), ("1:2", "1 2"), ("1e5", "1e-5"), ("10%", "10"), ("<5", ">5"), ("5", "<5"),
    ("~5", "5"), ("C", "C++"), ("C", "C#"), ("C++", "C#"), ("F", "F#"), ("A", "A+"), ("A+", "A-"), ("A-", "A"),
    ("A*", "A"), ("Na", "Na+"), ("!cat", "cat"), ("not cat", "cat"), ("cat?", "cat"), ("(cat)", "cat"),
    ("cat/dog", "cat"), ("cat/dog", "cat dog"), ("1/2", "1_2"), ("cat & dog", "cat dog"), ("re-sign", "resign"),
    ("co-op", "coop"), ("x\u00b2", "x2"), ("2\u2075", "25"), ("\u00bd", "1/2"), ("\u2460", "1"),
    ("Ma\u00dfe", "Masse"), ("resume", "r\u00e9sum\u00e9"), ("\u0438", "\u0439"), ("hotdog", "hot dog"), ("0", "O"),
    ("Paris, Texas", "Paris, France"), ("Paris", "Paris, Texas"), ("apple", "apple, ripe"), ("1,5", "1"),
    ("$", "\u20ac"), ("001", "1"), ("1.0", "1"), ("a.b", "a b"), ("v1.2", "v12"), ("\U0001f600", "\U0001f622"),
    ("\u2642", "\u2640"),
]  # fmt: skip
ONE_NAME = [
    ("Cat", "cat"), ("HOT DOG", "hot_dog"), ("hot__dog", "hot dog"), (" cat ", "cat"), ("caf\u00e9", "cafe\u0301"),
    ("Caf\u00e9_au_lait", "cafe\u0301 AU lait"), ("C++", "c++"), ("\u041a\u041e\u0422", "\u043a\u043e\u0442"),
    ("hot\u00a0dog", "hot dog"),
    ("\u039f\u0394\u039f\u03a3", "\u03bf\u03b4\u03bf\u03c2"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), MEANINGS)
def test_what_differs_in_meaning_is_not_matched(one: str, other: str) -> None:
    for name, label in ((one, other), (other, one)):
        found = map_classes([name, "dog"], [label, "dog"])
        assert found.labels == (None, 1)
        assert found.notes == ()


@pytest.mark.parametrize(("one", "other"), ONE_NAME)
def test_spellings_of_one_name_are_matched_and_said(one: str, other: str) -> None:
    for name, label in ((one, other), (other, one)):
        found = map_classes([name, "dog"], ["dog", label])
        assert found.labels == (1, 0)
        same = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", label)
        assert len(found.notes) == (0 if same else 1)


def test_an_underscore_stands_for_what_no_folder_can_be_called() -> None:
    labels = ["T-shirt/top", "big cat/small dog", "1/2"]
    assert map_classes(["t-shirt_top", "big_cat_small_dog", "1_2"], labels).labels == (0, 1, None)
    assert map_classes(["T-shirt/top"], ["T-shirt_top", "b"]).labels == (None,), "which a manifest can write"


def test_the_same_name_goes_before_another_spelling() -> None:
    assert map_classes(["a", "A"], ["A", "a"]).labels == (1, 0)
    assert map_classes(["Cat", "cat"], ["cat", "dog"]).labels == (None, 0)
    assert map_classes(["CAT", "Cat"], ["cat", "dog"]).labels == (None, None), "two classes, one label"
    assert map_classes(["cat"], ["Cat", "CAT"]).labels == (None,), "one class, two labels"


def test_synonyms_are_wordnets() -> None:
    """Only where the labels are known to be lists of synonyms does a comma part them."""
    labels = ["tench, Tinca tinca", "great white shark, white shark", "cock"]
    assert map_classes(["great_white_shark", "Tench", "cock"], labels).labels == (1, 0, 2)
    assert map_classes(["n2", "mushroom"], ["mushroom, edible", "b"], ["n1", "n2"]).labels == (1, 0)
    assert map_classes(["tench, a town"], labels).labels == (None,)
    assert map_classes(["mushroom"], ["mushroom, edible", "b"]).labels == (None,)


SIGNS = "+-#*/.,:;!?%&<>=~^$@()[]{}|\u2212\u00b2\u20ac0123456789"


@given(st.text("aB_ \u00e9e\u0301" + SIGNS, max_size=6), st.text("aB_ \u00e9e\u0301" + SIGNS, max_size=6))
def test_folding_keeps_every_sign(one: str, other: str) -> None:
    if folded(one) == folded(other):
        assert [c for c in one if c in SIGNS] == [c for c in other if c in SIGNS]
    assert folded(folded(one)) == folded(one)
    assert folded(unicodedata.normalize("NFD", one)) == folded(one) == folded(one.swapcase())


def test_doubtful_spellings_are_found_by_a_wider_net() -> None:
    names = ["1", "01", "1.0", "-1", "+1", "cat", "CAT", "\uff23\uff21\uff34", "dog"]
    assert alike(names) == [("1", "01", "1.0", "+1"), ("cat", "CAT", "\uff23\uff21\uff34")]


def test_a_teachers_labels_are_matched_in_any_unicode_form(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "teacher", labels=("cat", "cafe\u0301", "dog"))
    assert load_teacher(str(model), PREPROCESS, ("caf\u00e9", "cat", "dog")).order.tolist() == [1, 0, 2]
    with pytest.raises(UsageError, match="does not know the class 'cafe'"):
        load_teacher(str(model), PREPROCESS, ("cafe", "cat", "dog"))
