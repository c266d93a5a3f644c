"""Weights files of other kinds and formats: loaded, or refused with the option that takes them; damaged weights."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import predict
from dassl.utils import UserError
from tests.inference import models as small_models
from tests.vlm import foreign_models as models
from tests.vlm.test_load import save_torchscript
from vlm import openai
from vlm.clip.fingerprint import weights_fingerprint
from vlm.clip.load import load_clip
from vlm.tiny.weights import load_tiny

VIT = (32, 32, 2, 64, 16, 77, 300, 64, 1, 2)


@pytest.fixture(scope="module")
def clip():
    """A small CLIP, with a vision transformer."""
    torch.manual_seed(0)
    return openai.CLIP(*VIT).eval()


@pytest.fixture
def image(tmp_path) -> str:
    """The path of an image."""
    return small_models.write_image(tmp_path / "images/a.png", 0)


@pytest.fixture
def refused(tmp_path, run, image, capsys):
    """A function that gives a backbone and weights to train.py and predict.py and returns their one error message."""

    def call(backbone: str, weights: object = "") -> str:
        trained = run("--eval-only", "--backbone", backbone, "MODEL.BACKBONE.WEIGHTS", weights, trainer="ZeroshotCLIP")
        code = predict.main([image, "--classes", "cup", "cat", "--backbone", backbone, "--weights", str(weights)])
        output, error = capsys.readouterr()
        assert (trained.code, code, output) == (2, 2, "")
        assert not (trained.folder / "result.json").exists()
        messages = {text.partition("error: ")[2] for text in (trained.error, error)}  # before it, progress bars
        assert len(messages) == 1
        return messages.pop()

    return call


# ---- damaged weights ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("visual.bn1.weight", torch.nan),  # the runtime's ReLU swallows it: wrong, finite features
        ("visual.layer2.0.bn1.running_var", torch.inf),
        ("transformer.resblocks.0.mlp.c_fc.weight", -torch.inf),
    ],
)
def test_weights_that_are_not_finite_are_refused_by_name(refused, tmp_path, name, value, dtype):
    weights = {key: t.to(dtype) if t.is_floating_point() else t for key, t in load_tiny().items()}
    weights[name].view(-1)[:2] = value
    save_file(weights, tmp_path / "clip.safetensors")
    error = refused("RN50", tmp_path / "clip.safetensors")
    assert f"2 of {weights[name].numel():,} values of {name} are NaN or infinite" in error
    assert str(tmp_path / "clip.safetensors") in error


def test_the_first_of_many_damaged_tensors_are_named(clip, tmp_path):
    torch.save({key: value * torch.nan for key, value in clip.state_dict().items()}, tmp_path / "w.pt")
    with pytest.raises(
        UserError, match=r"2,048 of 2,048 values of text_projection, .* and values of \d\d other tensors are NaN"
    ):
        load_clip("RN50", str(tmp_path / "w.pt"))


def test_a_value_that_half_precision_lacks_is_refused(clip, tmp_path):
    """OpenAI's function rounds the weights to half precision, in which 70,000 is infinite."""
    torch.save({**clip.state_dict(), "text_projection": clip.text_projection.detach() + 7e4}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"w.pt has values beyond 65,504.* values of text_projection are NaN or inf"):
        load_clip("RN50", str(tmp_path / "w.pt"))


@pytest.mark.parametrize("kind", ["open_clip", "hf"])
def test_weights_of_other_libraries_that_are_not_finite_are_refused(kind, refused, tmp_path):
    build = models.hugging_face_clip if kind == "hf" else models.open_clip_folder
    folder = build(tmp_path / "model")
    (path,) = folder.glob("*.safetensors")
    weights = load_file(path)
    weights["logit_scale"].fill_(torch.nan)
    save_file(weights, path, {"format": "pt"})
    error = refused(f"{'hf' if kind == 'hf' else 'open_clip:local-dir'}:{folder}")
    assert "1 of 1 values of logit_scale are NaN or infinite" in error


@pytest.mark.parametrize("shape", [None, (3, 5)])
def test_a_folder_of_transformers_without_a_tensor_is_refused(shape, refused, tmp_path):
    """The library fills it at random."""
    folder = models.hugging_face_clip(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    if shape:
        weights["visual_projection.weight"] = torch.ones(shape)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    error = refused(f"hf:{folder}")
    assert f"hf:{folder} is incomplete: it has no weights, or some of another shape, for 1 of the 78 para" in error
    assert "parameters of a CLIPModel (visual_projection.weight)" in error


def test_a_file_without_a_tensor_or_with_one_of_another_shape_is_refused_by_tensor(clip, tmp_path):
    path, weights = tmp_path / "w.pt", clip.state_dict()
    for changed, message in (
        ({"fc.weight": torch.ones(2), "fc.bias": torch.ones(2)}, "it has no visual.layer1.* but fc.weight, fc.bias"),
        ({}, "it has no visual.layer1.*, but no entry at all"),
        ({**weights, "ln_final.bias": torch.ones(3)}, r"size mismatch for ln_final.bias.* torch.Size\(\[3\]\)"),
        (openai.CLIP(*VIT[:-3], 32, 1, 2).state_dict(), "num_heads must be greater than 0"),
    ):
        torch.save(changed, path)
        with pytest.raises(UserError, match=f"w.pt does not hold the weights of a CLIP: .*{message}"):
            load_clip("RN50", str(path))


# ---- formats ----


@pytest.mark.parametrize("kind", ["safetensors", "torch.save", "model_state_dict", "model", "module."])
def test_a_clip_in_another_form_is_loaded(clip, tmp_path, kind, capsys):
    path, state_dict = tmp_path / "w.pt", clip.state_dict()
    if kind == "safetensors":
        save_file(state_dict, path)
    elif kind == "torch.save":
        path = tmp_path / "w.safetensors"
        torch.save(state_dict, path)
    elif kind == "module.":
        torch.save({f"module.{key}": value for key, value in state_dict.items()}, path)
    else:
        torch.save({"state_dict": {}, kind: state_dict, "epoch": 3}, path)
    _, tensors = load_clip("RN50", str(path))
    assert weights_fingerprint(tensors) == weights_fingerprint(state_dict)
    assert (f'its entry "{kind}"' in capsys.readouterr().out) == kind.startswith("model")


def test_openais_archive_is_opened_in_a_folder_with_a_chinese_name(clip, tmp_path, monkeypatch):
    """On Windows, PyTorch's C++ opens a path in the system's code page, which may lack the letters."""
    path = tmp_path / "张三" / "ViT.pt"
    path.parent.mkdir()
    save_torchscript(clip, str(tmp_path / "ViT.pt"))
    (tmp_path / "ViT.pt").rename(path)
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(openai.URLS, "made", f"https://example.org/{checksum}/made.pt")  # as if it were OpenAI's
    jit_load = torch.jit.load

    def load(file, *arguments, **options):
        if isinstance(file, (str, Path)) and not str(file).isascii():
            raise RuntimeError(f"open file failed, file path: {str(file).encode('ascii', 'replace').decode()}")
        return jit_load(file, *arguments, **options)

    monkeypatch.setattr(torch.jit, "load", load)
    assert weights_fingerprint(load_clip("", str(path))[1]) == weights_fingerprint(clip.state_dict())


# ---- files of other kinds ----


class Scheduler:
    """Stands for the live scheduler in the checkpoints of the original CoOp."""


@pytest.mark.parametrize("is_original", [False, True])
def test_a_runs_checkpoint_as_weights_is_named(is_original, refused, run, tmp_path):
    trained = run("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", True, out="trained")
    path = trained.checkpoint(1)
    if is_original:
        content = torch.load(path, weights_only=True)
        path = tmp_path / "model.pth.tar-50"
        torch.save({**content, "scheduler": Scheduler()}, path)
    for error in (refused("tiny", path), refused(str(path))):
        assert f"{path} is the checkpoint of a run" in error
        assert "MODEL.INIT_WEIGHTS" in error
        assert "--model-dir" in error
    error = refused("tiny", trained.folder)
    assert f"{trained.folder} is the folder of a run: use --model-dir {trained.folder}" in error


def save_open_clip(folder: Path, clip) -> Path:
    """Write a training checkpoint of open_clip, with OpenAI's names and shapes, and return its path."""
    weights = {f"module.{key}": value for key, value in clip.state_dict().items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": weights, "optimizer": {}}, folder / "epoch_3.pt")
    return folder / "epoch_3.pt"


def save_custom_text(folder: Path, clip) -> Path:
    """Write the weights of an open_clip with a separate text tower and a timm tower, and return their path."""
    torch.save({"visual.trunk.norm.weight": torch.ones(2), "text.ln_final.weight": torch.ones(2)}, folder / "w.pt")
    return folder / "w.pt"


def save_beside_config(folder: Path, clip) -> Path:
    """Write weights with OpenAI's names into the folder of a model of open_clip, and return their path."""
    (folder / "open_clip_config.json").write_text("{}")
    save_file(clip.state_dict(), folder / "weights.safetensors")
    return folder / "weights.safetensors"


def save_release(folder: Path, clip) -> Path:
    """Write weights with OpenAI's names under the name of one of open_clip's releases, and return their path."""
    torch.save(clip.state_dict(), folder / "vit_b_32-laion2b_e16-af8dbd0c.pth")
    return folder / "vit_b_32-laion2b_e16-af8dbd0c.pth"


@pytest.mark.parametrize("save", [save_open_clip, save_custom_text, save_beside_config, save_release])
def test_weights_of_open_clip_are_named_as_they_may_have_another_activation(save, clip, refused, tmp_path):
    path = save(tmp_path, clip)
    error = refused("RN50", path)
    assert f"{path} holds weights of another kind, those of open_clip" in error
    option = f"open_clip:local-dir:{tmp_path}" if save is save_beside_config else "open_clip:<architecture> with MODEL"
    assert f"--backbone {option}" in error


@pytest.mark.parametrize("name", ["my-laion-photos.pt", "run-0123abcd.pt"])
def test_a_file_is_not_open_clips_by_a_part_of_its_name(name, clip, tmp_path):
    torch.save(clip.state_dict(), tmp_path / name)
    load_clip("RN50", str(tmp_path / name))


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_transformers_folder_and_its_weights_are_named(ending, refused, tmp_path):
    folder = models.hugging_face_clip(tmp_path / "model")
    path = folder / "model.safetensors"
    if ending == "bin":
        path = folder / "pytorch_model.bin"
        torch.save(load_file(folder / "model.safetensors"), path)
    assert f"--backbone hf:{folder}\n" in refused("RN50", path)
    assert f"--backbone hf:{folder}\n" in refused(str(path))
    assert f"the folder of a model of transformers: use --backbone hf:{folder};" in refused("RN50", folder)
    assert f"the folder of a model of transformers: use --backbone hf:{folder}\n" in refused(str(folder))
    assert f"hf: takes its folder, hf:{folder}" in refused(f"hf:{path}")
    path.rename(tmp_path / "alone.bin")
    assert "--backbone hf:FOLDER, the folder with its config.json" in refused("RN50", tmp_path / "alone.bin")


def test_the_original_chinese_clip_is_named(clip, tmp_path):
    torch.save({"state_dict": {"module.bert.pooler": torch.ones(2)}, "name": "x"}, tmp_path / "clip_cn_vit-b-16.pt")
    with pytest.raises(UserError, match="--backbone hf:OFA-Sys/chinese-clip-vit-base-patch16"):
        load_clip("RN50", str(tmp_path / "clip_cn_vit-b-16.pt"))


def test_folders_are_refused_as_weights(tmp_path):
    with pytest.raises(UserError, match=r"is a folder without a model; MODEL.BACKBONE.WEIGHTS FILE \(predict.py: "):
        load_clip("RN50", str(tmp_path))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match=re.escape(f"use --backbone open_clip:local-dir:{tmp_path};")):
        load_clip("RN50", str(tmp_path))


@pytest.mark.parametrize("prefix", ["hf:", "open_clip:", "open_clip:local-dir:"])
def test_a_folder_of_another_program_as_a_backbone_is_named(prefix, refused, tmp_path):
    program, file = ("open_clip", "open_clip_config.json") if prefix == "hf:" else ("transformers", "config.json")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / file).write_text("{}")
    option = f"{'open_clip:local-dir' if prefix == 'hf:' else 'hf'}:{tmp_path / 'model'}"
    error = refused(f"{prefix}{tmp_path / 'model'}")
    assert f"is the folder of a model of {program}: use --backbone {option}\n" in error


def test_the_folder_of_an_open_clip_without_local_dir_is_named(tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(UserError, match=re.escape(f"use --backbone open_clip:local-dir:{tmp_path}")):
        load_clip(f"open_clip:{tmp_path}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer, not .* `git lfs pull`"),
        (b"\n<!DOCTYPE html><title>Sign in</title>", "a web page, not weights: download the file itself"),
        (b"<html><title>404</title></html>", "a web page, not weights: download the file itself"),
    ],
)
def test_what_was_downloaded_in_place_of_weights_is_named(content, message, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=f"w.safetensors is {message}"):
        load_clip("RN50", str(tmp_path / "w.safetensors"))


def test_entries_that_are_not_weights_are_named(clip, tmp_path):
    torch.save({"epoch": 3, "net": clip.state_dict()}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="holds something else than named tensors, the entries epoch, net"):
        load_clip("RN50", str(tmp_path / "w.pt"))


def test_a_pickled_model_is_refused(clip, tmp_path):
    torch.save(clip, tmp_path / "model.pt")
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"state_dict": {"a": 1}}))
    for name in ("model.pt", "model.pkl"):
        with pytest.raises(
            UserError, match="cannot be read as weights.*or holds more.*save a model's state_dict\\(\\)"
        ):
            load_clip("RN50", str(tmp_path / name))


# ---- names ----


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("OFA-Sys/chinese-clip-vit-base-patch16", 'did you mean "hf:OFA-Sys/chinese-clip-vit-base-patch16"'),
        ("https://huggingface.co/OFA-Sys/chinese-clip-vit-base-patch16/", 'mean "hf:OFA-Sys/chinese-clip-vit-base-p'),
        ("https://hf-mirror.com/openai/clip-vit-base-patch32/tree/main", 'mean "hf:openai/clip-vit-base-patch32"'),
        ("ViT-B-32/laion2b_s34b_b79k", '"open_clip:ViT-B-32/laion2b_s34b_b79k" is open_clip\'s'),
        ("ViT-B-32", '"open_clip:ViT-B-32/<weights>" is open_clip\'s; did you mean "ViT-B/32"?'),
        ("", "no backbone (MODEL.BACKBONE.NAME) is given; Known: "),
        ("ViT-B/23", '"ViT-B/23"; did you mean "ViT-B/32"?'),
        ("/models/clip.pt", "a weights file is MODEL.BACKBONE.WEIGHTS /models/clip.pt (predict.py: --weights"),
    ],
)
def test_the_name_that_was_probably_meant_is_in_the_message(name, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load_clip(name)


def test_a_weights_file_as_a_backbone_is_named(clip, tmp_path):
    torch.save(clip.state_dict(), tmp_path / "ViT")
    with pytest.raises(UserError, match=re.escape(f"a weights file is MODEL.BACKBONE.WEIGHTS {tmp_path / 'ViT'} ")):
        load_clip(str(tmp_path / "ViT"))


def test_train_and_predict_suggest_the_prefix(refused):
    assert 'did you mean "hf:OFA-Sys/chinese-clip' in refused("OFA-Sys/chinese-clip-vit-base-patch16")
