"""tools/prepare_imagenette.py and tools/fix_imagenet.py; the help of every tool."""

import io
import re
import subprocess
import sys
import tarfile
from unittest.mock import Mock

import pytest

from dassl.utils import file_digest
from tests.common import REPOSITORY, WNIDS
from tools import prepare_imagenette
from tools.fix_imagenet import load_imagenet_names
from tools.fix_imagenet import main as fix
from tools.prepare_imagenette import main as prepare

CONTENT = b"not an image, since no test reads it" * 20


@pytest.fixture
def archive(tmp_path):
    """Return a function that writes an archive like fast.ai's and returns its path."""

    def write(compression: str = "gz"):
        path = tmp_path / "archive.tar"
        with tarfile.open(path, f"w:{compression}") as tar:
            for name in [f"{split}/{wnid}/{wnid}_0.JPEG" for split in ("train", "val") for wnid in WNIDS]:
                info = tarfile.TarInfo(f"imagenette2-160/{name}")
                info.size = len(CONTENT)
                tar.addfile(info, io.BytesIO(CONTENT))
            tar.addfile(tarfile.TarInfo("imagenette2-160/noisy_imagenette.csv"))
        return path

    return write


def test_an_archive_becomes_a_data_set_which_a_second_call_leaves_as_it_is(archive, tmp_path):
    root = tmp_path / "data"
    assert prepare(["--root", str(root), "--archive", str(archive())]) == 0
    images = sorted(p.relative_to(root / "imagenet/images").as_posix() for p in root.rglob("*.JPEG"))
    assert images == sorted(f"{split}/{wnid}/{wnid}_0.JPEG" for split in ("train", "val") for wnid in WNIDS)
    names = root / "imagenet/classnames.txt"
    assert names.read_text() == "n01440764 tench\nn02102040 English Springer Spaniel\nn03028079 church\n"
    names.write_text("mine\n")
    assert prepare(["--root", str(root), "--archive", "absent"]) == 0
    assert names.read_text() == "mine\n"


@pytest.mark.parametrize("compression", ["", "gz"])
def test_a_truncated_or_damaged_archive_is_refused_wherever_the_damage_is(archive, tmp_path, capsys, compression):
    """tarfile itself takes a cut between two entries, or random bytes in place of a header, for the end."""
    path, root = archive(compression), tmp_path / "data"
    intact = path.read_bytes()
    end = len(intact.rstrip(b"\0"))  # a tar ends in zeros
    damaged = [intact[: end * sevenths // 7] for sevenths in range(1, 7)]
    if compression:
        damaged.append(intact[:-12] + b"\0" * 12)
    else:
        block, size = tarfile.BLOCKSIZE, -len(CONTENT) // tarfile.BLOCKSIZE * -tarfile.BLOCKSIZE
        damaged += [intact[: 2 * (block + size)], intact[: block + size + 100]]
        damaged.append(intact[: block + size] + b"x" * block + intact[2 * block + size :])
    for content in damaged:
        path.write_bytes(content)
        assert prepare(["--root", str(root), "--archive", str(path)]) == 2
        assert str(path) in capsys.readouterr().err
        assert not list(root.rglob("*.JPEG"))
    path.write_bytes(intact)
    assert prepare(["--root", str(root), "--archive", str(path)]) == 0


def test_an_archive_without_imagenette_is_refused(tmp_path, capsys):
    path = tmp_path / "other.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(REPOSITORY / "LICENSE", "readme/LICENSE")
    assert prepare(["--root", str(tmp_path / "data"), "--archive", str(path)]) == 2
    assert "is it ImageNette?" in capsys.readouterr().err


def test_without_a_network_the_download_fails_and_an_earlier_one_is_used(archive, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", Mock(side_effect=OSError("no network")))
    assert prepare(["--root", str(tmp_path)]) == 2
    address = "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz"
    assert f"cannot download {address} (no network)" in capsys.readouterr().err
    path = archive()
    monkeypatch.setitem(prepare_imagenette.ARCHIVES, "160", (path.name, file_digest(path, "md5")))
    assert prepare(["--root", str(tmp_path)]) == 0


def test_imagenet_classes_have_the_names_of_clips_authors():
    names = load_imagenet_names()
    assert len(names) == 1000
    assert (names["n01440764"], names["n02979186"]) == ("tench", "cassette player")
    assert (
        names["n02012849"] == "crane bird"
    )  # WordNet has two classes "crane"; CLIP's authors gave them different names
    assert names["n03126707"] == "construction crane"


def test_an_existing_file_stays_unless_forced_and_unknown_folders_are_listed(imagenet_root, capsys):
    path = imagenet_root / "imagenet/classnames.txt"
    path.write_text("mine\n")
    (imagenet_root / "imagenet/images/train/holiday").mkdir()
    assert fix(["--root", str(imagenet_root)]) == 0
    assert path.read_text() == "mine\n"
    assert fix(["--root", str(imagenet_root), "--force"]) == 0
    assert path.read_text().startswith("n01440764 tench\n")
    assert len(path.read_text().splitlines()) == 3
    assert "Not ImageNet's: holiday." in capsys.readouterr().out


def test_a_root_without_imagenets_class_folders_is_refused(tmp_path, capsys):
    assert fix(["--root", str(tmp_path)]) == 2
    assert "no class folders" in capsys.readouterr().err
    (tmp_path / "imagenet/images/train/holiday").mkdir(parents=True)
    assert fix(["--root", str(tmp_path)]) == 2
    assert "none of the class folders is ImageNet's: holiday" in capsys.readouterr().err
    assert not (tmp_path / "imagenet/classnames.txt").exists()


@pytest.mark.parametrize("tool", sorted(p.name for p in (REPOSITORY / "tools").glob("[a-z]*.py")))
def test_every_tool_prints_its_help_from_any_folder_without_importing_torch(tool, tmp_path):
    command = [sys.executable, "-X", "importtime", str(REPOSITORY / "tools" / tool), "--help"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"python tools/{tool}" in result.stdout
    assert not re.search(r"\| +torch$", result.stderr, re.MULTILINE)
