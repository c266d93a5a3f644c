"""Loading a run without its data: its config, its class names, and its trainer with the trained model."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

from yacs.config import CfgNode

from dassl import engine
from dassl.config import merge_file, merge_options
from dassl.config.merge import flatten
from dassl.config.run_config import CONFIG_FILE
from dassl.engine.record import RECORD_FILE, is_evaluation, read_training_record
from dassl.utils import UserError

CLIP_TRAINERS = ("CLIPFineTune", "CLIPLoRA")  # methods that train CLIP itself, and classify by any prompts


def suppress_stdout() -> contextlib.AbstractContextManager:
    """Return a context manager that discards standard output: the framework prints its log there."""
    return contextlib.redirect_stdout(io.StringIO())


def find_run_folder(source: Path) -> Path | None:
    """Return the folder of the run at ``source``: the folder itself, a model's folder in it, or a checkpoint there.

    Returns None if there is neither a config nor a record, as with a downloaded prompt.
    """
    from dassl.utils.checkpoint import holds_checkpoints  # loads PyTorch

    folders = [source]
    if source.is_file():
        folders = [*source.absolute().parents[:2]]
    elif holds_checkpoints(source):
        folders += [source.absolute().parent]
    names = (CONFIG_FILE, RECORD_FILE)
    return next((folder for folder in folders if any((folder / name).is_file() for name in names)), None)


def load_run_cfg(folder: Path) -> CfgNode:
    """Return the config of the run in ``folder``, not frozen.

    Runs that only evaluated have no config file; for these, it comes from their record (result.json).

    Raises:
        UserError: there is no run in ``folder``; or its config is damaged, or of another version.
    """
    import trainers  # noqa: F401  registers the methods

    cfg = engine.default_cfg()
    if (folder / CONFIG_FILE).is_file():
        merge_file(cfg, folder / CONFIG_FILE)
    elif (folder / RECORD_FILE).is_file():
        try:
            pairs = flatten(read_record_if_any(folder).get("config", {}))
            merge_options(cfg, [text for pair in pairs for text in map(str, pair)])
        except UserError as error:
            raise UserError(f"the settings in {folder / RECORD_FILE}: {error}") from error
    else:
        runs = sorted({str(path.parent) for name in (CONFIG_FILE, RECORD_FILE) for path in folder.rglob(name)})
        below = f"below it there are {', '.join(runs[:5])}"
        hint = below if runs else "a learned prompt without its config needs --backbone, its CLIP, and --classes"
        raise UserError(f"no run in {folder}: it has no {CONFIG_FILE}; {hint}")
    engine.set_decoding(cfg, {})  # of a run that is older than these keys
    return cfg


def read_record_if_any(folder: Path) -> dict:
    """Return the record of the run in ``folder`` (``read_training_record``), or {} if there is none."""
    return read_training_record(folder) if (folder / RECORD_FILE).is_file() else {}


def load_classnames(folder: Path) -> list[str]:
    """Return a run's class names from its record, ``folder``/result.json, in label order; [] without file or names."""
    return [str(name) for name in read_record_if_any(folder).get("classnames", ())]


def load_trainer(
    source: Path,
    classnames: Sequence[str] = (),
    epoch: int | None = None,
    weights: str = "",
    backbone: str = "",
    templates: Sequence[str] = (),
    cuda: bool = True,
):
    """Return the trainer of the run at ``source`` with its trained model loaded, ready for ``model_inference``.

    It is built without a data set. Nothing is printed on standard output, and nothing is written.

    Args:
        source: folder of a run, of a model in it, or a checkpoint; or the same of a learned prompt without its config.
        classnames: class names that replace those of the run; empty for those of the run.
        epoch: epoch of the checkpoint; None for the best on validation images, else the newest.
        weights: path of a CLIP weights file that replaces the weights in the run's config, or "".
        backbone: name of the CLIP of a learned prompt without its config; "" for a run.
        templates: prompt templates that replace the prompts of a run of CLIP_TRAINERS; empty for those of the run.
        cuda: True if a GPU may be used.

    Raises:
        UserError: there is no run, no checkpoint, or no class names; weights or descriptions differ from the run's; the
            method takes no ``templates``; or the trained model does not fit the class names or the CLIP.
    """
    import torch

    folder = find_run_folder(source)
    run_classnames = load_classnames(folder) if folder else []
    classnames = list(classnames or run_classnames)
    if not classnames and (folder or backbone or weights):
        kinds = "a run on captions, an unfinished or an older one, a prompt alone"
        problem = f"{folder or source} has no {RECORD_FILE} of a training run with class names ({kinds})"
        raise UserError(f"{problem}: name them with --classes, in the order of the run's data set")
    cfg = _build_cfg(source, folder, epoch, weights, backbone, cuda, templates)
    # The constructor draws an initial context, which the checkpoint overwrites: the caller's generator stays as it was.
    with suppress_stdout(), torch.random.fork_rng(devices=[]):
        trainer = _subclass_without_data(cfg.TRAINER.NAME, classnames)(cfg)
        if folder:
            _check_provenance(trainer, folder, ("weights",) if templates else ("weights", "descriptions"))
        try:
            trainer.load_model(str(source), epoch)
        except UserError as error:
            if classnames == run_classnames or not run_classnames:
                raise
            hint = f"--classes differs from the classes of the run ({', '.join(run_classnames)}), which it may need"
            raise UserError(f"{str(error).rstrip('.')}. {hint}") from error
        trainer.set_model_mode("eval")
    return trainer


def _check_is_no_evaluation(folder: Path | None) -> None:
    """Raise ``UserError``, which names the model's folder, if ``folder`` only evaluated another run's model."""
    record = read_record_if_any(folder) if folder else {}
    words = [str(word) for word in record.get("command", ())]
    model_dirs = [path for flag, path in pairwise(words) if flag == "--model-dir"]
    if is_evaluation(record) and model_dirs:
        raise UserError(f"{folder} holds an evaluation, and the model is in {model_dirs[-1]}: --model-dir takes that")


def _build_cfg(
    source: Path,
    folder: Path | None,
    epoch: int | None,
    weights: str,
    backbone: str,
    cuda: bool,
    templates: Sequence[str],
) -> CfgNode:
    """Return the frozen config for the model of the run in ``folder``; if it is None, for the prompt at ``source``.

    The other arguments, and the errors, are those of ``load_trainer``.
    """
    _check_is_no_evaluation(folder)
    if folder and backbone:
        raise UserError("--backbone does not go with --model-dir: the run's config sets it")
    if not folder and (backbone or weights):
        import trainers  # noqa: F401  registers the methods

        from .prompt_checkpoint import build_prompt_cfg

        cfg = build_prompt_cfg(source, epoch, backbone, weights, cuda)
    else:
        cfg = load_run_cfg(folder or source)
        cfg.MODEL.BACKBONE.WEIGHTS = weights or cfg.MODEL.BACKBONE.WEIGHTS
    if templates:
        if cfg.TRAINER.NAME not in CLIP_TRAINERS:
            methods = " and ".join(CLIP_TRAINERS)
            problem = f"{source} is of {cfg.TRAINER.NAME}; they replace the prompts of runs of {methods} alone"
            raise UserError(f"--template and --ensemble do not go with --model-dir: {problem}")
        cfg.DATASET.TEMPLATE, cfg.DATASET.DESCRIPTIONS = [*templates], ""
    cfg.MODEL.INIT_WEIGHTS = ""  # the initial model; the checkpoint replaces it
    cfg.FEATURES.ENABLED, cfg.FEATURES.PREC = False, ""
    cfg.USE_CUDA = cfg.USE_CUDA and cuda
    cfg.freeze()
    return cfg


def _subclass_without_data(name: str, classnames: list[str]) -> type:
    """Return a subclass of the trainer registered as ``name`` that has ``classnames`` but loads no data set."""
    base = engine.TRAINER_REGISTRY.get(name)

    def build_data_loader(self) -> None:
        """Set the attributes that describe the classes; the data loaders are None."""
        self.num_classes, self.lab2cname, self.num_source_domains = len(classnames), dict(enumerate(classnames)), 1
        self.dm = SimpleNamespace(num_classes=self.num_classes, lab2cname=self.lab2cname)
        self.dm.dataset = SimpleNamespace(classnames=classnames, **vars(self.dm))
        self.train_loader_x = self.train_loader_u = self.val_loader = self.test_loader = None

    return type(name, (base,), {"build_data_loader": build_data_loader})


def _check_provenance(trainer, folder: Path, names: Sequence[str]) -> None:
    """Raise ``UserError`` if one of ``names`` (weights, descriptions) differs from the record in ``folder``."""
    record = read_record_if_any(folder)
    for name in names:
        recorded, loaded = (entries.get(name) or {} for entries in (record, trainer.provenance))
        if recorded.get("sha256") and recorded["sha256"] != loaded.get("sha256"):
            raise UserError(
                f"the run in {folder} began with other {name} than {loaded.get('file') or loaded.get('backbone')}: "
                f"their fingerprint is {loaded.get('sha256')}, that of the run {recorded['sha256']}"
            )
