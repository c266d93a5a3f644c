"""tools/features.py: what it shows of the features on disk, what it finds damaged, and what it removes."""

import os
import sys
import time

import pytest
import torch

from tools.features import main
from vlm.images.feature_store import FeatureStore

ENCODERS = (
    {"weights": "a1b2c3d4e5f6" + "0" * 52, "precision": "float32", "runtime": "openvino 1.2"},
    {"weights": "f6e5d4c3b2a1" + "0" * 52, "precision": "bf16", "runtime": "torch 2.9"},
)
KEYS = [bytes([i]) * 16 for i in range(5)]


@pytest.fixture
def stores(tmp_path) -> list[FeatureStore]:
    """Two encoders: one file of five features each; a second file of two for the first."""
    made = [FeatureStore(tmp_path / "cache", encoder, 1) for encoder in ENCODERS]
    for store in made:
        store.put(KEYS, torch.randn(5, 8))
    made[0].put(KEYS[:2], torch.randn(2, 8))
    return made


@pytest.fixture
def tool(tmp_path, capsys):
    """Call the tool on the cache; returns the exit code, and what it printed."""

    def call(command, *arguments):
        code = main([command, "--cache-dir", str(tmp_path / "cache"), *arguments])
        return code, "".join(capsys.readouterr())

    return call


def row_of(store: FeatureStore, text: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(store.encoder[:12] + " "))


def files_of(store: FeatureStore) -> list:
    return sorted(store.folder.glob("*.safetensors"))


def test_ls_has_a_row_an_encoder_and_the_total(tool, stores):
    for path in files_of(stores[1]):
        os.utime(path, (time.mktime((2024, 5, 6, 7, 8, 0, 0, 0, -1)),) * 2)
    code, text = tool("ls")
    size = sum(path.stat().st_size for path in files_of(stores[1]))
    assert code == 0
    assert row_of(stores[0], text).split()[1:7] == ["a1b2c3d4e5f6", "float32", "openvino", "1.2", "2", "7"]
    expected = ["f6e5d4c3b2a1", "bf16", "torch", "2.9", "1", "5", f"{size / 1e6:.2f}", "2024-05-06", "07:08"]
    assert row_of(stores[1], text).split()[1:] == expected
    assert text.splitlines()[-1].startswith("total: 3 files, 12 features, ")


@pytest.mark.parametrize("content", [b"\xff{", b"[1, 2]", b'{"weights": 3, "runtime": null}', None])
def test_ls_reads_on_where_a_description_is_damaged(tool, stores, content):
    description = stores[0].folder / "encoder.json"
    description.unlink() if content is None else description.write_bytes(content)
    files_of(stores[0])[0].write_bytes(b"cut")
    code, text = tool("ls")
    assert code == 0
    assert " ? " in row_of(stores[0], text)
    assert "torch 2.9" in row_of(stores[1], text)


def test_verify_reads_everything_and_removes_what_is_damaged(tool, stores):
    assert tool("verify") == (0, "3 files are sound; 0 were damaged and removed\n")
    damaged = files_of(stores[1])[0]
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    code, text = tool("verify")
    assert code == 1
    assert f"{damaged} is damaged" in text
    assert "2 files are sound; 1 were damaged and removed" in text
    assert not damaged.exists()


def test_rm_without_a_name_removes_all_and_runs_go_on(tool, stores, tmp_path):
    (stores[0].folder / f".{files_of(stores[0])[0].name}.k2j3h4").write_bytes(b"left by a killed run")
    assert tool("rm")[0] == 0
    assert list((tmp_path / "cache").iterdir()) == []
    assert tool("ls") == tool("rm") == tool("verify") == (0, f"no features in {tmp_path / 'cache'}\n")
    assert stores[0].get(KEYS) == {}
    with stores[0].locked():
        stores[0].put(KEYS, torch.ones(5, 8))
    assert len(stores[0].get(KEYS)) == 5


def test_rm_of_a_prefix_removes_that_encoder_alone(tool, stores):
    own = stores[0].encoder
    twin = stores[0].root / (own[:-1] + ("0" if own[-1] != "0" else "1"))
    twin.mkdir()
    for prefix, message in (("", 'no encoder begins with ""'), ("no such", "begins"), (own[:-1], "several encoders")):
        code, text = tool("rm", stores[1].encoder[:6], prefix)
        assert code == 2
        assert message in text
        assert own in text
        assert len(stores[1].get(KEYS)) == 5  # nothing is removed
    code, text = tool("rm", own)
    assert code == 0
    assert text.startswith(f"removed 2 files of {own[:12]}; ")
    assert not stores[0].folder.exists()
    assert twin.exists()
    assert len(stores[1].get(KEYS)) == 5


def test_rm_leaves_what_is_not_of_the_cache(tool, stores, tmp_path):
    root = tmp_path / "cache"
    foreign = [root / "mine/model.safetensors", root / "notes.txt", stores[0].folder / "notes.txt"]
    foreign += [root / "mine/encoder.json", stores[0].folder / "deeper/x.safetensors"]
    foreign += [tmp_path / "elsewhere/y.safetensors"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    (root / ("0" * 32)).symlink_to(tmp_path / "elsewhere")
    code, text = tool("rm")
    assert code == 0
    assert f"{stores[0].folder} stays" in text
    assert all(path.read_text() == "mine" for path in foreign)
    assert {path.name for path in stores[0].folder.iterdir()} == {"notes.txt", "deeper"}
    assert not stores[1].folder.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep caches elsewhere")
def test_the_default_is_the_users_cache(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["ls"]) == 0
    assert capsys.readouterr().out == f"no features in {tmp_path / 'coop-dassl' / 'features'}\n"
