"""Chinese class names, templates and CLIPs: notes where they do not go together, and Chinese-CLIP's template."""

from __future__ import annotations

import pytest

from tests.common import REPOSITORY
from tests.vlm import foreign_models


@pytest.fixture(scope="module")
def chinese_clip(tmp_path_factory) -> str:
    """Return the backbone's name of a small random Chinese-CLIP."""
    return f"hf:{foreign_models.chinese_clip(tmp_path_factory.mktemp('models') / 'chinese')}"


@pytest.fixture
def image(digits_root):
    """Return the path of an image."""
    return digits_root / "digits/images/val/3/0013.png"


@pytest.fixture
def noted(call, image):
    """Return a function that classifies an image by predict.py, and returns the notes on its error output."""

    def classify(*arguments: object) -> list[str]:
        result = call(image, "--json", *arguments)
        assert result.code == 0, result.error
        return [line for line in result.error.splitlines() if line.startswith("Note")]

    return classify


def test_class_names_and_templates_of_another_language_are_noted_by_predict(chinese_clip, noted):
    english, chinese = ("--classes", "cat", "café", "007"), ("--classes", "猫", "狗", "iPhone 手机")
    assert noted(*english, "--backbone", "tiny") == []
    assert noted(*chinese[:3], "--backbone", chinese_clip) == []  # with the default template
    (note,) = noted(*chinese, "cat", "--backbone", "tiny")
    assert note.startswith(
        'Note: this CLIP learned from English texts, but 2 of 4 class names are not English ("猫", "狗"'
    )
    assert "hf:OFA-Sys/chinese-clip-vit-base-patch16" in note
    (note,) = noted(*english, "--backbone", "tiny", "--template", "一张{}的照片。")
    assert "1 of 1 templates are not English" in note
    (note,) = noted(*chinese[:3], "--backbone", chinese_clip, "--template", "a photo of a {}.")
    assert 'Chinese texts, but 1 of 1 templates are not Chinese ("a photo of a {}.")' in note
    assert "一张{}的照片。" in note
    assert "80 of 80 templates" in noted(*chinese[:3], "--backbone", chinese_clip, "--ensemble")[0]


def test_predict_uses_a_chinese_template_with_chinese_clip(chinese_clip, call, image):
    command = (image, "--json", "--classes", "猫", "狗")
    probabilities = {
        template: call(*command, "--backbone", chinese_clip, *template).probabilities()
        for template in ((), ("--template", "一张{}的照片。"), ("--template", "a photo of a {}."))
    }
    default, chinese, english = probabilities.values()
    assert default == chinese != english


def test_train_uses_and_records_a_chinese_template_with_chinese_clip_unless_one_is_set(
    chinese_clip, run, digits_root, tmp_path
):
    """A run recorded before this default, with the English template, goes on with it."""
    data = (
        "--root",
        digits_root / "digits",
        "--dataset-config-file",
        REPOSITORY / "configs/datasets/image_folder.yaml",
    )
    data += ("--config-file", REPOSITORY / "configs/trainers/CLIPAdapter/tiny.yaml", "--backbone", chinese_clip)
    names_file = tmp_path / "names.txt"
    names_file.write_text("".join(f"{digit} {name}\n" for digit, name in enumerate("零一二三四五六七八九")), "utf-8")
    options = ("DATASET.FOLDER", "images", "DATASET.CLASSNAMES", names_file, "DATASET.NUM_SHOTS", 1)
    options += ("OPTIM.MAX_EPOCH", 1, "DATALOADER.TEST.BATCH_SIZE", 500)
    english = ("DATASET.TEMPLATE", "a photo of a {}.")
    chinese = run(*data, *options, trainer="CLIPAdapter", out="chinese")
    assert chinese.code == 0, chinese.error
    assert chinese.record["config"]["DATASET"]["TEMPLATE"] == "一张{}的照片。"
    assert 'the first prompts: "一张零的照片。"' in chinese.log
    assert "learned from" not in chinese.log
    before = run(*data, *options, *english, trainer="CLIPAdapter", out="before")
    assert "Note: this CLIP learned from Chinese texts, but 1 of 1 templates are not Chinese" in before.log
    for arguments in (
        {"out": "before"},
        {"out": "resumed", "words": ("--resume", before.folder)},
        {"out": "evaluated", "words": ("--eval-only", "--model-dir", before.folder)},
    ):
        words = arguments.pop("words", ())
        old = run(*data, *words, *options, trainer="CLIPAdapter", **arguments)
        assert old.code == 0, old.error
        assert old.record["config"]["DATASET"]["TEMPLATE"] == english[1]
        assert old.accuracy == before.accuracy
    record = (before.folder / "result.json").read_bytes()
    assert run(*data, "--skip-finished", *options, trainer="CLIPAdapter", out="before").code == 0
    assert (before.folder / "result.json").read_bytes() == record
    own = ("DATASET.TEMPLATE", "这是{}。")
    refused = run(*data, *options, *own, trainer="CLIPAdapter", out="before")
    assert refused.code == 2
    assert "DATASET.TEMPLATE a photo of a {}. -> 这是{}。" in refused.error
    assert "learned from English texts, but 10 of 10 class names" in run(*data, "--backbone", "tiny", *options).log


@pytest.mark.parametrize(("trainer", "notes"), [("CoOp", 1), ("CLIPAdapter", 1), ("LinearProbe", 0)])
def test_train_notes_chinese_class_names_with_an_english_clip_where_they_are_read(
    run, call, image, digits_root, tmp_path, trainer, notes
):
    names_file = tmp_path / "names.txt"
    names_file.write_text("".join(f"{digit} {name}\n" for digit, name in enumerate("零一二三四五六七八九")), "utf-8")
    data = (
        "--root",
        digits_root / "digits",
        "--dataset-config-file",
        REPOSITORY / "configs/datasets/image_folder.yaml",
    )
    data += ("--config-file", REPOSITORY / f"configs/trainers/{trainer}/tiny.yaml")
    data += ("DATASET.FOLDER", "images", "DATASET.CLASSNAMES", names_file, "DATASET.NUM_SHOTS", 1)
    trained = run(*data, "OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", True, trainer=trainer)
    assert trained.log.count("learned from English texts, but 10 of 10 class names are not English") == notes
    if trainer == "CoOp":
        result = call(image, "--json", "--model-dir", trained.folder, "--classes", "猫", "dog")
        assert "1 of 2 class names are not English" in result.error
