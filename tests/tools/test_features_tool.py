"""tools/features.py: ls, verify and rm of the feature cache."""

import os
import sys
import time

import pytest
import torch

from tests.common import IS_WINDOWS
from tools.features import main
from vlm.images.feature_store import FeatureStore

ENCODERS = (
    {"weights": "a1b2c3d4e5f6" + "0" * 52, "precision": "float32", "runtime": "openvino 1.2"},
    {"weights": "f6e5d4c3b2a1" + "0" * 52, "precision": "bf16", "runtime": "torch 2.9"},
)
KEYS = [bytes([i]) * 16 for i in range(5)]


@pytest.fixture
def stores(tmp_path) -> list[FeatureStore]:
    """Return the feature stores of two encoders: five features in one file each, and a second file with two."""
    stores = [FeatureStore(tmp_path / "cache", encoder, 1) for encoder in ENCODERS]
    for store in stores:
        store.put(KEYS, torch.randn(5, 8))
    stores[0].put(KEYS[:2], torch.randn(2, 8))
    return stores


@pytest.fixture
def tool(tmp_path, capsys):
    """Return a function that calls the tool on the feature cache and returns its exit code and output."""

    def call(command, *arguments):
        code = main([command, "--cache-dir", str(tmp_path / "cache"), *arguments])
        return code, "".join(capsys.readouterr())

    return call


def find_row(store: FeatureStore, text: str) -> str:
    """Return the line of the table ``text`` for the encoder of ``store``."""
    return next(line for line in text.splitlines() if line.startswith(store.encoder[:12] + " "))


def list_files(store: FeatureStore) -> list:
    """Return the paths of the feature files of ``store``, sorted."""
    return sorted(store.folder.glob("*.safetensors"))


def test_ls_prints_a_row_for_each_encoder_and_the_total(tool, stores):
    for path in list_files(stores[1]):
        os.utime(path, (time.mktime((2024, 5, 6, 7, 8, 0, 0, 0, -1)),) * 2)
    code, text = tool("ls")
    size = sum(path.stat().st_size for path in list_files(stores[1]))
    assert code == 0
    assert find_row(stores[0], text).split()[1:7] == ["a1b2c3d4e5f6", "float32", "openvino", "1.2", "2", "7"]
    expected = ["f6e5d4c3b2a1", "bf16", "torch", "2.9", "1", "5", f"{size / 1e6:.2f}", "2024-05-06", "07:08"]
    assert find_row(stores[1], text).split()[1:] == expected
    assert text.splitlines()[-1].startswith("total: 3 files, 12 features, ")


@pytest.mark.parametrize("content", [b"\xff{", b"[1, 2]", b'{"weights": 3, "runtime": null}', None])
def test_ls_lists_an_encoder_whose_description_is_damaged(tool, stores, content):
    description = stores[0].folder / "encoder.json"
    description.unlink() if content is None else description.write_bytes(content)
    list_files(stores[0])[0].write_bytes(b"cut")
    code, text = tool("ls")
    assert code == 0
    assert " ? " in find_row(stores[0], text)
    assert "torch 2.9" in find_row(stores[1], text)


def test_verify_reads_every_file_and_removes_damaged_ones(tool, stores):
    assert tool("verify") == (0, "3 files are sound; 0 were damaged and removed\n")
    damaged = list_files(stores[1])[0]
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    code, text = tool("verify")
    assert code == 1
    assert f"{damaged} is damaged" in text
    assert "2 files are sound; 1 were damaged and removed" in text
    assert not damaged.exists()


def test_rm_without_a_name_removes_all_features_and_stores_stay_usable(tool, stores, tmp_path):
    (stores[0].folder / f".{list_files(stores[0])[0].name}.k2j3h4").write_bytes(b"left by a killed run")
    assert tool("rm")[0] == 0
    assert list((tmp_path / "cache").iterdir()) == []
    assert tool("ls") == tool("rm") == tool("verify") == (0, f"no features in {tmp_path / 'cache'}\n")
    assert stores[0].get(KEYS) == {}
    with stores[0].locked():
        stores[0].put(KEYS, torch.ones(5, 8))
    assert len(stores[0].get(KEYS)) == 5


def test_rm_with_a_prefix_removes_only_that_encoder(tool, stores):
    name = stores[0].encoder
    similar_folder = stores[0].root / (name[:-1] + ("0" if name[-1] != "0" else "1"))
    similar_folder.mkdir()
    for prefix, message in (("", 'no encoder begins with ""'), ("no such", "begins"), (name[:-1], "several encoders")):
        code, text = tool("rm", stores[1].encoder[:6], prefix)
        assert code == 2
        assert message in text
        assert name in text
        assert len(stores[1].get(KEYS)) == 5  # nothing is removed
    code, text = tool("rm", name)
    assert code == 0
    assert text.startswith(f"removed 2 files of {name[:12]}; ")
    assert not stores[0].folder.exists()
    assert similar_folder.exists()
    assert len(stores[1].get(KEYS)) == 5


def test_rm_leaves_files_that_are_not_features(tool, stores, tmp_path):
    root = tmp_path / "cache"
    user_files = [root / "mine/model.safetensors", root / "notes.txt", stores[0].folder / "notes.txt"]
    user_files += [root / "mine/encoder.json", stores[0].folder / "deeper/x.safetensors"]
    user_files += [tmp_path / "elsewhere/y.safetensors"]
    for path in user_files:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    if not IS_WINDOWS:
        (root / ("0" * 32)).symlink_to(tmp_path / "elsewhere")
    code, text = tool("rm")
    assert code == 0
    assert f"{stores[0].folder} stays" in text
    assert all(path.read_text() == "mine" for path in user_files)
    assert {path.name for path in stores[0].folder.iterdir()} == {"notes.txt", "deeper"}
    assert not stores[1].folder.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep caches elsewhere")
def test_without_cache_dir_the_users_cache_folder_is_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["ls"]) == 0
    assert capsys.readouterr().out == f"no features in {tmp_path / 'coop-dassl' / 'features'}\n"
