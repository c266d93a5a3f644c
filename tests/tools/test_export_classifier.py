"""tools/export_classifier.py: the exported files give the predictions of the run."""

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
import tools.export_classifier as tool  # noqa: F401  the fixture call runs it
from datasets.digits import DIGIT_NAMES
from tests.common import load_tensors
from tests.inference import models
from tests.vlm import foreign_models
from vlm import openai
from vlm.clip.load import load_cached_clip
from vlm.text.plain import encode_prompts

SHORT = ("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", True)
ARRAYS = {"class_weights.safetensors", "class_weights.npz"}


def predict_with_run(capsys, image, run, *options: str) -> dict[str, float]:
    """Return class name -> probability, as predict.py prints them for the run's folder and the ``options``."""
    capsys.readouterr()
    predict.main([str(image), "--model-dir", str(run), "--json", "--top-k", "99", *options])
    (record,) = map(json.loads, capsys.readouterr().out.splitlines())
    return {entry["class"]: entry["probability"] for entry in record["predictions"]}


def preprocess(path, metadata: dict) -> np.ndarray:
    """Return the image (1, 3, size, size) as the metadata of the files describe it, without torchvision."""
    image = Image.open(path).convert("RGB")
    edge = metadata["size"]
    factor = edge / min(image.size)
    size = [edge] * 2 if metadata["resize"] == "squash" else [round(length * factor) for length in image.size]
    image = image.resize(size, Image.Resampling[metadata["interpolation"].upper()])
    left, top = ((length - edge) // 2 for length in image.size)
    image = image.crop((left, top, left + edge, top + edge))
    pixels = (np.asarray(image) / 255 - metadata["mean"]) / metadata["std"]
    return np.float32(pixels.transpose(2, 0, 1)[None])


@torch.no_grad()
def compute_logits(arrays, clip, image: np.ndarray) -> np.ndarray:
    """Return the logits (classes,) that the exported weight and bias give for one image."""
    feature = clip.visual(torch.from_numpy(image))[0].numpy()
    return arrays["weight"] @ (feature / np.linalg.norm(feature)) + arrays["bias"]


@pytest.fixture
def photo(tmp_path) -> str:
    """Return the path of an image that is not square."""
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
    expected = predict_with_run(capsys, photo, trained.folder)

    metadata = {p.key: json.loads(p.value) for p in onnx.load(folder / "classifier.onnx").metadata_props}
    assert metadata["classnames"] == list(DIGIT_NAMES)
    assert (metadata["white_level"], metadata["orientation"]) == (0, "stored")
    assert metadata["weights_sha256"] == trained.record["weights"]["sha256"]
    clip, _ = load_cached_clip("tiny", "", "fp32", "cpu")
    assert metadata["logit_scale"] == pytest.approx(clip.logit_scale.exp().item())
    image = preprocess(photo, metadata)
    session = onnxruntime.InferenceSession(folder / "classifier.onnx", providers=["CPUExecutionProvider"])
    batch = np.concatenate([image, np.zeros_like(image), image])
    logits, probabilities = session.run(["logits", "probabilities"], {"images": batch})
    for row in (0, 2):
        assert dict(zip(DIGIT_NAMES, probabilities[row].tolist(), strict=True)) == pytest.approx(expected, abs=1e-4)

    arrays = dict(np.load(folder / "class_weights.npz", allow_pickle=False))
    assert json.loads(arrays["metadata"].item()) == metadata
    assert arrays["classnames"].tolist() == list(DIGIT_NAMES)
    assert compute_logits(arrays, clip, image) == pytest.approx(logits[0], abs=1e-4)
    with safe_open(folder / "class_weights.safetensors", framework="np") as file:
        assert {key: json.loads(value) for key, value in file.metadata().items()} == metadata
        assert np.array_equal(file.get_tensor("weight"), arrays["weight"])
        assert np.array_equal(file.get_tensor("bias"), arrays["bias"])

    # A file with other logits is not kept: here, that of the same classes in another order.
    old = shutil.copy(folder / "classifier.onnx", tmp_path)
    program = SimpleNamespace(save=lambda path, **_: shutil.copy(old, path), model=SimpleNamespace(metadata_props={}))
    monkeypatch.setattr("torch.onnx.export", lambda *_, **__: program)
    code, _, error = call(trained.folder, "--classes", *reversed(DIGIT_NAMES))
    assert code == 2
    assert "logits of classifier.onnx" in error
    assert set(os.listdir(folder)) == ARRAYS


def test_a_fine_tuned_vision_transformer_is_exported_for_new_classes(run, call, tmp_path):
    torch.manual_seed(0)
    model = openai.CLIP(32, 48, 1, 64, 16, 77, 49408, 64, 1, 2)
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    weights = ("MODEL.BACKBONE.WEIGHTS", tmp_path / "vit.safetensors", "INPUT.SIZE", "(48, 48)")
    trained = run(*SHORT, *weights, "OPTIM.NAME", "adamw", "OPTIM.WARMUP_EPOCH", 0, trainer="CLIPFineTune")
    code, _, error = call(trained.folder, "--out", tmp_path / "out", "--classes", "cup", "cat")
    assert code == 0, error
    assert set(os.listdir(tmp_path / "out")) == {*ARRAYS, "classifier.onnx"}
    arrays = np.load(tmp_path / "out/class_weights.npz")
    learned = load_tensors(trained.folder / "clip/model.pth.tar-1")["clip.logit_scale"].exp().item()
    assert json.loads(arrays["metadata"].item())["logit_scale"] == pytest.approx(learned, abs=1e-5)
    assert np.linalg.norm(arrays["weight"], axis=1) == pytest.approx([learned] * 2, rel=1e-5)
    assert learned != pytest.approx(model.logit_scale.exp().item(), rel=1e-4)


def test_a_fine_tuned_chinese_clip_is_exported_with_a_template(run, call, capsys, photo, tmp_path):
    import onnxruntime

    backbone = ("MODEL.BACKBONE.NAME", f"hf:{foreign_models.chinese_clip(tmp_path / 'chinese')}")
    trained = run(*SHORT, *backbone, "OPTIM.NAME", "adamw", trainer="CLIPFineTune")
    prompts = ("--classes", "猫", "狗", "--template", "{}的照片")
    code, _, error = call(trained.folder, *prompts, "--out", tmp_path / "out")
    assert code == 0, error
    metadata = json.loads(np.load(tmp_path / "out/class_weights.npz")["metadata"].item())
    session = onnxruntime.InferenceSession(tmp_path / "out/classifier.onnx")
    probabilities = session.run(["probabilities"], {"images": preprocess(photo, metadata)})[0][0].tolist()
    expected = predict_with_run(capsys, photo, trained.folder, *prompts)
    assert dict(zip(("猫", "狗"), probabilities, strict=True)) == pytest.approx(expected, abs=1e-4)
    assert call(trained.folder, "--template", "no braces")[0] == 2


@pytest.fixture
def without_onnx(monkeypatch):
    """Hide the packages for ONNX, which saves seconds; the exit code is then 2."""
    monkeypatch.setattr("inference.export.find_spec", lambda name: None)


@pytest.mark.usefixtures("without_onnx")
def test_load_epoch_exports_the_class_weights_of_that_epoch(run, call, tmp_path):
    """The class weights equal those of OpenAI's text encoder with the context in the checkpoint."""
    options = ("OPTIM.MAX_EPOCH", 2, "TRAIN.CHECKPOINT_FREQ", 1, "OPTIM.WARMUP_EPOCH", 0, "OPTIM.LR", 0.1)
    trained = run(*SHORT, *options)
    clip, _ = load_cached_clip("tiny", "", "fp32", "cpu")
    ends = openai.tokenize([" ".join([*["X"] * 16, name]) + "." for name in DIGIT_NAMES]).argmax(1)
    weights = {}
    for epoch in (1, 2):
        call(trained.folder, "--load-epoch", epoch, "--out", tmp_path / str(epoch))
        weights[epoch] = torch.from_numpy(np.load(tmp_path / str(epoch) / "class_weights.npz")["weight"])
        state = load_tensors(trained.checkpoint(epoch))
        context = state["ctx"].expand(len(DIGIT_NAMES), -1, -1)
        prompts = torch.cat([state["token_prefix"], context, state["token_suffix"]], dim=1)
        features = encode_prompts(clip, prompts, ends)
        expected = clip.logit_scale.exp() * features / features.norm(dim=1, keepdim=True)
        torch.testing.assert_close(weights[epoch], expected, atol=1e-4, rtol=1e-5)
    assert (weights[1] - weights[2]).abs().max() > 0.01


@pytest.mark.usefixtures("without_onnx")
def test_the_metadata_say_that_images_are_squashed(run, call, capsys, photo):
    """Some CLIPs were trained on images resized at both edges, without a crop."""
    trained = run(*SHORT, "INPUT.RESIZE", "squash")
    call(trained.folder)
    arrays = np.load(trained.folder / "classifier/class_weights.npz")
    metadata = json.loads(arrays["metadata"].item())
    assert metadata["resize"] == "squash"
    logits = compute_logits(arrays, load_cached_clip("tiny", "", "fp32", "cpu")[0], preprocess(photo, metadata))
    probabilities = torch.from_numpy(logits).softmax(0).tolist()
    expected = predict_with_run(capsys, photo, trained.folder)
    assert dict(zip(DIGIT_NAMES, probabilities, strict=True)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.usefixtures("without_onnx")
def test_without_the_packages_for_onnx_only_the_class_weights_are_written(run, call):
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
def test_a_method_with_nonlinear_logits_is_refused(run, call, monkeypatch, trainer, message):
    folder = run(*SHORT, trainer=trainer).folder
    monkeypatch.setattr("trainers.coop.CoOp.model_inference", lambda self, x: self.model(x) + torch.arange(10.0))
    code, _, error = call(folder)
    assert code == 2
    assert message in error
    assert not (folder / "classifier").exists()
