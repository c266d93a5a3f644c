"""The tokenizer, class names and templates."""

import pytest

from dassl.utils import UserError
from vlm.text.templates import IMAGENET_TEMPLATES, SELECTED_TEMPLATES, clean_classname
from vlm.text.tokenizer import tokenize


def test_a_prompt_that_is_too_long_is_refused_by_name():
    with pytest.raises(UserError, match=r'"very .* very " has 82 tokens .* takes 77 tokens'):
        tokenize(["short", "very " * 80])


def test_a_truncated_text_keeps_its_start_and_end_tokens():
    (tokens,) = tokenize(["very " * 100], truncate=True).tolist()
    very = tokenize(["very"])[0, 1].item()
    assert tokens == [49406, *[very] * 75, 49407]


def test_underscores_of_class_names_become_spaces():
    assert clean_classname("garbage_truck") == "garbage truck"


def test_the_templates_are_those_that_openai_published():
    """They equal open_clip's copies."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    assert list(IMAGENET_TEMPLATES) == [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    assert list(SELECTED_TEMPLATES) == [template("{}") for template in SIMPLE_IMAGENET_TEMPLATES]
