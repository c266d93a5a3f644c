"""ImageNette from an archive to class names."""

import io
import re
import shutil
import subprocess
import sys
import tarfile

import pytest

from dassl.utils import file_digest
from tests.common import REPOSITORY, WNIDS
from tools import prepare_imagenette
from tools.fix_imagenet import curated_names
from tools.fix_imagenet import main as fix
from tools.prepare_imagenette import main as prepare

PICTURE = b"no picture, which nobody looks into" * 20


@pytest.fixture
def archive(tmp_path):
    """A function that writes an archive like fast.ai's; returns its path."""

    def write(compression: str = "gz"):
        path = tmp_path / "archive.tar"
        with tarfile.open(path, f"w:{compression}") as tar:
            for place in [f"{split}/{wnid}/{wnid}_0.JPEG" for split in ("train", "val") for wnid in WNIDS]:
                info = tarfile.TarInfo(f"imagenette2-160/{place}")
                info.size = len(PICTURE)
                tar.addfile(info, io.BytesIO(PICTURE))
            tar.addfile(tarfile.TarInfo("imagenette2-160/noisy_imagenette.csv"))
        return path

    return write


def test_an_archive_becomes_a_data_set(archive, tmp_path):
    root = tmp_path / "data"
    assert prepare(["--root", str(root), "--archive", str(archive())]) == 0
    images = sorted(p.relative_to(root / "imagenet/images").as_posix() for p in root.rglob("*.JPEG"))
    assert images == sorted(f"{split}/{wnid}/{wnid}_0.JPEG" for split in ("train", "val") for wnid in WNIDS)
    lines = (root / "imagenet/classnames.txt").read_text().splitlines()
    assert lines == ["n01440764 tench", "n02102040 English Springer Spaniel", "n03028079 church"]


@pytest.mark.parametrize("compression", ["", "gz"])
def test_an_archive_that_is_cut_or_damaged_is_refused_wherever_that_is(archive, tmp_path, capsys, compression):
    """tarfile itself takes a cut between two entries, and rubbish in place of a header, for the end."""
    path, root = archive(compression), tmp_path / "data"
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0"))  # behind it, a tar is filled up
    damaged = [whole[: end * part // 7] for part in range(1, 7)]
    if compression:
        damaged.append(whole[:-12] + b"\0" * 12)
    else:
        block, size = tarfile.BLOCKSIZE, -len(PICTURE) // tarfile.BLOCKSIZE * -tarfile.BLOCKSIZE
        damaged += [whole[: 2 * (block + size)], whole[: block + size + 100]]
        damaged.append(whole[: block + size] + b"x" * block + whole[2 * block + size :])
    for content in damaged:
        path.write_bytes(content)
        assert prepare(["--root", str(root), "--archive", str(path)]) == 2
        assert str(path) in capsys.readouterr().err
        assert not list(root.rglob("*.JPEG"))
    path.write_bytes(whole)
    assert prepare(["--root", str(root), "--archive", str(path)]) == 0


def test_a_second_call_keeps_what_is_there(archive, tmp_path, capsys):
    root = tmp_path / "data"
    prepare(["--root", str(root), "--archive", str(archive())])
    (root / "imagenet/classnames.txt").write_text("mine\n")
    assert prepare(["--root", str(root), "--archive", "absent"]) == 0
    assert "is there already" in capsys.readouterr().out
    assert (root / "imagenet/classnames.txt").read_text() == "mine\n"


def test_an_archive_of_something_else(tmp_path, capsys):
    path = tmp_path / "other.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(REPOSITORY / "LICENSE", "readme/LICENSE")
    assert prepare(["--root", str(tmp_path / "data"), "--archive", str(path)]) == 2
    assert "is it ImageNette?" in capsys.readouterr().err


def test_a_download_is_checked_and_kept(archive, tmp_path, monkeypatch):
    source, asked = archive(), []

    def download(url, path, checksum, algorithm):
        asked.append(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        return shutil.copy(source, path)

    monkeypatch.setattr(prepare_imagenette, "download", download)
    monkeypatch.setitem(prepare_imagenette.ARCHIVES, "160", ("imagenette2-160.tgz", file_digest(source, "md5")))
    for _ in range(2):
        assert prepare_imagenette.fetch(tmp_path / "data", "160").is_file()
    assert asked == ["https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz"]


def test_offline_is_one_message(tmp_path, capsys, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    assert prepare(["--root", str(tmp_path / "data")]) == 2
    assert "cannot download https://s3.amazonaws.com" in capsys.readouterr().err


def test_curated_names_are_clips():
    names = curated_names()
    assert len(names) == 1000
    assert (names["n01440764"], names["n02979186"]) == ("tench", "cassette player")
    assert names["n02012849"] == "crane bird"  # WordNet has two cranes; the curated names tell them apart
    assert names["n03126707"] == "construction crane"


def test_an_existing_file_is_kept_unless_forced_and_unknown_folders_are_listed(imagenet_root, capsys):
    path = imagenet_root / "imagenet/classnames.txt"
    path.write_text("mine\n")
    (imagenet_root / "imagenet/images/train/holiday").mkdir()
    assert fix(["--root", str(imagenet_root)]) == 0
    assert path.read_text() == "mine\n"
    assert fix(["--root", str(imagenet_root), "--force"]) == 0
    assert path.read_text().startswith("n01440764 tench\n")
    assert len(path.read_text().splitlines()) == 3
    assert "Not ImageNet's: holiday." in capsys.readouterr().out


def test_folders_of_something_else_are_refused(tmp_path, capsys):
    assert fix(["--root", str(tmp_path)]) == 2
    assert "no class folders" in capsys.readouterr().err
    (tmp_path / "imagenet/images/train/holiday").mkdir(parents=True)
    assert fix(["--root", str(tmp_path)]) == 2
    assert "none of the class folders is ImageNet's: holiday" in capsys.readouterr().err
    assert not (tmp_path / "imagenet/classnames.txt").exists()


@pytest.mark.parametrize("tool", sorted(p.name for p in (REPOSITORY / "tools").glob("[a-z]*.py")))
def test_every_tool_explains_itself_from_any_folder_without_loading_torch(tool, tmp_path):
    command = [sys.executable, "-X", "importtime", str(REPOSITORY / "tools" / tool), "--help"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"python tools/{tool}" in result.stdout
    assert not re.search(r"\| +torch$", result.stderr, re.MULTILINE)
