"""tools/selfcheck.py with a local server, and random weights in place of OpenAI's."""

from __future__ import annotations

import hashlib
import http.server
import re
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

from dassl.utils import file_digest
from tests.inference.models import write_image
from tools import selfcheck as tool
from vlm import openai
from vlm.clip import load as load_module

VIT = (32, 32, 2, 64, 16, 77, 49408, 64, 1, 2)
RESNET = (32, 224, (1, 1, 1, 1), 8, None, 77, 49408, 64, 1, 1)  # images of RN50's size


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files without a log."""

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch) -> Path:
    """The folder of a local server with CLIP.png and small random CLIPs as ViT-B/32 and RN50, in place of OpenAI's."""
    folder = tmp_path / "server"
    write_image(folder / "CLIP.png", 0, (80, 40))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name, architecture in (("ViT-B/32", VIT), ("RN50", RESNET)):
        torch.manual_seed(0)
        content = save(openai.CLIP(*architecture).state_dict())
        digest = hashlib.sha256(content).hexdigest()
        (folder / digest).mkdir()
        (folder / digest / "model.pt").write_bytes(content)
        monkeypatch.setitem(openai.URLS, name, f"{address}/{digest}/model.pt")
    monkeypatch.setattr(load_module, "CACHE_DIR", tmp_path / "cache")
    monkeypatch.setattr(tool, "IMAGE_URL", f"{address}/CLIP.png")
    monkeypatch.setattr(tool, "IMAGE_SHA256", file_digest(folder / "CLIP.png"))
    yield folder
    server.shutdown()
    server.server_close()


@torch.no_grad()
def compute_probabilities(folder: Path) -> list[float]:
    """Return what OpenAI's code computes for the served image and ViT-B/32."""
    path = folder / openai.URLS["ViT-B/32"].split("/")[-2] / "model.pt"
    model = openai.build_model(load(path.read_bytes())).float().eval()
    transform = sys.modules["vlm._openai_clip.clip"]._transform
    with Image.open(folder / "CLIP.png") as image:
        logits, _ = model(transform(32)(image)[None], openai.tokenize(list(tool.EXPECTED)))
    return logits.softmax(1)[0].tolist()


def test_random_weights_fail_the_comparison_which_says_by_how_much(server, tmp_path, call):
    code, output, error = call("--root", tmp_path)
    assert code == 1
    assert "are right" not in output
    (probability, difference) = re.search(r'"a dog" (\S+), not 0.00421 \(\+(\S+)%\)', error).groups()
    assert float(probability) == pytest.approx(compute_probabilities(server)[1], abs=2e-5)
    assert float(difference) == pytest.approx(100 * (float(probability) / 0.00421068 - 1), abs=0.2)
    assert re.search(rf"a dog +0.00421 +{probability} +\+{difference}%", output)
    assert "ImageNette is not in" in output
    assert "tools/prepare_imagenette.py" in output


def test_the_expected_probabilities_pass_within_the_tolerance(server, tmp_path, call, monkeypatch):
    """OpenAI's code gives the expected ones."""
    texts = list(tool.EXPECTED)
    for factor, expected_code in ((1.0, 0), (1.09, 0), (1.12, 1), (0.88, 1)):
        expected = dict(zip(texts, compute_probabilities(server), strict=True))
        expected["a cat"] /= factor
        monkeypatch.setattr(tool, "EXPECTED", expected)
        code, output, _ = call("--root", tmp_path)
        assert code == expected_code
        assert ("The weights, the preprocessing and both encoders are right." in output) == (code == 0)


def test_a_damaged_image_is_refused_by_its_checksum(server, tmp_path, call):
    content = (server / "CLIP.png").read_bytes()
    (server / "CLIP.png").write_bytes(content[:-1] + b"?")
    code, output, error = call("--root", tmp_path)
    assert (code, output) == (2, "")
    assert "CLIP.png arrived damaged" in error
    (tmp_path / "cache/CLIP.png").write_bytes(content[:-1])  # as cut in an earlier download
    (server / "CLIP.png").write_bytes(content)
    assert call("--root", tmp_path)[0] == 1
    assert (tmp_path / "cache/CLIP.png").read_bytes() == content


@pytest.mark.parametrize("minimum", [95.0, -1.0])
def test_rn50_on_imagenette_must_be_above_the_minimum(server, tmp_path, call, monkeypatch, minimum):
    monkeypatch.setattr("vlm.images.encoder._has_openvino", lambda: False)  # it takes long to compile
    monkeypatch.setattr(tool, "MIN_ACCURACY", minimum)
    monkeypatch.setattr(tool, "EXPECTED", dict(zip(tool.EXPECTED, compute_probabilities(server), strict=True)))
    base = tmp_path / "data/imagenet"
    for number in range(10):
        for split in ("train", "val"):
            write_image(base / f"images/{split}/n{number:08}/0.png", number)
    (base / "images/val/__MACOSX").mkdir()
    base.joinpath("classnames.txt").write_text("".join(f"n{number:08} thing {number}\n" for number in range(10)))
    code, output, error = call("--root", tmp_path / "data")
    accuracy = re.findall(r"^\* accuracy: (.*)%$", output, re.MULTILINE)[-1]
    assert "* total: 10\n" in output
    if minimum == 95.0:
        assert code == 1
        assert f"error: RN50 is right on {accuracy}% of ImageNette, not above 95.0%" in error
    else:
        assert code == 0
        assert f"RN50 is right on {accuracy}% of ImageNette's test images: as it should be" in output
