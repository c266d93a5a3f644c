"""predict.py classify on videos: files, and folders of frames."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import predict
from inference.video import read_frames, spread
from tests.inference import models

pytest.importorskip("transformers", reason="needs the optional package transformers")
CLASSES = ["a red cat", "two dogs", "photo"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return models.xclip(tmp_path_factory.mktemp("xclip"))


@pytest.fixture
def frames(tmp_path) -> Path:
    """A folder of twelve frames, numbered without zeros in front."""
    for number in range(12):
        models.picture(tmp_path / f"frames/frame-{number}.png", number)
    (tmp_path / "frames/notes.txt").write_text("no frame")
    return tmp_path / "frames"


@pytest.fixture
def classify(model, capsys):
    """Call the command; returns the exit code, the lines of its output, and its messages."""

    def call(*arguments: object, classes=CLASSES, folder: object = model) -> tuple[int, list[str], str]:
        argv = [*arguments, "--classes", *classes, "--model", folder]
        code = predict.main([str(argument) for argument in argv])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err

    return call


def write_video(path: Path, shades: list[int], **options) -> Path:
    """Frames of one grey each."""
    av = pytest.importorskip("av", reason="needs the optional package av")
    with av.open(str(path), "w", **options) as video:
        stream = video.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in shades:
            picture = np.full((48, 64, 3), shade, dtype=np.uint8)
            video.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        video.mux(stream.encode())
    return path


def expected(model: Path, pictures: list[Image.Image], texts: list[str]) -> list[float]:
    """The library's own probabilities."""
    from transformers import XCLIPModel, XCLIPProcessor

    inputs = XCLIPProcessor.from_pretrained(model)(text=texts, videos=pictures, return_tensors="pt", padding=True)
    assert inputs["pixel_values"].shape[:2] == (1, models.FRAMES)
    with torch.no_grad():
        return XCLIPModel.from_pretrained(model).eval()(**inputs).logits_per_video.softmax(-1)[0].tolist()


def probabilities(line: str, classes=CLASSES) -> list[float]:
    found = {entry["class"]: entry["probability"] for entry in json.loads(line)["predictions"]}
    return [found[name] for name in classes]


@pytest.mark.parametrize("template", [None, "a photo of {}"])
def test_a_folder_of_frames_as_the_library_sees_it(classify, model, frames, template):
    options = ["--template", template] if template else []
    code, lines, _ = classify(frames, "--video", "--json", *options)
    assert code == 0
    pictures = [Image.open(frames / f"frame-{number}.png") for number in (1, 4, 7, 10)]
    texts = [(template or "{}").format(name) for name in CLASSES]
    record = json.loads(lines[0])
    assert record["video"] == str(frames)
    shares = [entry["probability"] for entry in record["predictions"]]
    assert shares == sorted(shares, reverse=True)
    assert probabilities(lines[0]) == pytest.approx(expected(model, pictures, texts), abs=1e-5)


@pytest.mark.parametrize("count", [12, 3])
def test_a_video_file_as_the_library_sees_it(classify, model, tmp_path, count):
    path = write_video(tmp_path / "video.mp4", [20 * number for number in range(count)])
    code, lines, error = classify("classify", path, "--json")
    assert code == 0, error
    pictures = read_frames(str(path), models.FRAMES)
    shades = [20 * index for index in spread(count, models.FRAMES)]
    assert [np.asarray(picture).mean() for picture in pictures] == pytest.approx(shades, abs=6)
    assert probabilities(lines[0]) == pytest.approx(expected(model, pictures, CLASSES), abs=1e-5)


def test_a_video_that_does_not_tell_its_length(tmp_path):
    path = write_video(tmp_path / "video.mkv", [20 * number for number in range(12)], options={"live": "1"})
    shades = [np.asarray(picture).mean() for picture in read_frames(str(path), 4)]
    assert shades == pytest.approx([20, 80, 140, 200], abs=6)


def test_spread():
    assert spread(8, 8) == list(range(8))
    assert spread(100, 4) == [12, 37, 62, 87]
    assert spread(1, 3) == [0, 0, 0]


def test_several_videos_for_people(classify, frames, tmp_path):
    first = write_video(tmp_path / "first.avi", [10, 200, 90])
    code, lines, _ = classify(first, frames, "--video", "--top-k", 1)
    assert code == 0
    assert lines[0].split() == ["video", "probability", "class"]
    assert [line.split()[0] for line in lines[1:]] == [str(first), str(frames)]


def test_a_damaged_video_does_not_stop_the_others(classify, tmp_path):
    good = [write_video(tmp_path / f"{name}.mp4", [10, 200, 90]) for name in "ac"]
    damaged = tmp_path / "b.mp4"
    damaged.write_bytes(good[0].read_bytes()[:200])
    code, lines, error = classify(tmp_path / "*.mp4", "--json")
    assert code == 2
    assert [json.loads(line)["video"] for line in lines] == [str(path) for path in good]
    assert f"cannot read {damaged} as a video" in error
    assert "1 of 3 videos could not be read" in error


def test_without_the_packages(classify, frames, tmp_path, monkeypatch):
    path = tmp_path / "video.mp4"
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "av", None)
    code, _, error = classify(path)
    assert code == 2
    assert "needs the package av: pip install av" in error
    assert classify(frames, "--video")[0] == 0
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, _, error = classify(frames, "--video")
    assert code == 2
    assert "pip install transformers" in error


def test_mistakes(classify, frames, tmp_path):
    image, empty = frames / "frame-0.png", tmp_path / "empty"
    empty.mkdir()
    for arguments, message in (
        (["clip.mp4", image], f"clip.mp4 is a video and {image} is not"),
        (["clip.mp4"], "video not found: clip.mp4"),
        ([image], "--model is for videos"),
        ([frames, "--video", "--backbone", "RN50"], "--backbone does not go with videos"),
        ([frames, "--video", "--template", "a photo"], "{}"),
        ([empty, "--video"], f"no frame in the folder {empty}"),
    ):
        code, lines, error = classify(*arguments)
        assert (code, lines) == (2, []), arguments
        assert message in error
    code, _, error = classify(frames, "--video", classes=["cat", "dog " * 20])
    assert code == 2
    assert "has 62 tokens; the model reads at most 40" in error
