"""predict.py segment, and the loading of models from transformers that other commands share."""

import json
import shutil
import socket
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from tests.inference import models

pytest.importorskip("transformers", reason="needs the optional package transformers")
TEXTS = ["a cat", "two red dogs", "what"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Return the folder of a tiny CLIPSeg."""
    return models.clipseg(tmp_path_factory.mktemp("clipseg"))


@pytest.fixture
def segment(tmp_path, model, call):
    """Return a function that calls ``predict.py segment`` with the tiny CLIPSeg."""
    return lambda *arguments: call("segment", *arguments, "--out", tmp_path / "out", "--model", model)


def compute_reference_mask(model: Path, path: str, text: str) -> np.ndarray:
    """Return the probabilities (height, width) that transformers gives for one text."""
    from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

    picture = Image.open(path)
    inputs = CLIPSegProcessor.from_pretrained(model)(text=[text], images=[picture], return_tensors="pt")
    with torch.no_grad():
        logits = CLIPSegForImageSegmentation.from_pretrained(model).eval()(**inputs).logits
    resized = torch.nn.functional.interpolate(
        logits.reshape(1, 1, *logits.shape[-2:]), picture.size[::-1], mode="bilinear"
    )
    return resized.sigmoid()[0, 0].numpy()


def test_masks_equal_those_of_transformers(segment, model, image_paths, monkeypatch):
    """With more texts than fit into one batch."""
    monkeypatch.setattr("inference.transformers_models.BATCH_TEXTS", 2)
    records = segment(*image_paths, "--text", *TEXTS, "--json").records
    assert [record["image"] for record in records] == image_paths
    for record, path in zip(records, image_paths, strict=True):
        with np.load(record["masks"], allow_pickle=False) as arrays:
            assert arrays["texts"].tolist() == TEXTS
            masks = arrays["masks"]
        assert masks.shape == (3, *Image.open(path).size[::-1])
        for mask, entry in zip(masks, record["segments"], strict=True):
            reference = compute_reference_mask(model, path, entry["text"])
            assert np.abs(mask - reference).max() < 1e-3  # half precision
            assert entry["highest"] == pytest.approx(reference.max(), abs=1e-5)
            assert entry["area"] == pytest.approx((reference >= 0.5).mean(), abs=1e-3)
    assert np.abs(masks[0].astype(float) - masks[1]).max() > 0.01  # the masks depend on the text


def test_the_overlay_colours_the_pixels_above_the_threshold(segment, image_paths):
    overlays = {}
    for threshold in (0.01, 0.99):
        (record,) = segment(image_paths[0], "--text", "a cat", "--threshold", threshold, "--json").records
        overlays[threshold] = np.asarray(Image.open(record["overlay"]))
    original = np.asarray(Image.open(image_paths[0]))
    height, width, _ = original.shape
    assert overlays[0.01].shape[0] > height  # the legend
    assert (overlays[0.99][:height, :width] == original).all()
    assert (overlays[0.01][:height, :width] != original).any(-1).all()


def test_images_of_the_same_name_get_separate_files_and_no_image_is_overwritten(segment, refused, model, tmp_path):
    names = ("a/cat.png", "b/cat.png", "cat-2.png", "cat.overlay.png")
    paths = [models.write_image(tmp_path / name, number) for number, name in enumerate(names)]
    records = segment(*paths[:3], "--text", "a cat", "--json").records
    files = {record[kind] for record in records for kind in ("masks", "overlay")}
    assert len(files) == 6
    assert all(Path(file).is_file() for file in files)
    before = Path(paths[3]).read_bytes()
    message = "cat.overlay.png is one of the images"
    refused("segment", *paths, "--text", "a cat", "--model", model, "--out", tmp_path, fragments=[message])
    assert Path(paths[3]).read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}", "--text", " "], "--text: a text is empty"),
        (["{}", "--text", "cat " * 20], "has 62 tokens; the model reads at most 40"),
        (["{}", "--text", "cat", "--threshold", "50"], "--threshold is 50.0; it must be between 0 and 1"),
        (["--text", "cat", "{}"], '0.png" is among the texts: --text takes all words up to the next option'),
    ],
)
def test_wrong_arguments_are_refused_with_a_message(refused, model, image_paths, arguments, message):
    refused("segment", *[text.format(image_paths[0]) for text in arguments], "--model", model, fragments=[message])


def test_nothing_is_written_while_a_viewer_shows_an_overlay(refused, model, image_paths, tmp_path, windows):
    overlay = tmp_path / f"out/{Path(image_paths[1]).stem}.overlay.png"
    overlay.parent.mkdir()
    overlay.write_bytes(b"earlier")
    command = ("segment", *image_paths, "--text", "cat", "--out", overlay.parent, "--model", model)
    with open(overlay, "rb"):
        refused(*command, fragments=[f"cannot write {overlay}: ", "close it there"])
    assert [path.name for path in overlay.parent.iterdir()] == [overlay.name]


def test_a_downloaded_model_needs_no_network(call, model, image_paths, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", Mock(side_effect=OSError("Name or service not known")))
    command = ("segment", image_paths[0], "--text", "cat", "--out", tmp_path, "--model", "somebody/clipseg")
    error = call(*command).error
    assert "hf download somebody/clipseg --local-dir FOLDER" in error
    assert "set HF_ENDPOINT=https://hf-mirror.com (PowerShell: $env:HF_ENDPOINT = " in error
    cache = tmp_path / "cache/models--somebody--clipseg"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs/main").write_text("0" * 40)
    shutil.copytree(model, cache / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert call(*command).code == 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("absent", "no folder"),
        ("truncated", "damaged"),
        ("another model_type", 'is a model of the kind "clip"; segment takes clipseg'),
        ("code in the weights", "damaged"),
        ("code beside the weights", "cannot be loaded"),
    ],
)
def test_a_folder_without_a_usable_model_is_refused_and_its_code_not_executed(
    refused, model, image_paths, tmp_path, damage, message
):
    folder = tmp_path / "folder"
    if damage != "absent":
        shutil.copytree(model, folder)
    if damage == "truncated":
        (folder / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:1000])
    elif damage == "another model_type":
        (folder / "config.json").write_text('{"model_type": "clip"}')
    elif damage == "code in the weights":
        trap = type("Trap", (), {"__reduce__": lambda self: (open, (str(tmp_path / "run"), "w"))})
        (folder / "model.safetensors").unlink()
        torch.save({"weight": trap()}, folder / "pytorch_model.bin")
    elif damage == "code beside the weights":
        config = {"model_type": "custom", "auto_map": {"AutoConfig": "custom.Custom"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "custom.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    refused("segment", image_paths[0], "--text", "cat", "--model", folder, fragments=[folder, message])
    assert not (tmp_path / "run").exists()
