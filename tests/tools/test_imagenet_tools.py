"""ImageNette from an archive to class names."""

import io
import subprocess
import sys
import tarfile

import pytest
from PIL import Image

from tests.common import REPOSITORY, WNIDS
from tools import prepare_imagenette
from tools.fix_imagenet import curated_names
from tools.fix_imagenet import main as fix
from tools.prepare_imagenette import main as prepare


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def archive(tmp_path):
    """A function that writes an archive like fast.ai's, with more entries if given."""

    def write(*extra: tarfile.TarInfo, top="imagenette2-160"):
        path = tmp_path / "archive.tgz"
        with tarfile.open(path, "w:gz") as tar:
            names = [f"{top}/{split}/{wnid}/{wnid}_0.JPEG" for split in ("train", "val") for wnid in WNIDS]
            for name in [*names, f"{top}/noisy_imagenette.csv"]:
                info = tarfile.TarInfo(name)
                info.size = len(picture())
                tar.addfile(info, io.BytesIO(picture()))
            for info in extra:
                tar.addfile(info, io.BytesIO(b"x" * info.size))
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
def test_an_archive_that_is_cut_or_damaged_is_refused_wherever_that_is(tmp_path, capsys, compression):
    """tarfile itself takes a cut between two entries, and rubbish in place of a header, for the end."""
    path = tmp_path / "archive.tar"
    with tarfile.open(path, f"w:{compression}") as tar:
        for split in ("train", "val"):
            for wnid in WNIDS:
                info = tarfile.TarInfo(f"imagenette/{split}/{wnid}/{wnid}_0.JPEG")
                info.size = len(picture())
                tar.addfile(info, io.BytesIO(picture()))
    whole = path.read_bytes()
    cuts = [whole[: len(whole) * part // 7] for part in range(1, 7)]
    if not compression:
        block, size = tarfile.BLOCKSIZE, -len(picture()) // tarfile.BLOCKSIZE * -tarfile.BLOCKSIZE
        cuts = [whole[: 2 * (block + size)], whole[: block + size + 100]]
        cuts.append(whole[: block + size] + b"x" * block + whole[2 * block + size :])
    for damaged in [*cuts, whole[:-12] + b"\0" * 12 if compression else cuts[0]]:
        path.write_bytes(damaged)
        assert prepare(["--root", str(tmp_path / "data"), "--archive", str(path)]) == 2
        assert str(path) in capsys.readouterr().err
        assert not (tmp_path / "data/imagenet/images").exists()
    path.write_bytes(whole)
    assert prepare(["--root", str(tmp_path / "data"), "--archive", str(path)]) == 0


def test_a_second_call_keeps_what_is_there(archive, tmp_path, capsys):
    root = tmp_path / "data"
    prepare(["--root", str(root), "--archive", str(archive())])
    (root / "imagenet/classnames.txt").write_text("mine\n")
    assert prepare(["--root", str(root), "--archive", "absent"]) == 0
    assert "is there already" in capsys.readouterr().out
    assert (root / "imagenet/classnames.txt").read_text() == "mine\n"


def entry(name: str, **values) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in values.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    "bad",
    [
        entry("imagenette2-160/train/../../../evil.JPEG"),
        entry("/train/n01440764/evil.JPEG"),
        entry("imagenette2-160/train/n01440764/evil.JPEG", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        entry("imagenette2-160/train/n01440764/evil.JPEG", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
        entry("imagenette2-160/train/n01440764/evil.JPEG", type=tarfile.FIFOTYPE),
    ],
)
def test_a_hostile_entry_is_refused_by_name(archive, tmp_path, capsys, bad):
    root = tmp_path / "data"
    assert prepare(["--root", str(root), "--archive", str(archive(bad))]) == 2
    assert bad.name in capsys.readouterr().err
    assert not (root / "imagenet/images").exists()
    assert not list(tmp_path.rglob("evil*"))


def test_a_truncated_archive_leaves_nothing(archive, tmp_path, capsys):
    path = archive()
    path.write_bytes(path.read_bytes()[:-200])
    assert prepare(["--root", str(tmp_path / "data"), "--archive", str(path)]) == 2
    assert "is not a whole tar archive" in capsys.readouterr().err
    assert not list((tmp_path / "data").rglob("*.JPEG"))


def test_an_archive_of_something_else(tmp_path, capsys):
    path = tmp_path / "other.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(REPOSITORY / "LICENSE", "readme/LICENSE")
    assert prepare(["--root", str(tmp_path / "data"), "--archive", str(path)]) == 2
    assert "is it ImageNette?" in capsys.readouterr().err


def test_a_download_is_checked_and_kept(archive, tmp_path, monkeypatch):
    from dassl.utils import file_digest

    source, calls = archive(), []

    def download(url, path, checksum, algorithm):
        calls.append((url, checksum, algorithm))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read_bytes())
        return path

    monkeypatch.setattr(prepare_imagenette, "download", download)
    monkeypatch.setitem(prepare_imagenette.ARCHIVES, "160", ("imagenette2-160.tgz", file_digest(source, "md5")))
    for _ in range(2):
        assert prepare_imagenette.fetch(tmp_path / "data", "160").is_file()
    assert len(calls) == 1
    assert calls[0][0] == "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz"


def test_offline_is_one_message(tmp_path, capsys, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    assert prepare(["--root", str(tmp_path / "data")]) == 2
    assert "cannot download https://s3.amazonaws.com" in capsys.readouterr().err


def test_curated_names_are_clips():
    names = curated_names()
    assert len(names) == 1000
    expected = {"n01440764": "tench", "n02979186": "cassette player", "n03394916": "French horn"}
    assert {wnid: names[wnid] for wnid in expected} == expected
    assert names["n02012849"] == "crane bird"  # WordNet has two cranes; the curated names tell them apart
    assert names["n03126707"] == "construction crane"


def test_an_existing_file_is_kept_unless_forced(imagenet_root):
    path = imagenet_root / "imagenet/classnames.txt"
    path.write_text("mine\n")
    assert fix(["--root", str(imagenet_root)]) == 0
    assert path.read_text() == "mine\n"
    assert fix(["--root", str(imagenet_root), "--force"]) == 0
    assert path.read_text().startswith("n01440764 tench\n")


def test_unknown_folders_are_listed(imagenet_root, capsys):
    (imagenet_root / "imagenet/images/train/holiday").mkdir()
    assert fix(["--root", str(imagenet_root), "--force"]) == 0
    assert "Not ImageNet's: holiday." in capsys.readouterr().out
    assert len((imagenet_root / "imagenet/classnames.txt").read_text().splitlines()) == 3
    assert fix(["--root", str(imagenet_root / "nowhere")]) == 2
    assert "no class folders" in capsys.readouterr().err


def test_folders_of_something_else_are_refused(tmp_path, capsys):
    (tmp_path / "imagenet/images/train/holiday").mkdir(parents=True)
    assert fix(["--root", str(tmp_path)]) == 2
    assert "none of the class folders is ImageNet's: holiday" in capsys.readouterr().err
    assert not (tmp_path / "imagenet/classnames.txt").exists()


@pytest.mark.parametrize("tool", sorted(p.name for p in (REPOSITORY / "tools").glob("[a-z]*.py")))
def test_every_tool_explains_itself_from_any_folder(tool, tmp_path):
    command = [sys.executable, str(REPOSITORY / "tools" / tool), "--help"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"python tools/{tool}" in result.stdout
