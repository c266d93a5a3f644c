"""Cached features are used again only for images, preprocessing and weights that are unchanged."""

from PIL import Image
from safetensors.torch import save_file

from tests.common import REPOSITORY, assert_same_tensors
from vlm.images.extractor import CachedFeatureExtractor
from vlm.tiny.weights import load_tiny


def test_only_images_with_a_change_are_encoded_again(run, imagenet_root, tmp_path, monkeypatch):
    counts, extract = [], CachedFeatureExtractor._extract

    def counting(self, requests, *args):
        counts.append(len(requests))
        return extract(self, requests, *args)

    monkeypatch.setattr(CachedFeatureExtractor, "_extract", counting)
    base = imagenet_root / "imagenet"
    images = {split: sorted(base.glob(f"images/{split}/*/*.JPEG")) for split in ("train", "val")}
    names = base / "classnames.txt"
    weights = {name: tensor.clone() for name, tensor in load_tiny().items()}
    weights["visual.attnpool.c_proj.weight"] *= 1.5
    save_file(weights, tmp_path / "other.safetensors")

    def move() -> None:  # into the test split, which has another transform
        images["train"][0].rename(images["val"][0].with_name("moved.JPEG"))

    def repaint() -> None:
        Image.new("RGB", (40, 30), "red").save(images["train"][1])

    changes = {  # change -> function, overrides, encoded images; at first 15 for training and 6 for testing
        "nothing": (lambda: None, (), 21),
        "class name": (lambda: names.write_text(names.read_text().replace("tench", "trench")), (), 0),
        "split": (move, (), 1),
        "image": (repaint, (), 1),
        "preprocessing": (lambda: None, ("INPUT.INTERPOLATION", "nearest"), 21),
        "weights": (lambda: None, ("MODEL.BACKBONE.WEIGHTS", tmp_path / "other.safetensors"), 21),
    }
    for name, (change, overrides, encoded) in changes.items():
        change()
        arguments = ("--root", imagenet_root, "--dataset-config-file", REPOSITORY / "configs/datasets/imagenet.yaml")
        arguments += ("DATASET.NUM_SHOTS", 5, "OPTIM.MAX_EPOCH", 1)
        arguments += ("FEATURES.CACHE_DIR", tmp_path / "cache", *overrides)
        counts.clear()
        cached = run(*arguments, out=f"{name} cached")
        assert cached.code == 0, cached.error
        assert sum(counts) == encoded, name
    plain = run(*arguments, "FEATURES.ENABLED", False, out="plain")
    assert cached.accuracy == plain.accuracy
    assert_same_tensors(cached.checkpoint(1), plain.checkpoint(1))
