"""Merging: YAML files as the field writes them, and command-line values."""

import pytest

from dassl.config import clean_cfg, get_cfg_default, merge_file, merge_options, to_dict
from dassl.utils import UserError


def test_text_that_yaml_does_not_take_for_numbers_becomes_what_the_key_holds(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text('OPTIM:\n  WARMUP_CONS_LR: 1e-5\n  LR: 1\nINPUT:\n  SIZE: (32, 48)\n  TRANSFORMS: ["a", "b"]\n')
    cfg = get_cfg_default()
    merge_file(cfg, path)
    assert cfg.OPTIM.WARMUP_CONS_LR == 1e-5
    assert cfg.OPTIM.LR == 1.0
    assert isinstance(cfg.OPTIM.LR, float)
    assert cfg.INPUT.SIZE == (32, 48)
    assert tuple(cfg.INPUT.TRANSFORMS) == ("a", "b")


@pytest.mark.parametrize("value", ["True", "abc", "(1, 2)"])
def test_a_number_is_asked_for(value):
    with pytest.raises(UserError, match=r"OPTIM\.LR in the command line takes a number, like 0\.0003; got "):
        merge_options(get_cfg_default(), ["OPTIM.LR", value])


def test_text_may_look_like_a_number(tmp_path):
    cfg = get_cfg_default()
    merge_options(cfg, ["DATASET.FOLDER", "2020", "MODEL.BACKBONE.NAME", "True"])
    assert (cfg.DATASET.FOLDER, cfg.MODEL.BACKBONE.NAME) == ("2020", "True")
    (tmp_path / "c.yaml").write_text("DATASET:\n  FOLDER: 2021\n")
    merge_file(cfg, tmp_path / "c.yaml")
    assert cfg.DATASET.FOLDER == "2021"


def test_a_refused_file_names_itself(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("OPTIM: 3\n")
    with pytest.raises(UserError, match="c.yaml"):
        merge_file(get_cfg_default(), path)
    path.write_text("- a list\n")
    with pytest.raises(UserError, match="c.yaml is not a YAML mapping"):
        merge_file(get_cfg_default(), path)


def test_clean_cfg_keeps_the_node_of_the_trainer():
    cfg = get_cfg_default()
    cfg.TRAINER.COOP, cfg.TRAINER.OTHER = cfg.MODEL.clone(), cfg.MODEL.clone()
    clean_cfg(cfg, "CoOp")
    assert set(cfg.TRAINER) == {"NAME", "COOP"}


def test_to_dict_is_plain():
    plain = to_dict(get_cfg_default())
    assert type(plain["OPTIM"]) is dict
    assert plain["INPUT"]["SIZE"] == [224, 224]
