"""``tools/features.py export`` and ``import``: files of features from images and from Tip-Adapter's caches."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import train
from datasets.feature_file import read_feature_file
from tests.common import REPOSITORY
from tests.datasets.test_features import NAMES, make_arrays
from tools import features as tool  # noqa: F401  the fixture call runs it


@pytest.mark.parametrize("shots", [-1, 4])
def test_runs_on_an_exported_file_have_the_accuracy_of_runs_on_the_images(shots, run, call, tmp_path, digits_root):
    file = tmp_path / "digits.npz"
    flags = ["--dataset", REPOSITORY / "configs/datasets/digits.yaml", "--root", digits_root, "--backbone", "tiny"]
    code, output, error = call("export", *flags, "--output", file, "DATASET.NUM_SHOTS", shots)
    assert not code, error
    assert "10 classes, with text features" in output
    for trainer in ("ZeroshotCLIP", "LinearProbe"):
        images = run("DATASET.NUM_SHOTS", shots, "OPTIM.MAX_EPOCH", 1, trainer=trainer, out=f"{trainer}-images")
        assert not images.code, images.error
        folder = tmp_path / f"{trainer}-features"
        argv = ["--trainer", trainer, "--seed", "1", "--output-dir", folder, "DATASET.NAME", "Features"]
        argv += ["DATASET.FEATURES", file, "DATASET.NUM_SHOTS", shots]
        assert not train.main([str(word) for word in argv])
        record = type(images)(0, folder, "").record
        assert record["correct"] == images.record["correct"]
        assert record["classnames"] == images.record["classnames"]
        assert record["weights"]["backbone"] == "tiny"


@pytest.fixture
def cache(tmp_path):
    """The folder of a cache as Tip-Adapter writes it: keys transposed, values one-hot, all but labels in half."""
    folder, arrays = (
        tmp_path / "cache",
        {k: torch.from_numpy(v) for k, v in make_arrays().items() if k != "class_names"},
    )
    folder.mkdir()
    for shots in (4, 16):
        torch.save(arrays[f"train{shots}_features"].t().contiguous().half(), folder / f"keys_{shots}shots.pt")
        torch.save(F.one_hot(arrays[f"train{shots}_labels"]).half(), folder / f"values_{shots}shots.pt")
    for split in ("val", "test"):
        torch.save(arrays[f"{split}_features"].half(), folder / f"{split}_f.pt")
        torch.save(arrays[f"{split}_labels"], folder / f"{split}_l.pt")
    torch.save(arrays["text_features"].t().contiguous().half(), folder / "text_weights_cupl_t.pt")
    return folder


@pytest.mark.parametrize("transposed", [True, False])
def test_a_cache_of_tip_adapter_becomes_a_file(transposed, cache, call, tmp_path):
    if not transposed:
        for path in (*cache.glob("keys_*"), *cache.glob("text_*")):
            torch.save(torch.load(path).t().contiguous(), path)
    out, names, text = tmp_path / "clip.npz", tmp_path / "names.txt", cache / "text_weights_cupl_t.pt"
    names.write_text("".join(f"{name}\n" for name in NAMES), encoding="utf-8")
    argv = ["--classes", names, "--text", text, "--backbone", "RN50", "--output", out]
    code, _, error = call("import", cache, *argv)
    assert not code, error
    file, arrays = read_feature_file(str(out)), make_arrays()
    assert (file.classnames, file.backbone, file.logit_scale) == (NAMES, "RN50", 100)
    assert file.splits.keys() == {"test", "val", "train4", "train16"}
    for split, (features, labels) in file.splits.items():
        assert np.allclose(features.numpy(), arrays[f"{split}_features"], atol=2e-3)
        assert labels.tolist() == arrays[f"{split}_labels"].tolist()
    assert np.allclose(file.text_features.numpy(), arrays["text_features"], atol=2e-3)


def test_a_cache_that_is_incomplete_or_holds_objects_is_refused(cache, call, tmp_path):
    out = tmp_path / "clip.npz"
    (cache / "values_4shots.pt").unlink()
    code, _, error = call("import", cache, "--output", out)
    assert code == 2
    assert "values_4shots.pt" in error
    for content in (pickle.dumps(print), b"text", pickle.dumps({"a": 1})):
        (cache / "test_f.pt").write_bytes(content)
        code, _, error = call("import", cache, "--output", out)
        assert code == 2
        assert "test_f.pt" in error
    torch.save({"features": torch.ones(2)}, cache / "test_f.pt")
    code, _, error = call("import", cache, "--output", out)
    assert code == 2
    assert "as one tensor" in error
    assert not out.exists()
