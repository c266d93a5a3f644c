"""tools/export_classifier.py: the files say of an image what the run says."""

from __future__ import annotations

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import predict
import tools.export_classifier as tool  # noqa: F401  what the fixture call runs
from datasets.digits import NAMES
from tests.common import tensors
from tests.inference import models
from vlm import openai
from vlm.clip.load import load_cached_clip
from vlm.text.plain import encode_prompts

SHORT = ("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", True)
ARRAYS = {"class_weights.safetensors", "class_weights.npz"}


def predicted(capsys, image, run) -> dict[str, float]:
    capsys.readouterr()
    predict.main([str(image), "--model-dir", str(run), "--json", "--top-k", "99"])
    (record,) = map(json.loads, capsys.readouterr().out.splitlines())
    return {entry["class"]: entry["probability"] for entry in record["predictions"]}


def prepare(path, told: dict) -> np.ndarray:
    """The preprocessing that the files tell, written down once more without torchvision."""
    image = Image.open(path).convert("RGB")
    factor = told["size"] / min(image.size)
    size = [told["size"]] * 2 if told["resize"] == "squash" else [round(edge * factor) for edge in image.size]
    image = image.resize(size, Image.Resampling[told["interpolation"].upper()])
    left, top = ((edge - told["size"]) // 2 for edge in image.size)
    image = image.crop((left, top, left + told["size"], top + told["size"]))
    pixels = (np.asarray(image) / 255 - told["mean"]) / told["std"]
    return np.float32(pixels.transpose(2, 0, 1)[None])


@torch.no_grad()
def logits_by(arrays, clip, image: np.ndarray) -> np.ndarray:
    feature = clip.visual(torch.from_numpy(image))[0].numpy()
    return arrays["weight"] @ (feature / np.linalg.norm(feature)) + arrays["bias"]


@pytest.fixture
def photo(tmp_path) -> str:
    return models.write_image(tmp_path / "photo.png", 0)


def test_the_files_give_the_probabilities_of_the_run(run, call, capsys, photo, tmp_path, monkeypatch):
    import onnx
    import onnxruntime

    trained = run(*SHORT)
    code, output, _ = call(trained.folder)
    assert code == 0
    folder = trained.folder / "classifier"
    assert set(os.listdir(folder)) == {*ARRAYS, "classifier.onnx"}
    assert output.count("largest difference") == 3
    expected = predicted(capsys, photo, trained.folder)

    told = {p.key: json.loads(p.value) for p in onnx.load(folder / "classifier.onnx").metadata_props}
    assert told["classnames"] == list(NAMES)
    assert told["weights_sha256"] == trained.record["weights"]["sha256"]
    clip, _ = load_cached_clip("tiny", "", "fp32", "cpu")
    assert told["logit_scale"] == pytest.approx(clip.logit_scale.exp().item())
    image = prepare(photo, told)
    session = onnxruntime.InferenceSession(folder / "classifier.onnx", providers=["CPUExecutionProvider"])
    batch = np.concatenate([image, np.zeros_like(image), image])
    logits, probabilities = session.run(["logits", "probabilities"], {"images": batch})
    for row in (0, 2):
        assert dict(zip(NAMES, probabilities[row].tolist(), strict=True)) == pytest.approx(expected, abs=1e-4)

    arrays = np.load(folder / "class_weights.npz", allow_pickle=False)
    assert json.loads(arrays["metadata"].item()) == told
    assert arrays["classnames"].tolist() == list(NAMES)
    assert logits_by(arrays, clip, image) == pytest.approx(logits[0], abs=1e-4)
    with safe_open(folder / "class_weights.safetensors", framework="np") as file:
        assert {key: json.loads(value) for key, value in file.metadata().items()} == told
        assert np.array_equal(file.get_tensor("weight"), arrays["weight"])
        assert np.array_equal(file.get_tensor("bias"), arrays["bias"])

    # A file that disagrees is not left: here, that of the same classes in another order.
    old = shutil.copy(folder / "classifier.onnx", tmp_path)
    program = SimpleNamespace(save=lambda path, **_: shutil.copy(old, path), model=SimpleNamespace(metadata_props={}))
    monkeypatch.setattr("torch.onnx.export", lambda *_, **__: program)
    code, _, error = call(trained.folder, "--classes", *reversed(NAMES))
    assert code == 2
    assert "logits of classifier.onnx" in error
    assert set(os.listdir(folder)) == ARRAYS


def test_a_vision_transformer_that_was_fine_tuned_and_new_classes(run, call, tmp_path):
    torch.manual_seed(0)
    model = openai.CLIP(32, 48, 1, 64, 16, 77, 49408, 64, 1, 2)
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    weights = ("MODEL.BACKBONE.WEIGHTS", tmp_path / "vit.safetensors", "INPUT.SIZE", "(48, 48)")
    trained = run(*SHORT, *weights, "OPTIM.NAME", "adamw", "OPTIM.WARMUP_EPOCH", 0, trainer="CLIPFineTune")
    code, _, error = call(trained.folder, "--out", tmp_path / "out", "--classes", "cup", "cat")
    assert code == 0, error
    assert set(os.listdir(tmp_path / "out")) == {*ARRAYS, "classifier.onnx"}
    arrays = np.load(tmp_path / "out/class_weights.npz")
    learned = tensors(trained.folder / "clip/model.pth.tar-1")["clip.logit_scale"].exp().item()
    assert json.loads(arrays["metadata"].item())["logit_scale"] == pytest.approx(learned, abs=1e-5)
    assert np.linalg.norm(arrays["weight"], axis=1) == pytest.approx([learned] * 2, rel=1e-5)
    assert learned != pytest.approx(model.logit_scale.exp().item(), rel=1e-4)


@pytest.fixture
def weights_alone(monkeypatch):
    """As where the packages for ONNX are not installed: seconds less, and exit code 2."""
    monkeypatch.setattr("inference.export.find_spec", lambda name: None)


@pytest.mark.usefixtures("weights_alone")
def test_the_epoch_that_is_asked_for(run, call, tmp_path):
    """The class weights of each, from its checkpoint by OpenAI's text encoder."""
    settings = ("OPTIM.MAX_EPOCH", 2, "TRAIN.CHECKPOINT_FREQ", 1, "OPTIM.WARMUP_EPOCH", 0, "OPTIM.LR", 0.1)
    trained = run(*SHORT, *settings)
    clip, _ = load_cached_clip("tiny", "", "fp32", "cpu")
    ends = openai.tokenize([" ".join([*["X"] * 16, name]) + "." for name in NAMES]).argmax(1)
    found = {}
    for epoch in (1, 2):
        call(trained.folder, "--load-epoch", epoch, "--out", tmp_path / str(epoch))
        found[epoch] = torch.from_numpy(np.load(tmp_path / str(epoch) / "class_weights.npz")["weight"])
        state = tensors(trained.checkpoint(epoch))
        context = state["ctx"].expand(len(NAMES), -1, -1)
        prompts = torch.cat([state["token_prefix"], context, state["token_suffix"]], dim=1)
        features = encode_prompts(clip, prompts, ends)
        expected = clip.logit_scale.exp() * features / features.norm(dim=1, keepdim=True)
        torch.testing.assert_close(found[epoch], expected, atol=1e-4, rtol=1e-5)
    assert (found[1] - found[2]).abs().max() > 0.01


@pytest.mark.usefixtures("weights_alone")
def test_pictures_that_are_squashed(run, call, capsys, photo):
    """As for CLIPs that learned with pictures of another shape than they take."""
    trained = run(*SHORT, "INPUT.RESIZE", "squash")
    call(trained.folder)
    arrays = np.load(trained.folder / "classifier/class_weights.npz")
    told = json.loads(arrays["metadata"].item())
    assert told["resize"] == "squash"
    logits = logits_by(arrays, load_cached_clip("tiny", "", "fp32", "cpu")[0], prepare(photo, told))
    probabilities = torch.from_numpy(logits).softmax(0).tolist()
    expected = predicted(capsys, photo, trained.folder)
    assert dict(zip(NAMES, probabilities, strict=True)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.usefixtures("weights_alone")
def test_without_the_packages_for_onnx_the_weights_are_there(run, call):
    folder = run(*SHORT).folder
    (folder / "classifier").mkdir()
    (folder / "classifier/classifier.onnx").write_text("of an earlier export")
    code, _, error = call(folder)
    assert code == 2
    assert "pip install onnx onnxscript onnxruntime" in error
    assert set(os.listdir(folder / "classifier")) == ARRAYS


@pytest.mark.parametrize(
    ("trainer", "message"),
    [("CoCoOp", "CoCoOp has no class weights"), ("CoOp", "differ from those of the run by up to 9")],
)
def test_a_method_that_is_more_than_class_weights_is_refused(run, call, monkeypatch, trainer, message):
    folder = run(*SHORT, trainer=trainer).folder
    monkeypatch.setattr("trainers.coop.CoOp.model_inference", lambda self, x: self.model(x) + torch.arange(10.0))
    code, _, error = call(folder)
    assert code == 2
    assert message in error
    assert not (folder / "classifier").exists()
