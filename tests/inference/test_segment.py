"""predict.py segment, and what all commands with a model of transformers share: loading it."""

import json
import shutil
import socket
from pathlib import Path

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
    def run_it(*arguments: object, out: Path = tmp_path / "out"):
        return call("segment", *arguments, "--out", out, "--model", model)

    return run_it


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
    monkeypatch.setattr("inference.neighbours.TEXTS_AT_ONCE", 2)
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


def test_images_of_one_name_keep_their_own_files(segment, tmp_path):
    paths = [models.picture(tmp_path / f"{folder}/cat.png", number) for number, folder in enumerate("ab")]
    paths.append(models.picture(tmp_path / "cat-2.png", 2))
    records = segment(*paths, "--text", "a cat", "--json").records
    assert len({record["masks"] for record in records} | {record["overlay"] for record in records}) == 6
    assert all(Path(record["masks"]).is_file() for record in records)


def test_an_image_is_never_overwritten(segment, tmp_path):
    paths = [models.picture(tmp_path / name, 0) for name in ("cat.png", "cat.overlay.png")]
    before = Path(paths[1]).read_bytes()
    result = segment(*paths, "--text", "a cat", out=tmp_path)
    assert result.code == 2
    assert "cat.overlay.png is one of the images" in result.error
    assert Path(paths[1]).read_bytes() == before


def test_for_people(segment, pictures):
    lines = segment(pictures[0], "--text", "a cat", "a dog").output.splitlines()
    assert lines[0] == pictures[0]
    assert [line.split("  ")[0] for line in lines[3:5]] == ["a cat", "a dog"]
    assert lines[5].endswith("0.overlay.png")


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


def test_without_a_network_what_was_downloaded_before_is_taken(call, refused, model, pictures, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    command = ("segment", pictures[0], "--text", "cat", "--out", tmp_path, "--model", "somebody/clipseg")
    parts = ["somebody/clipseg cannot be loaded", "hf download somebody/clipseg --local-dir FOLDER"]
    refused(*command, parts=parts)
    cache = tmp_path / "cache/models--somebody--clipseg"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs/main").write_text("0" * 40)
    shutil.copytree(model, cache / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    result = call(*command)
    assert result.code == 0, result.error


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
        (folder / "model.safetensors").unlink()
        torch.save({"weight": Trap(tmp_path / "run")}, folder / "pytorch_model.bin")
    elif damage == "code of its own":
        config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "own.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    refused("segment", pictures[0], "--text", "cat", "--model", folder, parts=[folder, message])
    assert not (tmp_path / "run").exists()


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")
