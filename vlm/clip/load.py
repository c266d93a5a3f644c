"""Loading of CLIPs: OpenAI's nine and this project's tiny one by name, weights from a local file, and CLIPs of other
libraries (``open_clip:…``, ``hf:…``)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from dassl.data.downloads import download
from dassl.utils import UserError, check_availability, file_digest, suggest_name
from dassl.utils.checkpoint import check_finite, get_learned_tensors
from vlm import openai
from vlm.clip.fingerprint import weights_fingerprint
from vlm.clip.weights_file import MAX_NAMES, WEIGHTS_SUFFIXES, describe_folder, list_names, read_state_dict
from vlm.openai import CLIP
from vlm.text.encoder import TextEncoder
from vlm.tiny.weights import TINY, load_tiny

CACHE_DIR = Path(os.path.expanduser("~/.cache/clip"))  # openai-clip's folder, so that a weights file is stored once
THIRD_PARTY_MODULES = {"open_clip": "open_clip", "hf": "hugging_face"}  # prefix of a name -> module of this package
THIRD_PARTY_NAMES = ("open_clip:<architecture>/<weights>", "hf:<name on the Hub, or folder>")  # for messages
# A name on the Hugging Face Hub, or the address of its page there or on the mirror.
HUB_NAME = re.compile(r"(?:https?://(?:huggingface\.co|hf-mirror\.com)/)?([\w.-]+/[\w.-]+)(?:/|/tree/.*)?")
PRECISIONS = ("fp32", "fp16", "bf16", "amp")  # values of PREC
Device = torch.device | str


def load_clip(name: str, weights: str = "", precision: str = "fp32", device: Device = "cpu") -> tuple[CLIP, dict]:
    """Return a CLIP in evaluation mode with frozen parameters, and the state dict as read, before any rounding.

    Args:
        name: one of OpenAI's names (``RN50``, ``ViT-B/16``, …) or ``tiny``; ``open_clip:<architecture>/<weights>``;
            ``hf:<name on the Hub, or folder>``.
        weights: path of a file: OpenAI's TorchScript archive, a state dict saved by ``torch.save``, or safetensors. Its
            shapes determine the architecture, so ``name`` is ignored; with ``open_clip:…``, the file replaces only the
            weights; ``hf:…`` refuses it. "": the published weights of ``name``, downloaded unless cached; tiny's are
            part of this repository.
        precision: "fp16": half precision, as OpenAI's weights are published; "bf16": bfloat16 in its place; "fp32" and
            "amp": single precision. On a CPU, and for CLIPs of other libraries, it is always single precision.

    Raises:
        UserError: the name or precision is unknown, or the weights are absent, damaged, not CLIP's, or not finite.
    """
    return _load_and_inspect(name, weights, precision, device, lambda state_dict, _="": state_dict)


def find_language(name: str) -> str:
    """Return the language of the texts that the CLIP ``name`` learned from, by its config alone: English or Chinese.

    Raises ``UserError`` as ``load_clip``, for a model of transformers that cannot be loaded.
    """
    library, colon, identifier = name.partition(":")
    if colon and library == "hf":
        return import_module(".hugging_face", __package__).find_class(identifier).text_encoder.language
    return TextEncoder.language  # other libraries' text encoders have CLIP's vocabulary, or are refused


def _load_and_inspect(
    name: str, weights: str, precision: str, device: Device, inspect: Callable[..., Any]
) -> tuple[CLIP, Any]:
    """Return the CLIP, loaded as by ``load_clip``, and the result of ``inspect(state_dict)``.

    For a CLIP of another library, which weights do not determine, the call is ``inspect(state_dict, architecture)``.
    """
    check_availability(precision, PRECISIONS, "precision")
    device = torch.device(device)
    library, colon, identifier = name.partition(":")
    if colon and library in THIRD_PARTY_MODULES:
        model = import_module(f".{THIRD_PARTY_MODULES[library]}", __package__).load(identifier, weights)
        if precision in ("fp16", "bf16"):
            print(f"Note: {precision} becomes fp32, in which CLIPs of other libraries run (or amp)")
        check_finite(get_learned_tensors(model), weights or name)
        model = model.eval().to(device).requires_grad_(False)
        return model, inspect(model.state_dict(), model.architecture)
    if weights:
        state_dict = read_state_dict(Path(weights))
    elif name == TINY:
        state_dict = load_tiny()
    else:
        _check_name(name)
        state_dict = read_state_dict(get_openai_weights(name), published=True)
    check_finite(state_dict, weights or name)
    with ThreadPoolExecutor(1) as pool:
        inspection = pool.submit(inspect, state_dict)  # a fingerprint takes as long as building the model
        return _build_clip(state_dict, weights or name, precision, device), inspection.result()


def _check_name(name: str) -> None:
    """Raise UserError unless ``name`` is one of OpenAI's; the message has the option or prefix that was meant."""
    if name in openai.URLS:
        return
    kind, known = "backbone (MODEL.BACKBONE.NAME)", [*openai.URLS, TINY, *THIRD_PARTY_NAMES]
    suggestion, (architecture, _, tag) = suggest_name(name, known), name.partition("/")
    if os.path.isdir(name):
        suggestion = f"it is {describe_folder(Path(name))}"
    elif os.path.isfile(name) or name.endswith(WEIGHTS_SUFFIXES):
        if os.path.isfile(name):
            read_state_dict(Path(name))  # refuses a file of another kind, and names the option that takes it
        suggestion = f"a weights file is MODEL.BACKBONE.WEIGHTS {name} (predict.py: --weights {name})"
    elif architecture in _list_open_clip_architectures():
        suggestion = f'"open_clip:{architecture}/{tag or "<weights>"}" is open_clip\'s; {suggestion}'
    elif (on_hub := HUB_NAME.fullmatch(name)) and not suggestion.startswith("did you mean"):
        suggestion = f'did you mean "hf:{on_hub[1]}", a model on the Hugging Face Hub? {suggestion}'
    else:
        check_availability(name, known, kind)
    raise UserError(f'unknown {kind} "{name}"; {suggestion}')


def _list_open_clip_architectures() -> list[str]:
    """Return the names of open_clip's architectures; [] without the package, which is optional."""
    try:
        return import_module("open_clip").list_models()
    except ImportError:
        return []


def _build_clip(state_dict: dict[str, torch.Tensor], source: str, precision: str, device: torch.device) -> CLIP:
    """Return OpenAI's CLIP with these weights, frozen, in a ``precision`` of PRECISIONS (always fp32 on a CPU).

    Raises:
        UserError: the weights are not CLIP's, or too large for half precision; the message names ``source``, their
            file or backbone.
    """
    try:
        # OpenAI's function rounds the weights to half precision, in which they are published.
        model = openai.build_model(dict(state_dict))
    except (LookupError, RuntimeError, AssertionError, ZeroDivisionError, ValueError, TypeError) as error:
        reason = shorten(str(error), MAX_NAMES, placeholder=" …")
        if isinstance(error, KeyError):
            reason = f"it has no {error.args[0]}, but {list_names(state_dict)}"
        raise UserError(f"{source} does not hold the weights of a CLIP: {reason}") from error
    cause = "has values beyond 65,504, the largest of half precision, in which CLIP is built"
    check_finite(get_learned_tensors(model), source, cause)
    if precision in ("fp32", "amp") or device.type == "cpu":
        model.float()
    elif precision == "bf16":
        for parameter in model.parameters():
            if parameter.dtype == torch.float16:
                parameter.data = parameter.data.bfloat16()
    model.visual.mean, model.visual.std, model.visual.resize = openai.MEAN, openai.STD, "crop"
    if device.type == "cpu":
        model.visual.to(memory_format=torch.channels_last)  # convolutions take a third less time
    if precision != "fp32" and device.type == "cpu":
        print(f"Note: {precision} becomes fp32, as half precision is slow and inexact on a CPU")
    return model.to(device).requires_grad_(False)


@dataclass
class CachedClip:
    """The latest CLIP of ``load_cached_clip``."""

    source: tuple  # name, weights, precision, device, and the file's time and size
    model: CLIP
    fingerprint: str
    states: dict[bytes, torch.Tensor]  # PyTorch's random state before loading -> the state after loading


_cached_clip: CachedClip | None = None


def load_cached_clip(name: str, weights: str, precision: str, device: Device) -> tuple[CLIP, str]:
    """Return the CLIP of ``load_clip`` and the fingerprint of its weights; the latest CLIP is cached.

    The next call with the same arguments returns the same model, so callers must not change it. A file that has changed
    is loaded again. Building a model draws random numbers. So a call sets PyTorch's random state as building would: the
    caller's next draws are the same with and without the cache.
    """
    global _cached_clip
    path = Path(weights) if weights else CACHE_DIR / openai.URLS.get(name, "").rpartition("/")[2]
    stat = path.stat() if path.is_file() else None
    device = torch.device(device)
    effective = "fp32" if device.type == "cpu" and precision in PRECISIONS else precision
    source = (name, weights, effective, device, stat and (stat.st_mtime_ns, stat.st_size))
    before = torch.get_rng_state().numpy().tobytes()
    if _cached_clip is None or _cached_clip.source != source or before not in _cached_clip.states:
        model, checksum = _load_and_inspect(name, weights, precision, device, weights_fingerprint)
        if _cached_clip is None or _cached_clip.source != source:
            _cached_clip = CachedClip(source, model, checksum, {})
        _cached_clip.states[before] = torch.get_rng_state()
    torch.set_rng_state(_cached_clip.states[before])
    return _cached_clip.model, _cached_clip.fingerprint


def get_openai_weights(name: str) -> Path:
    """Return the path of the weights file of OpenAI's ``name``, such as RN50; download it if absent or damaged.

    Raises:
        UserError: the download failed.
    """
    url = openai.URLS[name]
    checksum = url.split("/")[-2]
    path = CACHE_DIR / url.rpartition("/")[2]
    if path.is_file() and file_digest(path) == checksum:
        return path
    state = "is damaged (its SHA-256 is wrong)" if path.is_file() else "is not on this machine"
    print(f"The file {path} {state}; downloading it")
    try:
        return download(url, path, checksum)
    except UserError as error:
        raise UserError(
            f"no weights of {name}: {path} {state}, and the download failed ({error.__cause__ or error})\n"
            f"  Fetch  {url}\n  SHA-256 {checksum}\n  to     {path}\n"
            "or name another file of CLIP weights: MODEL.BACKBONE.WEIGHTS FILE (predict.py: --weights FILE). "
            "MODEL.BACKBONE.NAME tiny (predict.py: --backbone tiny) needs no download"
        ) from error
