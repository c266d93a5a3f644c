"""A page in the browser: drop an image, type classes, and see zero-shot CLIP beside what runs learned.

    python predict.py demo RUN [RUN …]                     # such as output/digits/CoOp/tiny_16shots/seed1
    python predict.py demo [--backbone tiny] [--lang zh]   # zero-shot CLIP alone

A RUN is what --model-dir takes: a run of train.py, or a learned prompt alone, with --backbone and --classes.
All runs must have one CLIP. The page shows images, the words nearest to learned contexts, and the predictions for
several images as a sheet and a CSV file. It is served to this machine alone, loads nothing from elsewhere, and deletes
uploads when it ends (Ctrl-C). It needs the package gradio.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path

import yaml

from dassl.utils import UserError
from vlm.clip.hub import import_optional

from .classify import check_classes_option

LANGUAGES = ("en", "zh")
LOCALHOST = "127.0.0.1"  # not reachable from other machines
MAX_PORT = 65535  # the highest of TCP
MAX_FILE_SIZE = "20mb"  # of an upload: photos of phones have up to 15 MB
# Seconds between deletions of old uploads and results, and the age of an old one: longer than a sheet takes to view.
DELETE_CACHE = (600, 3600)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``demo`` to ``parser``."""
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help="folder of a run, or a learned prompt, to show beside zero-shot CLIP")
    add("--classes", nargs="+", default=[], metavar="NAME", help="class names to begin with (the first run's)")
    add("--backbone", help="CLIP, such as RN50 (the runs', else ViT-B/32); tiny needs no download")
    add("--weights", default="", metavar="FILE", help="CLIP weights that replace those of the backbone")
    add("--host", default=LOCALHOST, help=f"address to listen on ({LOCALHOST}); 0.0.0.0: other machines see the page")
    add("--port", type=int, metavar="N", help="port (the first free one from 7860)")
    add("--lang", choices=LANGUAGES, default="en", help="language of the page (en)")


def run(args: argparse.Namespace, name: str) -> None:
    """Load the models of ``args``, then serve the page until Ctrl-C; ``name`` is the command's name.

    Raises:
        UserError: gradio is missing, the port is taken, or a model cannot be loaded.
    """
    check_classes_option(args.classes, args.runs)
    _check_address(args.host, args.port)
    with tempfile.TemporaryDirectory(prefix="predict_demo_") as folder:
        uploads = Path(folder, "uploads")  # and results: Gradio deletes them after a time, unlike the examples
        uploads.mkdir()
        # Gradio reads these when it is imported.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(uploads)}
        import_optional("gradio", "gradio", f"predict.py {name}")
        from .demo_models import find_examples, load_models  # loads PyTorch
        from .demo_page import CSS, DemoPage  # loads Gradio

        texts = yaml.safe_load(Path(__file__).with_name("demo_texts.yaml").read_text(encoding="utf-8"))[args.lang]
        models, template = load_models(args.runs, args.backbone, args.weights, args.classes, texts)
        classnames = args.classes or next((list(model.classnames) for model in models if model.classnames), [])
        examples = _copy_examples(find_examples(models), Path(folder))
        page = DemoPage(models, texts, uploads, classnames, template, examples)
        _serve(page.build(DELETE_CACHE), args.host, args.port, CSS)


def _check_address(host: str, port: int | None) -> None:
    """Raise :class:`UserError` if ``port`` (None: any) is no port, or nothing can listen on it at ``host``."""
    if port is not None and not 0 < port <= MAX_PORT:
        raise UserError(f"--port {port} is not between 1 and {MAX_PORT:,}")
    try:
        with socket.socket() as listener:
            if os.name == "posix":  # as servers do; otherwise, a port is taken for a minute after its last connection
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port or 0))
    except OSError as error:
        reason = "is the port taken? Name another with --port" if port else "is it an address of this machine?"
        raise UserError(f"cannot listen on {host}{f':{port}' if port else ''} ({error.strerror}): {reason}") from error


def _copy_examples(examples: list[tuple[Path, str]], folder: Path) -> list[tuple[str, str]]:
    """Copy the images to ``folder``/examples, as Gradio serves no others; return (path of the copy, class) of each."""
    (folder / "examples").mkdir()
    copies = [folder / "examples" / f"{number}{path.suffix}" for number, (path, _) in enumerate(examples)]
    for (path, _), copy in zip(examples, copies, strict=True):
        shutil.copyfile(path, copy)
    return [(str(copy), name) for copy, (_, name) in zip(copies, examples, strict=True)]


def _serve(page, host: str, port: int | None, css: str) -> None:
    """Serve the Gradio page with ``css`` until Ctrl-C, which is raised; SIGTERM ends it in the same way."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Gradio asks its own server whether it runs, which must not go through a proxy.
    os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy"), host, LOCALHOST, "localhost"]))
    options = {"share": False, "quiet": True, "prevent_thread_lock": True, "ssr_mode": False, "css": css}
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            max_file_size=MAX_FILE_SIZE,
            footer_links=[],
            run_history=False,  # the browser would keep it
            **options,
        )
        print(f"The demo is at {url} (Ctrl-C ends it)", flush=True)
        if host not in (LOCALHOST, "localhost"):
            print(f"Note: everyone who reaches {host} can use it: it has no password", flush=True)
        while True:
            time.sleep(1)
    finally:
        page.close(verbose=False)
