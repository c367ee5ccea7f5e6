#!/usr/bin/env python3
"""Show what an autoencoder makes of a video of which it sees a tenth: as a picture, and as a film.

    tubecell reconstruct VIDEO --weights W [--mask-ratio 0.9] [--mask tube] [--start SECONDS] [--out FILE]

VIDEO is any file that FFmpeg reads; W are weights with a decoder that predicts pixels: official files, a Hugging Face folder,
a run. FILE.png and FILE.mp4 show the original, what the encoder saw, the reconstruction, and the hidden patches' means alone.
As in the papers a patch's mean and contrast are taken from the original, so what is in the last one was not learned: compare
the two, or the errors that are printed.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import argparse
from collections.abc import Sequence
from typing import get_args

from pipeline.console import exit_status
from pipeline.decoding.decode import DecodeError
from pipeline.decoding.video_file import read_video
from pipeline.sampling import MaskRule
from pipeline.storage.output_folder import refuse_dataset
from pipeline.storage.remote import on_disk
from train.demos import weights as released
from train.demos.film import write_film
from train.demos.reconstruction import ROWS, needs_pixels, rate_of, reconstruct, window
from train.pictures import BORROWED, draw_images

FRAMES = 8  # of the picture


@exit_status(name="reconstruct")
def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=on_disk, metavar="VIDEO", help="a file")
    released.add_options(parser)
    parser.add_argument("--mask-ratio", type=float, default=0.9, metavar="R", help="share that is hidden (default: 0.9)")
    parser.add_argument("--mask", choices=get_args(MaskRule), default="tube", help="what is hidden (default: tube)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the mask (default: 0)")
    parser.add_argument("--start", type=float, metavar="SECONDS", help="of the first frame (default: the video's middle)")
    parser.add_argument("--stride", type=int, default=4, metavar="N", help="take every N-th frame (default: 4)")
    parser.add_argument("--out", type=on_disk, metavar="FILE", help="FILE.png and FILE.mp4 (default: VIDEO-reconstruction)")
    options = parser.parse_args(arguments)
    stem: Path = options.out or Path(f"{options.video.stem}-reconstruction")
    if stem.suffix in (".png", ".mp4"):
        stem = stem.with_suffix("")
    refuse_dataset("--out", stem)
    picture, film = (stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "mp4"))
    if film.exists() and options.video.exists() and film.samefile(options.video):
        raise ValueError(f"--out {options.out} would write over the video itself; give another name")
    if options.stride < 1:
        raise ValueError(f"--stride {options.stride} must be at least 1")
    weights = released.read(options)
    needs_pixels(weights)
    print(weights)
    model = released.build(weights, options)
    try:
        video = read_video(options.video)
        frames = window(video, weights.config.num_frames, options.stride, options.start)
        images = reconstruct(model, video, frames, options.mask, options.mask_ratio, options.seed)
    except (DecodeError, OSError) as error:
        released.tell("reconstruct", options.video, error)
        return 1
    stem.parent.mkdir(parents=True, exist_ok=True)
    errors = f"error {images.error:.3f}, of the means alone {images.error_of_means:.3f}"
    begin, end = video.times[frames[[0, -1]]]
    hidden = f"{options.mask_ratio:.0%} hidden ({options.mask})"
    title = f"{released.short(options.video.name)}, {begin:.1f} to {end:.1f} s; {weights.name}; {hidden}\n{errors}; {BORROWED}"
    draw_images(picture, dict(zip(ROWS, images[:4], strict=True)), min(FRAMES, len(frames)), title)
    clips = {name.replace("\n", " "): clip[0] for name, clip in zip(ROWS, images[:4], strict=True)}
    write_film(film, clips, rate_of(video, frames, options.stride))
    print(f"squared error    {images.error:.3f} of the hidden patches' normalised pixels")
    print(f"                 {images.error_of_means:.3f} of their means alone")
    print(f"picture          {picture}\nfilm             {film}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
