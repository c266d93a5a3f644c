"""tools/export_clip.py: the exported file holds the CLIP of the run."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

import predict
import tools.export_clip as tool  # noqa: F401  the fixture call runs it
import train
from inference.trained_run import load_trainer
from tests.common import REPOSITORY, load_tensors
from tests.vlm import foreign_models
from tools import digit_pairs
from vlm.clip.load import load_clip
from vlm.tiny.weights import load_tiny

CONFIG = ("--config-file", REPOSITORY / "configs/trainers/CLIPFineTune/tiny.yaml")
SHORT = ("OPTIM.MAX_EPOCH", 1, "OPTIM.WARMUP_EPOCH", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", 16, "TEST.NO_TEST", True)
LORA = ("TRAINER.FINETUNE.PARTS", '["lora"]')
IMAGE_PERCENT = 100 / 447  # accuracy of one test image; the five new digits have 447


@pytest.fixture(scope="module")
def tune(tmp_path_factory):
    """Return a function that runs CLIPFineTune on pairs of digits and returns the run's folder."""
    root = tmp_path_factory.mktemp("pairs")
    assert digit_pairs.main(["--root", str(root), "--pairs", "64"]) == 0

    def call(name: str, *options: object):
        argv = ["--root", root, "--seed", 1, "--trainer", "CLIPFineTune", "--output-dir", root / name, *CONFIG]
        argv += ["--dataset-config-file", REPOSITORY / "configs/datasets/captions.yaml"]
        argv += ["DATASET.FOLDER", "digit_pairs", *SHORT, *options]
        assert train.main([str(word) for word in argv]) == 0
        return root / name

    return call


@pytest.fixture(scope="module")
def lora(tune):
    """Return the folder of a run with low-rank updates."""
    return tune("lora", *LORA, "OPTIM.LR", 0.03)


def assert_refused(result: tuple, message: str, folder) -> None:
    """Assert that the call ended with the error ``message`` and left no safetensors file below ``folder``."""
    code, output, error = result
    assert code == 2
    assert output == ""
    assert message in error
    assert not list(folder.rglob("*.safetensors*"))


def test_zero_shot_with_the_exported_file_has_the_accuracy_of_the_run(lora, run, call, tmp_path):
    file = tmp_path / "below/exported.safetensors"
    code, output, _ = call(lora, "--load-epoch", 1, "--out", file)
    assert code == 0
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert f"{file} written: {file.stat().st_size:,} bytes" in output
    assert output.count("largest difference of features") == 2

    half = ("DATASET.SUBSAMPLE_CLASSES", "new")
    tuned = run(*CONFIG, "--eval-only", "--model-dir", lora, *LORA, *half, trainer="CLIPFineTune", out="tuned")
    exported = run("--eval-only", *half, "MODEL.BACKBONE.WEIGHTS", file, trainer="ZeroshotCLIP", out="exported")
    before = run(*CONFIG, "--eval-only", *half, trainer="CLIPFineTune", out="before")
    assert float(exported.accuracy) == pytest.approx(float(tuned.accuracy), abs=2 * IMAGE_PERCENT + 0.01)
    assert abs(float(before.accuracy) - float(tuned.accuracy)) > 10 * IMAGE_PERCENT
    assert exported.record["weights"]["sha256"] in output


def test_the_exported_file_has_the_trained_parameters_in_full_precision(tune, call):
    trained = tune("projections", "TRAINER.FINETUNE.PARTS", '["projections"]')
    assert call(trained)[0] == 0
    exported, original = load_file(trained / "clip.safetensors"), load_tiny()
    learned = {
        key.removeprefix("clip."): value for key, value in load_tensors(trained / "clip/model.pth.tar-1").items()
    }
    assert exported.keys() == original.keys()
    assert len(learned) == 4
    for key, value in exported.items():
        assert torch.equal(value, learned.get(key, original[key].to(value.dtype))), key


def test_a_clip_trained_from_random_weights_is_exported(tune, call):
    assert call(tune("random", "MODEL.BACKBONE.PRETRAINED", False))[0] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: weight + 0.002 * weight.roll(1, 0), "features as in the file differ"),
        (lambda weight: weight * 1e6, "has values beyond 65,504, the largest of half precision"),
    ],
)
def test_a_file_whose_features_differ_does_not_replace_an_older_one(lora, call, monkeypatch, tmp_path, change, message):
    """After an error in the merge, or with weights too large for half precision."""
    out = tmp_path / "clip.safetensors"
    out.write_text("of an earlier export")

    def save_changed(weights):
        return save({**weights, "text_projection": change(weights["text_projection"])})

    monkeypatch.setattr("inference.export.save", save_changed)
    code, _, error = call(lora, "--out", out)
    assert code == 2
    assert message in error
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert out.read_text() == "of an earlier export"


def test_runs_checkpoints_and_file_names_that_do_not_fit_are_refused(lora, run, call, tmp_path):
    zero_shot = run("TEST.NO_TEST", True, trainer="ZeroshotCLIP").folder
    assert_refused(call(zero_shot), "ZeroshotCLIP did not change CLIP", zero_shot)
    assert_refused(call(tmp_path / "absent"), "no run in", tmp_path)
    assert_refused(
        call(lora, "--load-epoch", 7, "--out", tmp_path / "a.safetensors"), "no checkpoint of epoch 7", tmp_path
    )
    assert_refused(call(lora, "--out", tmp_path / "clip.pt"), "must end in .safetensors", tmp_path)
    shutil.copytree(lora, tmp_path / "bare", ignore=shutil.ignore_patterns("model.pth*"))
    assert_refused(call(tmp_path / "bare"), "checkpoint", tmp_path)


FOREIGN = {
    "open_clip": (foreign_models.open_clip_folder, "open_clip:local-dir:"),
    "clip": (foreign_models.hugging_face_clip, "hf:"),
    "chinese": (foreign_models.chinese_clip, "hf:"),
}


@pytest.mark.parametrize("parts", ['["lora"]', '["image","text"]'])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_clip_of_another_library_is_exported_to_a_folder_with_exactly_its_weights(tune, call, tmp_path, kind, parts):
    make_folder, prefix = FOREIGN[kind]
    name = f"{prefix}{make_folder(tmp_path / 'model')}"
    size = ("INPUT.SIZE", f"({foreign_models.SIZE}, {foreign_models.SIZE})")
    trained = tune(f"{kind}{len(parts)}", "MODEL.BACKBONE.NAME", name, *size, "TRAINER.FINETUNE.PARTS", parts)
    code, output, error = call(trained)
    assert code == 0, error
    folder = trained / "exported_clip"
    assert f"{folder} written; the backbone is {prefix}{folder}\nlargest difference of features" in output
    exported, original = load_clip(f"{prefix}{folder}")[0], load_clip(name)[0].state_dict()
    expected = load_trainer(trained, ["a", "b"], cuda=False).model.clip
    for module in [module for module in expected.modules() if is_parametrized(module)]:
        for parametrized in list(module.parametrizations):
            remove_parametrizations(module, parametrized)
    changed = 0
    for key, value in expected.state_dict().items():
        assert torch.equal(exported.state_dict()[key], value), key
        changed += not torch.equal(original[key], value)
    assert changed > 3
    assert not list(trained.glob(".exported_clip*"))
    code, output, error = call(trained)
    assert (code, output) == (2, "")
    assert f"{folder} is there already" in error


@pytest.mark.parametrize("kind", ["open_clip", "clip", "chinese"])
def test_an_exported_folder_prepares_an_image_as_the_run_does(tune, call, tmp_path, capsys, kind):
    """The original's mean and standard deviation are others; it crops images, Chinese-CLIP squashes them."""
    make_folder, prefix = FOREIGN[kind]
    size = ("INPUT.SIZE", f"({foreign_models.SIZE}, {foreign_models.SIZE})")
    options = (*size, "INPUT.PIXEL_MEAN", "[0.1, 0.2, 0.3]", "INPUT.PIXEL_STD", "[0.9, 0.8, 0.7]")
    options += ("INPUT.RESIZE", "crop" if kind == "chinese" else "squash")
    name = f"{prefix}{make_folder(tmp_path / 'model')}"
    trained = tune(f"prepared_{kind}", "MODEL.BACKBONE.NAME", name, "TRAINER.FINETUNE.PARTS", '["text"]', *options)
    code, output, error = call(trained, "--out", tmp_path / "exported")
    assert code == 0, error
    assert "Note" not in output
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 90, 3), dtype=np.uint8)).save(tmp_path / "image.png")
    command = [str(tmp_path / "image.png"), "--json", "--classes", "猫", "dog", "--template", "{} of"]
    results = []
    for model in (["--model-dir", str(trained)], ["--backbone", f"{prefix}{tmp_path / 'exported'}"]):
        assert predict.main([*command, *model]) == 0
        predictions = json.loads(capsys.readouterr().out)["predictions"]
        results.append({entry["class"]: entry["probability"] for entry in predictions})
    assert results[0] == pytest.approx(results[1], abs=1e-6)
    code, _, error = call(trained, "--out", tmp_path / "below" / "clip.safetensors")
    assert code == 2
    assert "becomes a folder: leave out the suffix" in error
    assert not (tmp_path / "below").exists()


def test_settings_of_preprocessing_that_an_export_cannot_have_are_noted(tune, call, tmp_path):
    options = ("INPUT.INTERPOLATION", "bilinear", "INPUT.PIXEL_MEAN", "[0.1, 0.2, 0.3]")
    trained = tune("bilinear", *LORA, *options, "INPUT.ORIENTATION", "stored")
    code, output, error = call(trained, "--out", tmp_path / "clip.safetensors")
    assert code == 0, error
    (note,) = (line for line in output.splitlines() if line.startswith("Note"))
    assert "INPUT.ORIENTATION is exif, in the run stored; INPUT.INTERPOLATION is bicubic, in the run bilinear" in note
    assert note.endswith(", in the run [0.1, 0.2, 0.3]")
    assert "PIXEL_STD" not in note


def test_an_exported_chinese_clip_classifies_as_the_run_does(tune, call, tmp_path, capsys):
    name = f"hf:{foreign_models.chinese_clip(tmp_path / 'model')}"
    trained = tune("chinese", "MODEL.BACKBONE.NAME", name, "TRAINER.FINETUNE.PARTS", '["text"]', "OPTIM.LR", 0.01)
    assert call(trained, "--out", tmp_path / "exported")[0] == 0
    image = next((trained.parent / "digit_pairs/images").rglob("*.png"))
    command = [str(image), "--json", "--classes", "猫", "狗", "--template", "{}的照片"]
    results = []
    for model in (["--model-dir", str(trained)], ["--backbone", f"hf:{tmp_path / 'exported'}"], ["--backbone", name]):
        assert predict.main([*command, *model]) == 0
        predictions = json.loads(capsys.readouterr().out)["predictions"]
        results.append({entry["class"]: entry["probability"] for entry in predictions})
    assert results[0] == pytest.approx(results[1], abs=1e-6)
    assert results[0] != pytest.approx(results[2], abs=1e-4)
