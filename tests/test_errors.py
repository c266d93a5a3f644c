"""A mistake ends in one message that names the thing and the mend, exit code 2, and nothing lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch

from tests.common import REPOSITORY, WNIDS

SHORT = ("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1)


def refused(result, *parts: object) -> None:
    assert result.code == 2
    assert result.error.count("error: ") == 1
    assert "Traceback" not in result.error
    for part in parts:
        assert str(part) in result.error


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["TRAINER.NAME", "CoOpp"], ['unknown trainer "CoOpp"', 'did you mean "CoOp"?']),
        (["DATASET.NAME", "Digit"], ['unknown dataset "Digit"', 'did you mean "Digits"?']),
        (["MODEL.BACKBONE.NAME", "RN5O"], ['"RN5O"', 'did you mean "RN50"?', "ViT-L/14@336px", "tiny"]),
        (["TRAINER.COOP.NCTX", "4"], ['unknown config key "TRAINER.COOP.NCTX"', 'did you mean "TRAINER.COOP.N_CTX"?']),
        (["OPTIM.LR", "None"], ["OPTIM.LR", "a number", "'None'"]),
        (["INPUT.TRANSFORMS", "(1,)"], ["INPUT.TRANSFORMS", '"1"']),
        (["INPUT.SIZE", "(32,)"], ["INPUT.SIZE is (32,)"]),
        (["INPUT.GB_K", "2"], ["INPUT keys do not suit"]),
        (["TRAINER.COOP.CTX_INIT", "_"], ["CTX_INIT", "no words"]),
        (["OPTIM.LR", "fast"], ["OPTIM.LR", "a number", "'fast'"]),
        (["DATASET.NUM_SHOTS", "2.5"], ["DATASET.NUM_SHOTS", "a whole number"]),
        (["OPTIM.LR"], ["KEY VALUE", '"OPTIM.LR"']),
        (["OPTIM.NAME", "sdg"], ["OPTIM.NAME", 'did you mean "sgd"?']),
        (["OPTIM.LR_SCHEDULER", "cosin"], ['did you mean "cosine"?']),
        (["OPTIM.MAX_EPOCH", "0"], ["OPTIM.MAX_EPOCH is 0"]),
        (["TRAINER.COOP.PREC", "fp8"], ["TRAINER.COOP.PREC", "fp16"]),
        (["TRAINER.COOP.CLASS_TOKEN_POSITION", "back"], ["end, front, middle"]),
        (["TRAINER.COOP.N_CTX", "0"], ["TRAINER.COOP.N_CTX is 0"]),
        (["TRAINER.COOP.N_CTX", "80"], ["has 84 tokens", "77 tokens", "zero."]),
        (["DATASET", "4"], ["DATASET in the command line is a group of keys", "NUM_SHOTS"]),
        (["TRAINER.NAME", ""], ["no trainer is given", "CoOp"]),
        (["SEED", "9" * 20], ["seed 99999999999999999999 is too large"]),
        (["OPTIM.LR", "-1"], ["OPTIM keys do not suit sgd", "learning rate"]),
        (["OPTIM.STEPSIZE", "()"], ["OPTIM.STEPSIZE is ()"]),
        (["OPTIM.LR", "1e30", "OPTIM.MAX_EPOCH", "3"], ["infinite or NaN", "epoch 3", "OPTIM.LR"]),
        (["TRAIN.PRINT_FREQ", "0"], ["TRAIN.PRINT_FREQ is 0"]),
        (["TEST.SPLIT", "tset"], ['no split "tset"', "val, test"]),
        (["TEST.FINAL_MODEL", "best"], ["TEST.FINAL_MODEL", "best_val"]),
        (["DATALOADER.NUM_WORKERS", "-1"], ["DATALOADER.NUM_WORKERS is -1"]),
        (["DATALOADER.K_TRANSFORMS", "0"], ["DATALOADER.K_TRANSFORMS is 0"]),
        (["DATALOADER.K_TRANSFORMS", "2"], ["CoOp trains on one view"]),
        (["INPUT.PIXEL_STD", "[0, 0, 0]"], ["INPUT.PIXEL_MEAN", "[0, 0, 0]"]),
        (["INPUT.NO_TRANSFORM", "True"], ["INPUT.NO_TRANSFORM"]),
        (
            ["MODEL.BACKBONE.WEIGHTS", str(REPOSITORY / "README.md")],
            ["README.md cannot be read", "no file of torch.save"],
        ),
        (["INPUT.SIZE", "(64, 64)"], ["INPUT.SIZE is (64, 64)", "(32, 32)"]),
        (["INPUT.TRANSFORMS", '["random_flop"]'], ['did you mean "random_flip"?']),
        (["DATALOADER.TRAIN_X.SAMPLER", "RandomSample"], ['did you mean "RandomSampler"?']),
        (["DATALOADER.TRAIN_X.BATCH_SIZE", "0"], ["batch size is 0"]),
        (["DATASET.SUBSAMPLE_CLASSES", "old"], ["base"]),
        (["DATASET.NUM_SHOTS", "0", "TEST.FINAL_MODEL", "best_val"], ['no split "val"']),
        (["MODEL.BACKBONE.WEIGHTS", "absent.pt"], ["no weights file absent.pt"]),
        (["MODEL.INIT_WEIGHTS", "absent.pt"], ["no checkpoint at absent.pt"]),
        (["RESUME", "absent"], ["no checkpoint to resume from in absent"]),
    ],
)
def test_bad_values(run, arguments, parts):
    refused(run(*SHORT, *arguments), *parts)


def test_config_files(run, tmp_path):
    refused(run("--config-file", REPOSITORY / "configs/trainers/CoOp/rn51.yaml"), 'did you mean "rn50.yaml"?')
    bad = tmp_path / "bad.yaml"
    bad.write_text("OPTIM:\n  LRR: 1\n")
    refused(run("--config-file", bad), "OPTIM.LRR", bad, 'did you mean "OPTIM.LR"?')
    bad.write_text("OPTIM: [")
    refused(run("--config-file", bad), bad, "YAML")


def test_an_unknown_name_leaves_an_older_result_alone(run):
    old = run(*SHORT)
    refused(run(*SHORT, "TRAINER.NAME", "CoOpp"), "CoOpp")
    assert "=> result" in old.log
    assert old.record["accuracy"] is not None


def test_eval_only_without_a_model(run, tmp_path):
    refused(run("--eval-only", *SHORT), "needs --model-dir")
    refused(run("--eval-only", "--model-dir", tmp_path / "absent", *SHORT), "no model directory", tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    refused(run("--eval-only", "--model-dir", tmp_path / "empty", *SHORT), "no checkpoint in", "there is none")


def test_an_epoch_that_is_not_there(run):
    trained = run("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 2, "TRAIN.CHECKPOINT_FREQ", 1)
    result = run("--eval-only", "--model-dir", trained.folder, "--load-epoch", 7, *SHORT, out="other")
    refused(result, "epoch 7", "epochs there: 1, 2")


def test_a_truncated_checkpoint(run):
    trained = run(*SHORT)
    path = trained.checkpoint(1)
    path.write_bytes(path.read_bytes()[:1000])
    refused(run("--eval-only", "--model-dir", trained.folder, *SHORT, out="other"), path, "truncated")
    refused(run(*SHORT), path, "truncated")


def test_a_checkpoint_of_another_shape(run):
    trained = run(*SHORT, "TRAINER.COOP.N_CTX", 4)
    result = run("--eval-only", "--model-dir", trained.folder, *SHORT, "TRAINER.COOP.N_CTX", 8, out="other")
    refused(result, "does not fit", "ctx")


def test_a_checkpoint_with_code_in_it_is_not_run(run, tmp_path):
    trained = run(*SHORT)

    class Hostile:
        def __reduce__(self):
            return (tmp_path.joinpath("executed").touch, ())

    torch.save({"state_dict": {}, "epoch": 1, "scheduler": Hostile()}, trained.checkpoint(1))
    refused(run("--eval-only", "--model-dir", trained.folder, *SHORT, out="other"), trained.checkpoint(1))
    assert not (tmp_path / "executed").exists()


def test_an_output_directory_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("")
    refused(run(*SHORT, out="file/run"), tmp_path / "file/run")


@pytest.fixture
def imagenet(imagenet_root, run):
    def call(*arguments):
        dataset = REPOSITORY / "configs/datasets/imagenet.yaml"
        return run("--root", imagenet_root, "--dataset-config-file", dataset, *SHORT, *arguments)

    return call


def test_a_whole_small_imagenet_runs(imagenet):
    result = imagenet()
    assert result.code == 0
    assert "* total: 6" in result.log


def test_no_data_root(imagenet, imagenet_root):
    shutil.rmtree(imagenet_root)
    refused(imagenet(), imagenet_root / "imagenet/images/train", "--root", "tools/prepare_imagenette.py")


def test_classnames_in_another_encoding(imagenet, imagenet_root):
    path = imagenet_root / "imagenet/classnames.txt"
    text = "".join(f"{wnid} 鱼 {name}\n" for wnid, name in WNIDS.items())
    path.write_bytes(text.encode("gbk"))
    refused(imagenet(), path, "not UTF-8")
    path.write_bytes(text.encode("utf-8-sig"))
    assert imagenet().code == 0


def test_a_log_goes_on_where_the_console_cannot_show_a_letter(tmp_path):
    command = "import train, sys; sys.exit(train.main(['--trainer', '鱼']))"
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    result = subprocess.run([sys.executable, "-c", command], cwd=REPOSITORY, env=environment, capture_output=True)
    assert result.returncode == 2
    assert b"Traceback" not in result.stderr
    assert rb'unknown trainer "\u9c7c"' in result.stderr


def test_no_classnames(imagenet, imagenet_root):
    (imagenet_root / "imagenet/classnames.txt").unlink()
    refused(imagenet(), "classnames.txt", "tools/fix_imagenet.py --root")


def test_a_folder_without_a_name(imagenet, imagenet_root):
    (imagenet_root / "imagenet/classnames.txt").write_text("n01440764 tench\nn02102040 English springer\n")
    refused(imagenet(), "no name for the folders n03028079")


def test_a_line_that_names_nothing(imagenet, imagenet_root):
    (imagenet_root / "imagenet/classnames.txt").write_text("n01440764 tench\nn02102040\n")
    refused(imagenet(), "classnames.txt, line 2")


def test_a_split_without_a_folder(imagenet, imagenet_root):
    shutil.rmtree(imagenet_root / "imagenet/images/val/n02102040")
    refused(imagenet(), "images/val lacks", "n02102040")


def test_an_empty_class_folder(imagenet, imagenet_root):
    folder = imagenet_root / "imagenet/images/train/n02102040"
    shutil.rmtree(folder)
    folder.mkdir()
    refused(imagenet(), folder, "is empty")


def test_more_shots_than_images_takes_what_there_is_and_names_the_class(imagenet, imagenet_root):
    next((imagenet_root / "imagenet/images/train/n02102040").iterdir()).unlink()
    result = imagenet("DATASET.NUM_SHOTS", 5)
    assert result.code == 0
    assert "fewer than 5 images, so all there are, for English springer (4)" in result.log
    assert "# train_x  14" in result.log


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_no_image(imagenet, imagenet_root, workers):
    broken = imagenet_root / "imagenet/images/val/n02102040/n02102040_0.JPEG"
    broken.write_text("not an image")
    result = imagenet("DATALOADER.NUM_WORKERS", workers)
    refused(result, f"1 of 6 test images cannot be read:\n  {broken}: it is in no format that PIL knows, or damaged\n")


def test_a_file_that_does_not_claim_to_be_an_image(imagenet, imagenet_root):
    stray = imagenet_root / f"imagenet/images/train/{next(iter(WNIDS))}/notes.txt"
    stray.write_text("remember the milk")
    refused(imagenet(), stray, "is not an image")


def test_stopping_by_hand_before_training_says_so(run, monkeypatch):
    monkeypatch.setattr("trainers.coop.CoOp.build_model", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    result = run(*SHORT)
    assert result.code == 130
    assert result.error == "\nstopped before training; the same command begins anew\n"


def test_a_bug_is_not_hidden(run, monkeypatch):
    monkeypatch.setattr("trainers.coop.CoOp.forward_backward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(*SHORT)


def test_help_and_a_mistyped_flag_need_no_torch():
    for arguments, code, text in ((["--help"], 0, "--eval-only"), (["--evil-only"], 2, "unrecognized")):
        script = "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules)); import train; "
        script += f"train.main({arguments})"
        result = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
        assert result.returncode == code
        assert text in result.stdout + result.stderr
        assert result.stdout.endswith("False\n")
