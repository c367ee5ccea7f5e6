#!/usr/bin/env python3
"""List a run's checkpoints, verify them, and make one file of the weights of one.

    tubecell inspect-checkpoints RUN
    tubecell inspect-checkpoints RUN --verify
    tubecell inspect-checkpoints RUN --consolidate model.safetensors [--step 500] [--ema]
    tubecell inspect-checkpoints s3://bucket/run --verify

RUN is a run's folder or the --mirror of one, whose checkpoints are downloaded, one after the other, to be looked into. The
weights are float32 under their official names, as in the run's own model.safetensors, and say what they are, as those do; with
--ema they are the running mean of the weights. Ends with 1 if one is damaged.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress

from pipeline.console import check_printed, exit_status
from pipeline.storage.output_folder import refuse_dataset
from pipeline.storage.remote import is_url, on_disk
from pipeline.version import version
from train.checkpoint.files import CHECKSUMS, damage, listed, name_of, step_of
from train.checkpoint.mirror import Mirror
from train.checkpoint.source import as_model, metadata_of_run
from train.checkpoint.state import read_progress
from train.checkpoint.weights import read_weights, save_weights


@exit_status(name="inspect_checkpoints")
def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="folder of a run, or its mirror's URL")
    parser.add_argument("--verify", action="store_true", help="read every byte and compare it with the checksums")
    parser.add_argument("--consolidate", type=on_disk, metavar="FILE", help="write the weights to one safetensors file")
    parser.add_argument("--ema", action="store_true", help="of --consolidate: the running mean of the weights")
    parser.add_argument("--step", type=int, metavar="N", help="look at the checkpoint of this step alone")
    options = parser.parse_args(arguments)
    if options.ema and not options.consolidate:
        raise ValueError("--ema says what to write: it needs --consolidate FILE")
    if options.consolidate:
        refuse_dataset("--consolidate", options.consolidate)
    with tempfile.TemporaryDirectory(prefix="tubecell-") as folder:
        status = inspect(options.run, options.verify, options.consolidate, options.step, Path(folder), options.ema)
    if not options.consolidate:
        check_printed()
    return status


def inspect(run: str, verify: bool, consolidate: Path | None, step: int | None, scratch: Path, ema: bool = False) -> int:
    """What the command does -> its exit code; `scratch` is where copies are downloaded to."""
    mirror = Mirror(run) if is_url(run) else None
    names = mirror.names() if mirror else [checkpoint.name for checkpoint in listed(Path(run) / "checkpoints")]
    if not names:
        raise ValueError(f"{run} has no checkpoint; give the folder of a run, or its --mirror")
    if step is not None:
        if name_of(step) not in names:
            raise ValueError(f"{run} has no checkpoint of step {step}; it has {', '.join(names)}")
        names = [name_of(step)]
    whole = True
    for name in names:
        taken = consolidate is not None and name == names[-1]
        if mirror and not (verify or taken):
            print(name)
            continue
        checkpoint = mirror.fetch(name, scratch) if mirror else Path(run) / "checkpoints" / name
        wrong = damage(checkpoint) if verify or taken else None
        print(f"{describe(checkpoint)}{f'  DAMAGED: {wrong}' if wrong else '  whole' if verify or taken else ''}")
        whole = whole and wrong is None
        if taken and consolidate and wrong is None:
            weights = read_weights(checkpoint, "ema" if ema else "model")
            if not weights:
                raise ValueError(f"{name} of {run} has no running mean: the run was begun without --ema")
            folders = [checkpoint, *([] if mirror else [Path(run)])]
            tensors, about = as_model(weights, folders, step_of(name), ema)
            save_weights(consolidate, tensors, metadata_of_run(folders, step=step_of(name), tubecell=version()) | about)
            print(f"{'running mean of the ' if ema else ''}weights of {name} in {consolidate}")
        if mirror:
            shutil.rmtree(checkpoint)
    return 0 if whole else 1


def describe(checkpoint: Path) -> str:
    """A line about a checkpoint; what cannot be read is left out, and is damage to `verify`."""
    facts = [checkpoint.name]
    with suppress(OSError, ValueError, KeyError, TypeError):
        checksums = json.loads((checkpoint / CHECKSUMS).read_text())
        writers = {name.split("_")[2] for name in checksums if name.startswith("__")}
        ranks = f"{len(writers)} rank{'s' if len(writers) > 1 else ''}"
        facts.append(f"{sum(file['size'] for file in checksums.values()) / 2**20:.1f} MiB by {ranks}")
        facts.append(time.strftime("%Y-%m-%d %H:%M", time.localtime((checkpoint / CHECKSUMS).stat().st_mtime)))
        state = read_progress(checkpoint).loader
        facts.append(f"epoch {state.epoch}, {state.step} steps into it")
    return "  ".join(facts)


if __name__ == "__main__":
    sys.exit(main())
