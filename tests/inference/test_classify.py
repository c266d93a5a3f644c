"""predict.py classify on images: probabilities against OpenAI's code, image arguments, the sheet, errors."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from PIL import Image
from safetensors.torch import save_file

from inference.contact_sheet import MARKS
from inference.images import PREFETCH_FILES, prefetch
from inference.output import write_result
from tests.common import damage_images
from tests.inference import models
from vlm import openai
from vlm.text.templates import IMAGENET_TEMPLATES, SELECTED_TEMPLATES
from vlm.tiny.weights import load_tiny

CLASSES = ("cup", "red_envelope", "cat")
TINY = ("--backbone", "tiny")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Return a folder with three images that are not square, or not of CLIP's size; one is in a sub-folder."""
    folder = tmp_path_factory.mktemp("photos")
    for number, (name, size) in enumerate({"a.png": (97, 61), "b.JPG": (50, 140), "more/c.png": (33, 33)}.items()):
        models.write_image(folder / name, number, size)
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("not an image")
    return folder


@pytest.fixture(scope="module", params=["tiny", "vit"])
def clip(request, tmp_path_factory):
    """Return OpenAI's model, and the arguments of predict.py for the same weights."""
    weights = load_tiny()
    if request.param == "vit":
        torch.manual_seed(0)
        weights = openai.CLIP(32, 48, 2, 64, 16, 77, 49408, 64, 1, 2).state_dict()
        weights["logit_scale"].fill_(100.0).log_()
    path = tmp_path_factory.mktemp("weights") / "clip.safetensors"
    save_file({key: value.contiguous() for key, value in weights.items()}, path)
    return openai.build_model(weights).float().eval(), ("--weights", path)


def preprocess(model, path: Path) -> torch.Tensor:
    """Return the image as OpenAI's transform prepares it: (1, 3, size, size)."""
    transform = sys.modules["vlm._openai_clip.clip"]._transform
    with Image.open(path) as image:
        return transform(model.visual.input_resolution)(image)[None]


@torch.no_grad()
def test_probabilities_equal_those_of_openais_model(clip, photos, call):
    model, backbone = clip
    text = openai.tokenize([f"a picture of {name}, perhaps" for name in ("cup", "red envelope", "cat")])
    paths = [photos / "a.png", photos / "b.JPG"]
    result = call(*paths, "--json", "--template", "a picture of {}, perhaps", *backbone, "--classes", *CLASSES)
    assert result.code == 0
    for number, path in enumerate(paths):
        expected = model(preprocess(model, path), text)[0].softmax(-1)[0].tolist()
        predicted = result.probabilities(number)
        assert [predicted[name] for name in CLASSES] == pytest.approx(expected, abs=1e-5)
        assert list(predicted.values()) == sorted(predicted.values(), reverse=True)
        assert max(expected) - min(expected) > 0.01
    assert result.probabilities(0) != result.probabilities(1)


@torch.no_grad()
@pytest.mark.parametrize("clip", ["tiny"], indirect=True)
@pytest.mark.parametrize(
    ("ensemble", "templates"),
    [([], ["a photo of a {}."]), (["--ensemble", "select"], SELECTED_TEMPLATES), (["--ensemble"], IMAGENET_TEMPLATES)],
)
def test_the_features_of_several_templates_are_averaged(clip, photos, call, ensemble, templates):
    model, backbone = clip
    weights = []
    for name in ("cup", "red envelope", "cat"):
        features = model.encode_text(openai.tokenize([template.format(name) for template in templates]))
        mean = (features / features.norm(dim=-1, keepdim=True)).mean(0)
        weights.append(mean / mean.norm())
    image = model.encode_image(preprocess(model, photos / "a.png"))
    expected = (model.logit_scale.exp() * image / image.norm() @ torch.stack(weights).t()).softmax(-1)[0].tolist()
    result = call(photos / "a.png", "--json", "--classes", *CLASSES, *backbone, *ensemble)
    assert [result.probabilities()[name] for name in CLASSES] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_a_model_whose_logits_do_not_depend_on_the_image_is_refused(photos, tmp_path, refused, count):
    weights = load_tiny()
    weights["visual.attnpool.c_proj.weight"].zero_()  # all features are the bias
    save_file(weights, tmp_path / "w.safetensors")
    paths = [photos / "a.png", photos / "b.JPG"][:count]
    options = ("--json", "--weights", tmp_path / "w.safetensors", "--classes", *CLASSES)
    refused(*paths, *options, fragments=["the logits do not depend on the image: the model's weights are damaged"])


def test_equal_images_have_equal_probabilities(photos, call):
    result = call(photos / "a.png", photos / "a.png", "--json", "--classes", *CLASSES, *TINY)
    assert result.probabilities(0) == result.probabilities(1)


def test_one_image_gives_a_table_and_several_give_a_row_each(photos, call):
    head, _, *rows = call(photos / "a.png", "--classes", "cup", "not cup", *TINY).output.splitlines()
    assert head.split() == ["class", "probability"]
    assert {" ".join(row.split()[:-1]) for row in rows} == {"cup", "not cup"}
    assert sum(float(row.split()[-1].rstrip("%")) for row in rows) == pytest.approx(100, abs=0.02)

    result = call(photos / "a.png", photos / "b.JPG", "--classes", *CLASSES, *TINY, "--top-k", 2)
    head, *rows = result.output.splitlines()
    assert head.split() == ["image", "probability", "class", "then"]
    assert [row.split()[0] for row in rows] == [str(photos / "a.png"), str(photos / "b.JPG")]
    assert [row.count("%") for row in rows] == [2, 2]


def test_images_are_named_by_folders_patterns_and_standard_input(photos, call, monkeypatch):
    def list_images(*arguments):
        """Return the classified images, relative to the folder."""
        result = call(*arguments, "--classes", *CLASSES, *TINY, "--json")
        return [str(Path(record["image"]).relative_to(photos)) for record in result.records]

    assert list_images(photos) == ["a.png", "b.JPG", "more/c.png"]
    assert list_images(photos / "**/*.png") == ["a.png", "more/c.png"]
    assert list_images(photos / "m*") == ["more/c.png"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{photos / 'b.JPG'}\n\n{photos / 'a.png'}\n"))
    assert list_images("-", photos / "more") == ["b.JPG", "a.png", "more/c.png"]
    assert "no path on standard input" in call("-", "--classes", *CLASSES).error  # it is exhausted


def test_images_may_stand_on_both_sides_of_options_and_batches_change_nothing(photos, call):
    def classify(size):
        """Return the result with batches of ``size`` images."""
        arguments = ("--classes", *CLASSES, "--json", photos / "b.JPG", photos / "more/c.png", "--batch-size", size)
        return call(photos / "a.png", *arguments, *TINY)

    small_batches, one_batch = classify(2), classify(1000)
    assert [Path(record["image"]).name for record in small_batches.records] == ["a.png", "b.JPG", "c.png"]
    for number in range(3):
        assert small_batches.probabilities(number) == pytest.approx(one_batch.probabilities(number), abs=1e-5)
    assert call(*TINY, "--classes", *CLASSES, "--", photos / "a.png").code == 0


def test_only_a_few_images_are_read_ahead():
    read_paths = []
    images = prefetch(map(str, range(10_000)), lambda path: read_paths.append(path) or int(path))
    assert [next(images) for _ in range(3)] == [("0", 0), ("1", 1), ("2", 2)]
    images.close()
    assert len(read_paths) <= PREFETCH_FILES + 3


def test_damaged_images_do_not_stop_the_classification_of_the_others(photos, call, tmp_path):
    damaged = [tmp_path / "first.png", tmp_path / "third.png"]
    damage_images(*damaged)
    classes = ("--classes", *CLASSES, *TINY, "--json")
    result = call(damaged[0], photos / "a.png", damaged[1], photos / "b.JPG", *classes)
    assert result.code == 2
    assert [Path(record["image"]).name for record in result.records] == ["a.png", "b.JPG"]
    assert all(f"cannot read {path}" in result.error for path in damaged)
    assert "2 of 4 images" in result.error
    for number, name in enumerate(("a.png", "b.JPG")):
        assert result.probabilities(number) == pytest.approx(call(photos / name, *classes).probabilities(), abs=1e-5)
    assert result.probabilities(0) != pytest.approx(result.probabilities(1), abs=0.01)


def test_show_writes_a_sheet_of_the_first_images(photos, call, tmp_path, monkeypatch):
    monkeypatch.setattr("inference.classify.MAX_IMAGES", 2)
    sheet = tmp_path / "new/sheet.png"
    result = call(photos, "--classes", *CLASSES, *TINY, "--json", "--show", sheet)
    assert len(result.records) == 3
    assert f"{sheet} written: 2 images, the first of 3" in result.error
    with Image.open(sheet) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    half = pixels.shape[1] // 2
    assert min(pixels[:, :half].std(), pixels[:, half:].std()) > 20


def test_a_sheet_marks_right_and_wrong_where_the_folder_has_the_name_of_a_class(call, tmp_path, figures):
    name = "a very long name of a file that no column has space for.png"
    paths = [tmp_path / folder / name for folder in ("Red_cup", "cat", "unknown")]
    for path in paths:
        models.write_image(path, 1)
    result = call(*paths, "--classes", "red cup", "cat", "tree", *TINY, "--json", "--show", tmp_path / "sheet.png")
    predicted = result.records[0]["predictions"][0]["class"]  # of all of them: it is one image
    (figure,) = figures
    titles = [cell.get_title(loc="left") for cell in figure.axes]
    ends = [("Red_cup/a ", "space for.png"), ("cat/a very", "space for.png"), ("unknown/a ", "space for.png")]
    assert all(
        title.startswith(start) and title.endswith(end) for title, (start, end) in zip(titles, ends, strict=True)
    )
    assert all(len(title) <= 30 and "…" in title for title in titles)
    for cell, label in zip(figure.axes[:2], ("red cup", "cat"), strict=True):
        sign, color = MARKS[predicted == label]
        (mark,) = [text for text in cell.texts if "label" in text.get_text()]
        assert (mark.get_text(), mark.get_color()) == (f"{sign} label: {label}", color)
        assert [patch.get_edgecolor() for patch in cell.patches] == [to_rgba(color)]
    assert not [text for text in figure.axes[2].texts if "label" in text.get_text()]
    assert not figure.axes[2].patches
    assert figure.texts[0].get_text() == f"zero-shot tiny · {int(predicted != 'tree')} of 2 right"


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["{a}"], ["no classes", "--classes", "--model-dir"]),
        (["--classes", "cup", "cat", "{photos}"], ["{photos}", "among the texts", "before it"]),
        (["{b}", "--classes", "cup", "{a}"], ["{a}", "among the texts"]),
        (["{photos}/absent.png", "--classes", "cup", "cat"], ["image not found: {photos}/absent.png"]),
        (["{photos}/notes.txt", "--classes", "cup", "cat", *TINY], ["cannot read {photos}/notes.txt"]),
        (["{empty}", "--classes", "cup", "cat"], ["no image in the folder {empty}", ".jpg"]),
        (["{a}", "--classes", "cup"], ["one class", '"not cup"']),
        (["{a}", "--classes", "cup", "cat", "cup"], ['"cup" is named twice']),
        (["{a}", "--classes", "cup", "cat", "--template", "a photo"], ['--template "a photo"', "{{}}"]),
        (["{a}", "--classes", "cup", "cat", "--top-k", "0"], ["--top-k is 0"]),
        (["{a}", "--classes", "cup", "cat", "--load-epoch", "3"], ["--load-epoch is for --model-dir"]),
        (["{a}", "--classes", "cup", "cat", "--show", "{a}"], ["{a} would overwrite one of the images"]),
        (["{a}", "--classes", "cup", "cat", "--show", "sheet.jpg"], ["sheet.jpg", ".png"]),
        (["{a}", "--model-dir", "{empty}"], ["no run in {empty}", "--backbone", "--classes"]),
        (["{a}", "--model-dir", "{empty}", *TINY], ["{empty} has no result.json", "--classes"]),
        (["{a}", "--model-dir", "{empty}", *TINY, "--classes", "cup", "cat"], ["no checkpoint in {empty}"]),
    ],
)
def test_wrong_arguments_are_refused_with_a_message(photos, refused, tmp_path, arguments, fragments):
    paths = {"photos": photos, "a": photos / "a.png", "b": photos / "b.JPG", "empty": tmp_path}
    fragments = [fragment.format(**paths) for fragment in fragments]
    refused(*[text.format(**paths) for text in arguments], fragments=fragments)


def test_json_is_escaped_for_a_console_that_is_not_utf_8(monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", console)
    write_result({"class": "café"}, "text", as_json=True)
    console.seek(0)
    assert json.loads(console.read()) == {"class": "café"}


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_result_that_is_nan_is_an_error(photos, call, monkeypatch, options):
    """As from a model that overflows: its weights are finite."""
    monkeypatch.setattr("inference.classifier.compute_logits", lambda *_: torch.full((1, 2), torch.nan))
    result = call(photos / "a.png", "--classes", "cup", "cat", *TINY, *options)
    assert (result.code, result.output) == (2, "")
    assert f"the result for {photos / 'a.png'} is NaN or infinite" in result.error
