"""predict.py segment, and what all commands with a model of transformers share: loading it."""

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
    return models.clipseg(tmp_path_factory.mktemp("clipseg"))


@pytest.fixture
def segment(tmp_path, model, call):
    return lambda *arguments: call("segment", *arguments, "--out", tmp_path / "out", "--model", model)


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


def test_masks_are_those_of_the_library(segment, model, pictures, monkeypatch):
    """Of more texts than fit into one computation."""
    monkeypatch.setattr("inference.transformers_models.BATCH_TEXTS", 2)
    records = segment(*pictures, "--text", *TEXTS, "--json").records
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


def test_the_overlay_colours_what_was_found(segment, pictures):
    paint = {}
    for threshold in (0.01, 0.99):
        (record,) = segment(pictures[0], "--text", "a cat", "--threshold", threshold, "--json").records
        paint[threshold] = np.asarray(Image.open(record["overlay"]))
    original = np.asarray(Image.open(pictures[0]))
    height, width, _ = original.shape
    assert paint[0.01].shape[0] > height  # the legend
    assert (paint[0.99][:height, :width] == original).all()
    assert (paint[0.01][:height, :width] != original).any(-1).all()


def test_images_of_one_name_keep_their_own_files_and_none_is_overwritten(segment, refused, model, tmp_path):
    names = ("a/cat.png", "b/cat.png", "cat-2.png", "cat.overlay.png")
    paths = [models.picture(tmp_path / name, number) for number, name in enumerate(names)]
    records = segment(*paths[:3], "--text", "a cat", "--json").records
    files = {record[kind] for record in records for kind in ("masks", "overlay")}
    assert len(files) == 6
    assert all(Path(file).is_file() for file in files)
    before = Path(paths[3]).read_bytes()
    message = "cat.overlay.png is one of the images"
    refused("segment", *paths, "--text", "a cat", "--model", model, "--out", tmp_path, parts=[message])
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
def test_mistakes(refused, model, pictures, arguments, message):
    refused("segment", *[text.format(pictures[0]) for text in arguments], "--model", model, parts=[message])


def test_what_was_downloaded_before_needs_no_network(call, model, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", Mock(side_effect=OSError("Name or service not known")))
    command = ("segment", pictures[0], "--text", "cat", "--out", tmp_path, "--model", "somebody/clipseg")
    assert "hf download somebody/clipseg --local-dir FOLDER" in call(*command).error
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
        ("other", 'is a model of the kind "clip"; segment takes clipseg'),
        ("code in the weights", "damaged"),
        ("code of its own", "cannot be loaded"),
    ],
)
def test_a_folder_without_the_model(refused, model, pictures, tmp_path, damage, message):
    """No code that lies in it is run."""
    folder = tmp_path / "folder"
    if damage != "absent":
        shutil.copytree(model, folder)
    if damage == "truncated":
        (folder / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:1000])
    elif damage == "other":
        (folder / "config.json").write_text('{"model_type": "clip"}')
    elif damage == "code in the weights":
        trap = type("Trap", (), {"__reduce__": lambda self: (open, (str(tmp_path / "run"), "w"))})
        (folder / "model.safetensors").unlink()
        torch.save({"weight": trap()}, folder / "pytorch_model.bin")
    elif damage == "code of its own":
        config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "own.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    refused("segment", pictures[0], "--text", "cat", "--model", folder, parts=[folder, message])
    assert not (tmp_path / "run").exists()
