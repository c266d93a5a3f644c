"""The few shots that the original draws from three of the papers' data sets, for seeds 1 to 3 and 1 to 16 shots."""

import json
import re
from pathlib import Path

import pytest

from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from tests.datasets.shapes import config
from tests.fixtures.make_parity import FOLDER, checksum

DRAWS = json.loads((FOLDER / "parity.json").read_text())["draws"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Split files with as many images of each class as the data sets have; they are named by their places there."""
    root = tmp_path_factory.mktemp("data")
    for name, figures in DRAWS.items():
        data_set, split = DATASET_REGISTRY.get(name), {"test": [["test/0", 0, "class 0"]]}
        for part, counts in figures["counts"].items():
            labels = [label for label, count in enumerate(counts) for _ in range(count)]
            split[part] = [[f"{part}/{place}", label, f"class {label}"] for place, label in enumerate(labels)]
        (root / data_set.dataset_dir / data_set.images).mkdir(parents=True)
        data_set.split_path(root).write_text(json.dumps(split))
    return root


@pytest.mark.parametrize(("name", "key"), [(name, key) for name in DRAWS for key in DRAWS[name]["checksums"]])
def test_they_are_drawn_in_that_order(root, name, key, monkeypatch):
    monkeypatch.setattr("datasets.split_file.check_images_exist", lambda *_: None)
    seed, shots = map(int, re.findall(r"\d+", key))
    cfg = config(root, name, NUM_SHOTS=shots)
    cfg.SEED = seed
    dataset = build_dataset(cfg)
    splits = {"train": dataset.train_x, "val": dataset.val}
    drawn = {part: checksum(Path(item.impath).name for item in items) for part, items in splits.items()}
    assert drawn == DRAWS[name]["checksums"][key]
