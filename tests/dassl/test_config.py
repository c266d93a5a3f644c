"""Merging YAML files, as repositories of the field write them, and command-line values into a config."""

from functools import reduce
from operator import getitem

import yaml

import train
from dassl.config import get_cfg_default, merge_file, merge_options
from dassl.config.merge import flatten
from dassl.config.run_config import diff_configs


def test_text_in_yaml_is_converted_to_the_type_of_its_key(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text('OPTIM:\n  WARMUP_CONS_LR: 1e-5\n  LR: 1\nINPUT:\n  SIZE: (32, 48)\n  TRANSFORMS: ["a", "b"]\n')
    cfg = get_cfg_default()
    merge_file(cfg, path)
    assert cfg.OPTIM.WARMUP_CONS_LR == 1e-5
    assert cfg.OPTIM.LR == 1.0
    assert isinstance(cfg.OPTIM.LR, float)
    assert cfg.INPUT.SIZE == (32, 48)
    assert tuple(cfg.INPUT.TRANSFORMS) == ("a", "b")


def test_a_text_value_may_look_like_a_number(tmp_path):
    cfg = get_cfg_default()
    merge_options(cfg, ["DATASET.FOLDER", "2020", "MODEL.BACKBONE.NAME", "True"])
    assert (cfg.DATASET.FOLDER, cfg.MODEL.BACKBONE.NAME) == ("2020", "True")
    for folder in ("007", "1.10", "1e3"):
        merge_options(cfg, ["DATASET.FOLDER", folder])
        assert folder == cfg.DATASET.FOLDER
    (tmp_path / "c.yaml").write_text("DATASET:\n  FOLDER: 2021\n")
    merge_file(cfg, tmp_path / "c.yaml")
    assert cfg.DATASET.FOLDER == "2021"


def test_a_template_is_a_text_or_a_list_and_survives_the_files_of_a_run(tmp_path):
    cfg, path = get_cfg_default(), tmp_path / "c.yaml"
    several, one = ["a {}.", "one {}."], "a photo of a {}, too"
    for value in (several, one, several):
        path.write_text(yaml.safe_dump({"DATASET": {"TEMPLATE": value}}))
        merge_file(cfg, path)
        assert value == cfg.DATASET.TEMPLATE
        path.write_text(cfg.dump())
        loaded = get_cfg_default()
        merge_file(loaded, path)
        assert loaded == cfg
        merge_options(loaded, ["DATASET.TEMPLATE", str(value)])  # from a record, as text
        assert loaded == cfg
    assert diff_configs(cfg.dump(), loaded.dump(), get_cfg_default()) == {}
    merge_options(loaded, ["DATASET.TEMPLATE", "[{}]"])
    assert loaded.DATASET.TEMPLATE == "[{}]"
    assert len(diff_configs(cfg.dump(), loaded.dump(), get_cfg_default())) == 1


def test_pairs_override_flags_which_override_the_method_file_which_overrides_the_data_set_file(tmp_path):
    common = "OUTPUT_DIR: a\nDATASET: {NAME: Digits}\n"
    (tmp_path / "data.yaml").write_text(f"SEED: 1\nOPTIM: {{LR: 1.0, GAMMA: 1.0}}\n{common}")
    (tmp_path / "method.yaml").write_text("SEED: 2\nOUTPUT_DIR: b\nOPTIM: {LR: 2.0}\n")
    files = f"--dataset-config-file {tmp_path}/data.yaml --config-file {tmp_path}/method.yaml"
    flags = "--trainer CoOp --seed 3 --output-dir c SEED 4"
    cfg = train.setup_cfg(train.parse_args(f"{files} {flags}".split()))
    assert (cfg.OPTIM.GAMMA, cfg.OPTIM.LR, cfg.OUTPUT_DIR, cfg.SEED) == (1, 2, "c", 4)


def test_a_resumed_run_may_change_only_keys_that_do_not_affect_training():
    saved = get_cfg_default().dump()
    changed = yaml.safe_load(saved)
    keys = [key for key, _ in flatten(changed)]
    for key in keys:
        *nodes, name = key.split(".")
        reduce(getitem, nodes, changed)[name] = "another"
    changes = diff_configs(saved, yaml.safe_dump(changed), get_cfg_default())
    resumable = set(keys) - {change.split()[0] for change in changes}
    expected = """DATALOADER.NUM_WORKERS DATALOADER.TEST.SAMPLER DATALOADER.TEST.BATCH_SIZE DATASET.FOLLOW_LINKS
        DATASET.ROOT DATASET.SKIP_BAD_IMAGES FEATURES.CACHE_DIR FEATURES.ENABLED FEATURES.MAX_GB FORCE_RESUME
        INPUT.ORIENTATION INPUT.WHITE_LEVEL
        MODEL.BACKBONE.ACTIVATIONS_GB OUTPUT_DIR RESUME TEST.EVALUATOR TEST.PER_CLASS_RESULT TEST.COMPUTE_CMAT
        TEST.NO_TEST TEST.SPLIT TEST.FINAL_MODEL TEST.LOGITS_GB TRAIN.CHECKPOINT_FREQ TRAIN.CHECKPOINT_MINUTES
        TRAIN.CUDA_GRAPH TRAIN.KEEP_CHECKPOINTS TRAIN.LOGGERS TRAIN.PRINT_FREQ VERBOSE"""
    assert resumable == set(expected.split())
