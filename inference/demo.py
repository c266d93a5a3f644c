"""A page in the browser: drop an image, type classes, and see zero-shot CLIP beside what runs learned.

    python predict.py demo [RUN …] [--backbone tiny] [--lang zh]

A RUN is what --model-dir takes: a run of train.py, or a learned prompt alone, with --backbone and --classes. All runs
must have one CLIP. The page loads nothing from elsewhere, and deletes uploads when it ends (Ctrl-C). It needs gradio.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import tempfile
import time
from pathlib import Path

from dassl.utils import UserError, import_optional

LOCALHOST = "127.0.0.1"  # not reachable from other machines
MAX_FILE_SIZE = "20mb"  # of an upload: photos of phones have up to 15 MB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``demo`` to ``parser``."""
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help="folder of a run, or a learned prompt, to show beside zero-shot CLIP")
    add("--classes", nargs="+", default=[], metavar="NAME", help="class names to begin with (the first run's)")
    add("--backbone", help="CLIP, such as RN50 (the runs', else ViT-B/32); tiny needs no download")
    add("--weights", default="", metavar="FILE", help="CLIP weights that replace those of the backbone")
    add("--host", default=LOCALHOST, help=f"address to listen on ({LOCALHOST}); 0.0.0.0: other machines see the page")
    add("--port", type=int, metavar="N", help="port (the first free one from 7860)")
    add("--lang", choices=("en", "zh"), default="en", help="language of the page (en)")


def run(args: argparse.Namespace, name: str) -> None:
    """Load the models of ``args``, then serve the page until Ctrl-C; ``name`` is the command's name."""
    try:
        socket.create_server((args.host, args.port or 0)).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {args.host}:{args.port or '*'} ({error}): name another --port") from error
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uploads are deleted then, too
    with tempfile.TemporaryDirectory(prefix="predict_demo_") as folder:
        # Gradio reads these when it is imported; uploads and results lie in the folder.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}
        import_optional("gradio", "gradio", f"predict.py {name}")
        from .demo_page import DemoPage  # loads Gradio and PyTorch

        page = DemoPage(args, Path(folder)).build()
        # Gradio asks its own server whether it runs, which must not go through a proxy.
        os.environ["no_proxy"] = ",".join([os.environ.get("no_proxy", ""), args.host, LOCALHOST, "localhost"])
        options = {"share": False, "quiet": True, "prevent_thread_lock": True, "ssr_mode": False, "footer_links": []}
        options |= {"max_file_size": MAX_FILE_SIZE, "run_history": False, "server_name": args.host}
        try:
            _, url, _ = page.launch(server_port=args.port, css_paths=Path(__file__).with_suffix(".css"), **options)
            print(f"The demo is at {url} (Ctrl-C ends it)", flush=True)
            if args.host not in (LOCALHOST, "localhost"):
                print(f"Note: everyone who reaches {args.host} can use it: it has no password", flush=True)
            while True:
                time.sleep(1)
        finally:
            page.close(verbose=False)
