"""Notes on class names that CLIP can hardly know."""

import pytest

from datasets.digits import DIGIT_NAMES
from datasets.notes import print_class_notes


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (["1. cat", "2. dog"], "class names begin with numbers (1. cat, 2. dog): CLIP reads them as they are"),
        (
            ["001.Black footed Albatross", "014.Indigo Bunting", "b", "007.x", "020.y"],
            "(001.Black footed Albatross, 014",
        ),
        (["01 cat", "02 dog"], "begin with numbers (01 cat, 02 dog)"),
        (["3) cat", "1) dog"], "begin with numbers (3) cat, 1) dog)"),
        (["1", "0", "2", "3"], "begin with numbers (1, 0, 2, …)"),
        (["1-cat", "2-dog"], "begin with numbers"),
        (["n01440764", "n02102040"], "class names are WordNet ids (n01440764, n02102040): CLIP reads them as they are"),
        (["n02085620-Chihuahua", "n02085782-spaniel"], "tools/fix_imagenet.py"),
        (["cat"], 'the data set has one class, "cat", so every accuracy is 100%'),
    ],
)
def test_a_note_names_the_first_odd_class_names(names, note, capsys):
    print_class_notes(names)
    output = capsys.readouterr().out
    assert output.startswith("Note: ")
    assert note in output
    assert output.count("\n") == 1


@pytest.mark.parametrize(
    "names",
    [
        DIGIT_NAMES,
        ["747-300", "A340-300", "707-320", "DHC-8-100", "737-200", "727-200"],
        ["2012 Audi R8", "2007 BMW X5", "2011 Audi S5"],
        ["2012 Audi R8", "2012 Audi S4"],
        ["10 dollars", "20 dollars", "100 dollars"],
        ["1.5 litre engine", "2.0 litre engine"],
        ["1 way street", "cat", "dog"],
        ["nautilus", "n123"],
        ["2nd gear", "1st gear"],
    ],
)
def test_other_names_with_digits_give_no_note(names, capsys):
    print_class_notes(names)
    assert capsys.readouterr().out == ""
