"""predict.py segment, and what all commands with a model of transformers share: loading it, images that are damaged."""

import json
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import predict
from tests.inference import models

pytest.importorskip("transformers", reason="needs the optional package transformers")
TEXTS = ["a cat", "two red dogs", "what"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return models.clipseg(tmp_path_factory.mktemp("clipseg"))


@pytest.fixture
def pictures(tmp_path) -> list[str]:
    return [models.picture(tmp_path / f"pictures/{number}.png", number) for number in range(2)]


@pytest.fixture
def segment(tmp_path, model, capsys):
    """Call the command; returns the exit code, the lines of its output, and its messages."""

    def call(*arguments: object, out: Path = tmp_path / "out", folder: object = model) -> tuple[int, list[str], str]:
        argv = ["segment", *arguments, "--out", out, "--model", folder]
        code = predict.main([str(argument) for argument in argv])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err

    return call


@pytest.fixture
def no_network(monkeypatch):
    def fail(*_):
        raise OSError("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)


def expected(model: Path, path: str, text: str) -> np.ndarray:
    """The library's own probabilities for one text, at the picture's size."""
    from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

    picture = Image.open(path)
    inputs = CLIPSegProcessor.from_pretrained(model)(text=[text], images=[picture], return_tensors="pt")
    with torch.no_grad():
        logits = CLIPSegForImageSegmentation.from_pretrained(model).eval()(**inputs).logits
    resized = torch.nn.functional.interpolate(
        logits.reshape(1, 1, *logits.shape[-2:]), picture.size[::-1], mode="bilinear"
    )
    return resized.sigmoid()[0, 0].numpy()


def test_masks_are_those_of_the_library(segment, model, pictures):
    code, lines, _ = segment(*pictures, "--text", *TEXTS, "--json")
    assert code == 0
    records = [json.loads(line) for line in lines]
    assert [record["image"] for record in records] == pictures
    for record, path in zip(records, pictures, strict=True):
        with np.load(record["masks"], allow_pickle=False) as arrays:
            assert arrays["texts"].tolist() == TEXTS
            masks = arrays["masks"]
        assert masks.shape == (3, *Image.open(path).size[::-1])
        for mask, entry in zip(masks, record["segments"], strict=True):
            reference = expected(model, path, entry["text"])
            assert np.abs(mask - reference).max() < 1e-3  # half precision
            assert entry["highest"] == pytest.approx(reference.max(), abs=1e-5)
            assert entry["area"] == pytest.approx((reference >= 0.5).mean(), abs=1e-3)
    assert np.abs(masks[0].astype(float) - masks[1]).max() > 0.01  # the texts do not say the same


def test_more_texts_than_fit_into_one_computation(segment, pictures, monkeypatch):
    def masks() -> np.ndarray:
        _, lines, _ = segment(pictures[0], "--text", *TEXTS, "--json")
        with np.load(json.loads(lines[0])["masks"]) as arrays:
            return arrays["masks"].astype(float)

    together = masks()
    monkeypatch.setattr("inference.neighbours.TEXTS_AT_ONCE", 2)
    assert np.abs(masks() - together).max() < 1e-3


def test_the_overlay_colours_what_was_found(segment, pictures):
    paint = {}
    for threshold in (0.01, 0.99):
        _, lines, _ = segment(pictures[0], "--text", "a cat", "--threshold", threshold, "--json")
        paint[threshold] = np.asarray(Image.open(json.loads(lines[0])["overlay"]))
    original = np.asarray(Image.open(pictures[0]))
    height, width, _ = original.shape
    assert paint[0.01].shape[0] > height  # the legend
    assert (paint[0.99][:height, :width] == original).all()
    assert (paint[0.01][:height, :width] != original).any(-1).all()


def test_images_of_one_name_keep_their_own_files(segment, tmp_path):
    paths = [models.picture(tmp_path / f"{folder}/cat.png", number) for number, folder in enumerate("ab")]
    paths.append(models.picture(tmp_path / "cat-2.png", 2))
    _, lines, _ = segment(*paths, "--text", "a cat", "--json")
    records = [json.loads(line) for line in lines]
    assert len({record["masks"] for record in records} | {record["overlay"] for record in records}) == 6
    assert all(Path(record["masks"]).is_file() for record in records)


def test_an_image_is_never_overwritten(segment, tmp_path):
    paths = [models.picture(tmp_path / name, 0) for name in ("cat.png", "cat.overlay.png")]
    before = Path(paths[1]).read_bytes()
    code, _, error = segment(*paths, "--text", "a cat", out=tmp_path)
    assert code == 2
    assert "cat.overlay.png is one of the images" in error
    assert Path(paths[1]).read_bytes() == before


def test_for_people(segment, pictures):
    code, lines, _ = segment(pictures[0], "--text", "a cat", "a dog")
    assert code == 0
    assert lines[0] == pictures[0]
    assert [line.split("  ")[0] for line in lines[3:5]] == ["a cat", "a dog"]
    assert lines[5].endswith("0.overlay.png")


def test_a_damaged_image_does_not_stop_the_others(segment, pictures, tmp_path):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(Path(pictures[0]).read_bytes()[:60])
    code, lines, error = segment(pictures[0], damaged, pictures[1], "--text", "a cat", "--json")
    assert code == 2
    assert [json.loads(line)["image"] for line in lines] == pictures
    assert f"error: cannot read {damaged} as an image" in error
    assert "1 of 3 images could not be read" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", " "], "--text: a text is empty"),
        (["--text", "cat " * 20], "has 62 tokens; the model reads at most 40"),
        (["--text", "cat", "--threshold", "50"], "--threshold is 50.0; it must be between 0 and 1"),
    ],
)
def test_mistakes(segment, pictures, arguments, message):
    code, lines, error = segment(pictures[0], *arguments)
    assert (code, lines) == (2, [])
    assert message in error


def test_an_image_among_the_texts(segment, pictures):
    code, _, error = segment("--text", "cat", pictures[0])
    assert code == 2
    assert f'"{pictures[0]}" is among the texts: --text takes all words up to the next option' in error


def test_without_the_package(segment, pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, _, error = segment(pictures[0], "--text", "cat")
    assert (code, error) == (2, "error: segment needs the package transformers: pip install transformers\n")


def test_without_the_weights(segment, pictures, no_network):
    code, _, error = segment(pictures[0], "--text", "cat", folder="nobody/no-such-model")
    assert code == 2
    assert "nobody/no-such-model cannot be loaded" in error
    assert "hf download nobody/no-such-model --local-dir FOLDER" in error


def test_what_was_downloaded_before_needs_no_network(segment, model, pictures, tmp_path, monkeypatch, no_network):
    cache = tmp_path / "cache/models--somebody--clipseg"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs/main").write_text("0" * 40)
    shutil.copytree(model, cache / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    code, _, error = segment(pictures[0], "--text", "cat", folder="somebody/clipseg")
    assert code == 0, error


@pytest.mark.parametrize("damage", ["absent", "empty", "truncated", "other"])
def test_a_folder_without_the_model(segment, model, pictures, tmp_path, damage):
    folder = tmp_path / "folder"
    if damage == "empty":
        folder.mkdir()
    elif damage != "absent":
        shutil.copytree(model, folder)
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    if damage == "other":
        (folder / "config.json").write_text('{"model_type": "clip"}')
    code, _, error = segment(pictures[0], "--text", "cat", folder=folder)
    assert code == 2
    assert str(folder) in error
    assert {
        "absent": "no folder",
        "empty": "config.json",
        "truncated": "damaged",
        "other": 'is a model of the kind "clip"; segment takes clipseg',
    }[damage] in error


def test_weights_that_hold_code(segment, model, pictures, tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "run"), "w")

    folder = tmp_path / "folder"
    shutil.copytree(model, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Trap()}, folder / "pytorch_model.bin")
    code, _, error = segment(pictures[0], "--text", "cat", folder=folder)
    assert code == 2
    assert f"the weights of {folder} are damaged" in error
    assert not (tmp_path / "run").exists()


def test_code_that_comes_with_a_model_is_not_run(segment, pictures, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    code, _, error = segment(pictures[0], "--text", "cat", folder=folder)
    assert code == 2
    assert str(folder) in error
    assert not (tmp_path / "run").exists()
