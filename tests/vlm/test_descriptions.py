"""Descriptions of classes: matching of class names, notes, refused files, and the class features."""

import json

import pytest
import torch

from dassl.utils import UserError
from vlm.clip.load import load_clip
from vlm.similarity import normalize
from vlm.text.descriptions import read_descriptions
from vlm.text.encoder import TextEncoder
from vlm.text.zero_shot import build_description_classifier

CAT, DOG = ["A cat has whiskers.", "A cat purrs."], ["A dog barks."]


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a JSON file of descriptions and returns its path."""

    def write_json(content: object):
        path = tmp_path / "descriptions.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write_json


def test_names_match_with_underscores_and_in_any_case_and_other_classes_are_named(write, capsys):
    path = write(
        {"Polar bear": DOG, "house_cat": CAT, "owl": ["An owl."], "crane": ["A bird."], "Crane": ["A machine."]}
    )
    assert read_descriptions(path, ["house cat", "polar_bear", "Crane"]) == [CAT, DOG, ["A machine."]]
    assert 'describes 2 classes ("owl", "crane") that the data set does not have' in capsys.readouterr().out
    read_descriptions(path, ["owl", "Owl"])
    assert '2 classes ("owl", "Owl") have the same sentences' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"cat": CAT}, r'no sentences for 1 class \("dog"\)'),
        ({"cat": CAT, "dog": []}, '"dog": there must be a list of sentences'),
        ({"cat": CAT, "dog": "A dog barks."}, '"dog": there must be a list of sentences'),
        ({"cat": CAT, "dog": ["A dog.", " "]}, '"dog": a sentence is empty'),
        ({"cat": CAT, "dog": ["A dog.", 3]}, '"dog": a sentence is empty, or no text'),
        ({"cat": CAT, "dog": ["a {}."]}, '"a {}." is a template; DATASET.TEMPLATE'),
        ({"cat": CAT, "DOG": DOG, "Dog": DOG}, 'several entries for the class "dog": "DOG" and "Dog"'),
        ([CAT, DOG], "not a JSON object, class name -> list of sentences"),
        ('{"cat": ', "not valid JSON"),
    ],
)
def test_a_file_that_does_not_describe_the_classes_is_refused(write, content, message):
    with pytest.raises(UserError, match=message):
        read_descriptions(write(content), ["cat", "dog"])


@torch.no_grad()
def test_class_features_are_the_normalised_means_of_unit_sentence_features(capsys):
    encoder = TextEncoder(load_clip("tiny")[0])
    features = normalize(encoder.encode(encoder.tokenize([*CAT, *DOG])))
    expected = normalize(torch.stack([(features[0] + features[1]) / 2, features[2]]))
    torch.testing.assert_close(build_description_classifier(encoder, [CAT, DOG]), expected)
    assert not capsys.readouterr().out
    long = ["very " * 80 + "cat"]
    (truncated,) = build_description_classifier(encoder, [long])
    torch.testing.assert_close(truncated[None], normalize(encoder.encode(encoder.tokenize(long, truncate=True))))
    assert "reads only the beginning" in capsys.readouterr().out
