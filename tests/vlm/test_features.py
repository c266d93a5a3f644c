"""Features on disk: they come back as they went in, or not at all."""

import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from dassl.utils import UserError
from tests.common import REPOSITORY, assert_same_tensors
from vlm.images.feature_store import FeatureStore, read_shard
from vlm.images.features import SHARD, ImageFeatures

ENCODER = {"weights": "sha", "precision": "float32"}
KEYS = [bytes([i]) * 16 for i in range(5)]
FEATURES = torch.arange(40, dtype=torch.float32).view(5, 8)


def flip(path: Path, part: str) -> None:
    """Flip one bit in the header or in a tensor of a safetensors file."""
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    at = 12 if part == "header" else start + json.loads(content[8:start])[part]["data_offsets"][0]
    content[at] ^= 4
    path.write_bytes(content)


def with_nan(path: Path) -> None:
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    at = start + json.loads(content[8:start])["features"]["data_offsets"][0]
    content[at : at + 4] = struct.pack("<f", float("nan"))
    path.write_bytes(content)


def from_another_encoder(path: Path) -> None:
    """Put the file of the same keys and other features of another encoder in its place."""
    shard = read_shard(path, path.parent.name)
    other = FeatureStore(path.parent.parent, {"weights": "another"}, 1)
    other.put([row.numpy().tobytes() for row in shard.keys], shard.features + 1)
    shutil.copy(other.folder / path.name, path)
    shutil.rmtree(other.folder)


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "cut in its header": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "emptied": lambda path: path.write_bytes(b""),
    "keys": lambda path: flip(path, "keys"),
    "features": lambda path: flip(path, "features"),
    "checksum": lambda path: flip(path, "checksum"),
    "header": lambda path: flip(path, "header"),
    "deleted": Path.unlink,
    "with a NaN": with_nan,
    "another encoder's": from_another_encoder,
}


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path, ENCODER, 1)


def files(store: FeatureStore) -> list[Path]:
    return sorted(store.folder.glob("*.safetensors"))


def same(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


def test_features_come_back_as_they_went_in(store, tmp_path):
    assert store.get(KEYS) == {}
    store.put(KEYS, FEATURES)
    assert same(store.get(KEYS), dict(zip(KEYS, FEATURES, strict=True)))
    assert same(store.get([KEYS[3], b"?" * 16]), {KEYS[3]: FEATURES[3]})
    assert json.loads((store.folder / "encoder.json").read_text()) == ENCODER
    half = FeatureStore(tmp_path, {"weights": "half"}, 1)
    half.put(KEYS, FEATURES.bfloat16())
    assert half.get(KEYS)[KEYS[1]].dtype == torch.bfloat16


def test_another_process_sees_what_one_wrote_and_another_encoder_does_not(store, tmp_path):
    beside = FeatureStore(tmp_path, dict(reversed(ENCODER.items())), 1)
    assert beside.get(KEYS) == {}
    store.put(KEYS, FEATURES)
    assert len(beside.get(KEYS)) == len(FeatureStore(tmp_path, ENCODER, 1).get(KEYS)) == 5
    for other in ({**ENCODER, "weights": "other"}, {**ENCODER, "precision": "bf16"}, {**ENCODER, "threads": 1}):
        assert FeatureStore(tmp_path, other, 1).get(KEYS) == {}


@pytest.mark.parametrize("known", [True, False], ids=["known", "found"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_removed_and_never_used(store, tmp_path, damage, known):
    store.put(KEYS, FEATURES)
    DAMAGES[damage](files(store)[0])
    reader = store if known else FeatureStore(tmp_path, ENCODER, 1)
    assert reader.get(KEYS) == {}
    assert files(reader) == []
    reader.put(KEYS, FEATURES)
    assert len(reader.get(KEYS)) == 5


def test_no_changed_byte_goes_unnoticed(store):
    store.put(KEYS, FEATURES)
    path = files(store)[0]
    content = path.read_bytes()
    assert read_shard(path, store.encoder) is not None
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        shard = read_shard(path, store.encoder)
        assert shard is None or torch.equal(shard.features, FEATURES), at
        assert path.exists() == (shard is not None)


def test_a_file_under_another_name_gives_its_own_features(store, tmp_path):
    store.put(KEYS[:2], FEATURES[:2])
    (first,) = files(store)
    store.put(KEYS[2:], FEATURES[2:])
    (second,) = set(files(store)) - {first}
    first.replace(second)
    for reader in (store, FeatureStore(tmp_path, ENCODER, 1)):
        found = reader.get(KEYS)
        assert same(found, {key: FEATURES[KEYS.index(key)] for key in found})
        assert not set(found) & set(KEYS[2:])


def test_the_least_recently_used_files_go_first(store, tmp_path):
    other = FeatureStore(tmp_path, {"weights": "other"}, 1)
    stores = [other, store, store]
    for number, (key, where) in enumerate(zip(KEYS, stores, strict=False)):
        where.put([key], FEATURES[:1])
        for path in set(files(where)) - {where._where[key] for key in KEYS[:number] if key in where._where}:
            os.utime(path, (number + 1, number + 1))
    assert len(other.get(KEYS[:1])) == 1  # the oldest file, used now
    small = FeatureStore(tmp_path, ENCODER, 3.5 * files(store)[0].stat().st_size / 1e9)
    foreign = tmp_path / "weights" / "model.safetensors"
    foreign.parent.mkdir()
    foreign.write_bytes(b"not of the cache" * 1000)
    os.utime(foreign, (0, 0))
    small.put([KEYS[3]], FEATURES[:1])
    assert set(small.get(KEYS)) == {KEYS[2], KEYS[3]}
    assert len(other.get(KEYS[:1])) == 1
    assert foreign.exists()


WORKER = """
import random, sys, time
from pathlib import Path
import torch
from vlm.images.feature_store import FeatureStore
root, number = Path(sys.argv[1]), sys.argv[2]
Path(root, "ready" + number).touch()
while len(list(root.glob("ready*"))) < 2:
    time.sleep(0.01)
rng = random.Random(number)
for _ in range(60):
    store = FeatureStore(root, {}, 8e-6)  # room for some of the files
    keys = rng.sample([bytes([i]) * 16 for i in range(50)], 8)
    found = store.get(keys)
    assert all(torch.equal(feature, torch.full((16,), float(key[0]))) for key, feature in found.items())
    if missing := [key for key in keys if key not in found]:
        store.put(missing, torch.tensor([[float(key[0])] * 16 for key in missing]))
"""


def test_two_processes_write_and_read_at_once(tmp_path):
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    processes = [
        subprocess.Popen([*command, str(i)], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs == ["", ""]  # nobody found a damaged file


class Sums:
    """An encoder that adds up an image, and counts."""

    def __init__(self):
        self.count = 0

    def encode(self, images):
        for image in images:
            self.count += 1
            time.sleep(0.001)
            yield image.sum().view(1)


def requests(numbers) -> list:
    def make(number):
        time.sleep(0.002 * (number % 3))  # they are not ready in the order of the requests
        return torch.full((3, 2, 2), float(number))

    return [(number.to_bytes(16, "little"), lambda number=number: make(number)) for number in numbers]


@pytest.mark.parametrize("threads", [1, 4])
def test_each_request_gets_its_own_feature_in_order(store, threads):
    encoder = Sums()
    features = ImageFeatures(encoder, store)
    numbers = [*range(100, 0, -1), 7, 7]
    assert features(requests(numbers), threads).flatten().tolist() == [12.0 * n for n in numbers]
    assert encoder.count == 100
    assert features(requests(range(130)), threads).flatten().tolist() == [12.0 * n for n in range(130)]
    assert encoder.count == 130
    assert ImageFeatures(encoder)(requests(range(5)), threads).flatten().tolist() == [0, 12, 24, 36, 48]


def test_who_waits_for_another_does_not_compute_the_same_again(tmp_path):
    encoders, results = [Sums(), Sums()], [None, None]

    def work(number):
        features = ImageFeatures(encoders[number], FeatureStore(tmp_path, ENCODER, 1))
        results[number] = features(requests(range(50)), 2)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(encoder.count for encoder in encoders) == [0, 50]
    assert torch.equal(*results)


def test_many_features_are_kept_while_more_are_computed(store, monkeypatch):
    monkeypatch.setattr("vlm.images.features.SHARD", 16)
    ImageFeatures(Sums(), store)(requests(range(40)))
    assert len(files(store)) == 3
    assert SHARD >= 64  # few files


def test_a_full_disk_does_not_stop_a_run(store, monkeypatch, capsys):
    def full(*_):
        raise UserError("cannot write: No space left on device")

    monkeypatch.setattr(store, "put", full)
    assert ImageFeatures(Sums(), store)(requests(range(3))).flatten().tolist() == [0, 12, 24]
    assert "features are not kept from here on: cannot write: No space left" in capsys.readouterr().out


RANDOM = ("INPUT.TRANSFORMS", "('random_resized_crop','random_flip','normalize')")


@pytest.mark.parametrize("transforms", [(), RANDOM], ids=["plain", "random"])
def test_a_run_is_the_same_with_or_without_cache_and_after_any_damage(run, tmp_path, transforms):
    root = tmp_path / "cache"
    settings = ("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 2, "FEATURES.CACHE_DIR", root, *transforms)

    def lines(result):
        assert result.code == 0, result.error
        return [line for line in result.log.splitlines() if line.startswith("* ") or " is damaged" in line]

    first = run(*settings, out="first")
    expected = lines(first)
    assert len(expected) == 5
    for name in ("second", *DAMAGES):
        stored = list(root.glob("*/*.safetensors"))
        assert stored
        if name in DAMAGES:
            for path in stored:
                DAMAGES[name](path)
        result = run(*settings, out=name)
        notes = [line for line in lines(result) if " is damaged" in line]
        assert len(notes) == (0 if name in ("second", "deleted") else len(stored)), name
        assert [line for line in lines(result) if line not in notes] == expected, name
        assert_same_tensors(first.checkpoint(2), result.checkpoint(2))
    shutil.rmtree(root)
    without = run(*settings, "FEATURES.ENABLED", False, out="without")
    assert lines(without) == expected
    assert_same_tensors(first.checkpoint(2), without.checkpoint(2))
    assert not root.exists()
