#!/usr/bin/env python3
"""A page in the browser on which a video is dropped: what it shows, and what a model makes of the tenth that it sees.

    tubecell demo [WEIGHTS ...] [--labels FILE] [--port 7860] [--host 127.0.0.1]

WEIGHTS are any that `predict` takes (a head of classes: the page predicts) and that `reconstruct` takes (a decoder of pixels:
it reconstructs), one of each or several to choose from. Without any they are the two models of `make quickstart`. The page can
be reached from this machine alone unless --host says otherwise (0.0.0.0: from anywhere, by anybody). Nothing is sent to any
other machine; uploads are removed after an hour, and when the program ends (Ctrl-C).
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import argparse
import importlib.util
import ipaddress
from collections.abc import Sequence

from pipeline.console import exit_status
from pipeline.storage.remote import on_disk
from train.demos import weights as released
from train.demos.server import listening, serve
from train.demos.shown_models import clips_of_quickstart, load, quickstart_weights

LONGEST = 30  # minutes


@exit_status(name="demo", bare=True)
def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    released.add_options(parser, positional="*")
    parser.add_argument(
        "--labels", type=on_disk, metavar="FILE", help="names of the classes, if not the weights': JSON, or a line each"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s: this machine alone)")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="port (%(default)s); 0: any that is free")
    parser.add_argument(
        "--longest", type=float, default=LONGEST, metavar="MINUTES", help="longest video that is taken (%(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.longest <= 0:
        raise ValueError(f"--longest {options.longest:g} must be more than 0 minutes")
    if importlib.util.find_spec("gradio") is None:
        todo = "run `make demo` in the checkout, or `pip install 'tubecell[demo]'`"
        raise ValueError(f"gradio, which the page is made with, is not installed for {sys.executable}; {todo}")
    places = options.weights or quickstart_weights()
    with listening(options.host, options.port) as listener:
        shown = load(places, options)
        for place, classifier in shown.predictors.items():
            print(f"predicts with {place} ({classifier.name})")
        for place, autoencoder in shown.reconstructors.items():
            print(f"reconstructs with {place} ({autoencoder.name})")
        for why in shown.neither:
            print(why)
        host, port = listener.getsockname()[:2]
        if not is_this_machine(host):
            print(f"--host {options.host}: whoever can reach this machine can use the page; there is no password")
        ready = f"http://{f'[{host}]' if ':' in host else host}:{port}    (Ctrl-C ends it)"
        serve(listener, shown, list(clips_of_quickstart(places)), options.longest * 60, ready)
    return 0


def is_this_machine(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


if __name__ == "__main__":
    sys.exit(main())
