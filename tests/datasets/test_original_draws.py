"""Few shots are those that CoOp's code draws from three of its data sets, for seeds 1 to 3 and 1 to 16 shots."""

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
    """Return a data root with split files that list as many images of each class as the data sets have.

    Images are named by split and position.
    """
    root = tmp_path_factory.mktemp("data")
    for name, draw in DRAWS.items():
        cls, content = DATASET_REGISTRY.get(name), {"test": [["test/0", 0, "class 0"]]}
        for split, counts in draw["counts"].items():
            labels = [label for label, count in enumerate(counts) for _ in range(count)]
            content[split] = [[f"{split}/{i}", label, f"class {label}"] for i, label in enumerate(labels)]
        (root / cls.dataset_dir / cls.images).mkdir(parents=True)
        cls.split_path(root).write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(("name", "key"), [(name, key) for name in DRAWS for key in DRAWS[name]["checksums"]])
def test_the_drawn_images_and_their_order_are_those_of_coops_code(root, name, key, monkeypatch):
    monkeypatch.setattr("datasets.split_file.check_images_exist", lambda *_: None)
    seed, shots = map(int, re.findall(r"\d+", key))
    cfg = config(root, name, NUM_SHOTS=shots)
    cfg.SEED = seed
    dataset = build_dataset(cfg)
    splits = {"train": dataset.train_x, "val": dataset.val}
    drawn = {split: checksum(Path(item.impath).name for item in items) for split, items in splits.items()}
    assert drawn == DRAWS[name]["checksums"][key]
