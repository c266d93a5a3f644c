"""predict.py classify on videos: video files, and folders of frames."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dassl.utils import Decoding
from inference.video import read_frames
from tests.inference import models

pytest.importorskip("transformers", reason="needs the optional package transformers")
CLASSES = ["a red cat", "two dogs", "photo"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Return the folder of a tiny X-CLIP."""
    return models.xclip(tmp_path_factory.mktemp("xclip"))


@pytest.fixture
def frames(tmp_path) -> Path:
    """Return a folder of twelve frames, numbered without leading zeros."""
    for number in range(12):
        models.write_image(tmp_path / f"frames/frame-{number}.png", number)
    (tmp_path / "frames/notes.txt").write_text("not a frame")
    return tmp_path / "frames"


@pytest.fixture
def classify(model, call):
    """Return a function that calls predict.py with the tiny X-CLIP and ``classes``."""

    def call_predict(*arguments: object, classes=CLASSES):
        return call(*arguments, "--classes", *classes, "--model", model)

    return call_predict


def write_video(path: Path, shades: list[int], **options) -> Path:
    """Write a video with one grey frame for each of ``shades``, and return its path."""
    av = pytest.importorskip("av", reason="needs the optional package av")
    with av.open(str(path), "w", **options) as video:
        stream = video.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in shades:
            pixels = np.full((48, 64, 3), shade, dtype=np.uint8)
            video.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        video.mux(stream.encode())
    return path


def compute_reference(model: Path, pictures: list[Image.Image], texts: list[str]) -> list[float]:
    """Return the probabilities of the texts that transformers gives for the frames ``pictures``."""
    from transformers import XCLIPModel, XCLIPProcessor

    inputs = XCLIPProcessor.from_pretrained(model)(text=texts, videos=pictures, return_tensors="pt", padding=True)
    assert inputs["pixel_values"].shape[:2] == (1, models.FRAMES)
    with torch.no_grad():
        return XCLIPModel.from_pretrained(model).eval()(**inputs).logits_per_video.softmax(-1)[0].tolist()


def test_a_folder_of_frames_has_the_probabilities_of_transformers(classify, model, frames):
    result = classify(frames, "--video", "--json", "--template", "a photo of {}")
    pictures = [Image.open(frames / f"frame-{number}.png") for number in (1, 4, 7, 10)]
    shares = result.probabilities()
    assert result.records[0]["video"] == str(frames)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    texts = [f"a photo of {name}" for name in CLASSES]
    assert [shares[name] for name in CLASSES] == pytest.approx(compute_reference(model, pictures, texts), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "count", "indices"),
    [("video.mp4", 12, [1, 4, 7, 10]), ("video.mp4", 3, [0, 1, 1, 2]), ("live.mkv", 12, [1, 4, 7, 10])],
)
def test_a_video_file_has_the_probabilities_of_transformers(classify, model, tmp_path, name, count, indices):
    """Also if its header lacks the number of frames, as that of a live stream does."""
    path, options = tmp_path / name, {"live": "1"} if name == "live.mkv" else {}
    write_video(path, [20 * number for number in range(count)], options=options)
    shares = classify("classify", path, "--json").probabilities()
    pictures = read_frames(str(path), models.FRAMES, Decoding())
    shades = [20 * index for index in indices]
    assert [np.asarray(picture).mean() for picture in pictures] == pytest.approx(shades, abs=6)
    assert [shares[name] for name in CLASSES] == pytest.approx(compute_reference(model, pictures, CLASSES), abs=1e-5)


def test_a_damaged_video_does_not_stop_the_others(classify, tmp_path):
    readable = [write_video(tmp_path / f"{name}.mp4", [10, 200, 90]) for name in "ac"]
    damaged = tmp_path / "b.mp4"
    damaged.write_bytes(readable[0].read_bytes()[:200])
    result = classify(tmp_path / "*.mp4", "--json")
    assert result.code == 2
    assert [record["video"] for record in result.records] == [str(path) for path in readable]
    assert f"cannot read {damaged} as a video" in result.error
    assert "1 of 3 videos could not be read" in result.error


def test_without_the_package_av_folders_of_frames_still_work(classify, frames, tmp_path, monkeypatch):
    (tmp_path / "video.mp4").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "av", None)
    error = classify(tmp_path / "video.mp4").error
    assert "needs the package av: pip install av (in China, add -i https://pypi.tuna.tsinghua.edu.cn/simple)" in error
    assert classify(frames, "--video").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clip.mp4", "{image}"], "clip.mp4 is a video and {image} is not"),
        (["clip.mp4"], "video not found: clip.mp4"),
        (["{image}"], "--model is for videos"),
        (["{frames}", "--video", "--backbone", "RN50"], "{frames} is a video, which X-CLIP classifies: --backbone"),
        (["{frames}", "--video", "--template", "a photo"], "{{}}"),
        (["{frames}", "--video", "--template", "{{}}" + " dog" * 15], "reads at most 40"),
        (["{empty}", "--video"], "no frame in the folder {empty}"),
    ],
)
def test_wrong_arguments_are_refused_with_a_message(refused, model, frames, tmp_path, arguments, message):
    paths = {"frames": frames, "image": frames / "frame-0.png", "empty": tmp_path / "empty"}
    paths["empty"].mkdir()
    options = ("--classes", *CLASSES, "--model", model)
    refused(*[text.format(**paths) for text in arguments], *options, fragments=[message.format(**paths)])
