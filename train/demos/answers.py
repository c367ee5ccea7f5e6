"""What the page of `tubecell demo` says of a video, as HTML. Every name from outside is escaped, and whatever is wrong with a
video is a sentence."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from traceback import print_exc
from typing import Any

import numpy as np

from pipeline.decoding.video_file import VideoFile, read_video
from pipeline.report.page import environment_of
from pipeline.sampling import MaskRule
from train.accuracy.accuracy_page import jpeg
from train.demos.prediction import end_to_end, predict
from train.demos.reconstruction import ROWS, rate_of, reconstruct, window
from train.demos.shown_models import Predictor, Reconstructor, ShownModels
from train.demos.time_line import TICKS, TimeLine, clock
from train.demos.weights import REFUSED, printable, reason

TEMPLATE, STYLE = (Path(__file__).with_name(f"answers.{kind}") for kind in ("html", "css"))
LARGEST = 1 << 30  # bytes of a file, which is held in memory
MOST_WINDOWS = 64  # of a video: with ViT-B a minute of two cores
TOP = 5
APART = 2 / 15  # seconds between two frames that a model sees: every 4th at the 30 per second of the papers' videos
USUAL_RATES, USUAL_STRIDE = (20, 40), 4  # frames per second at which the official tests take every 4th, whatever the rate
STRIDES = (1, 2, 4, 8)
COARSE = 112  # pixels of a side: below, they are shown as squares

ELSEWHERE = "Cut it, or use `tubecell predict` and `tubecell reconstruct`, which have no limit."

_parts: Any = environment_of(TEMPLATE.parent).get_template(TEMPLATE.name).module


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody has chosen on the page."""

    stride: int | None = None
    """Take every so-manyth frame; None: by the video's rate, see `usual_stride`."""
    mask: MaskRule = "tube"
    mask_ratio: float = 0.9
    seed: int = 0
    moment: float = 0.5
    """What is reconstructed: 0 the video's first frames, 1 its last ones."""


def opened(path: Path, longest: float) -> VideoFile:
    """An uploaded file. Raises what REFUSED names, ValueError for one that is too large, or longer than so many seconds."""
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"the file has {size / 1e9:.1f} GB; this page takes up to {LARGEST / 1e9:.1f}. {ELSEWHERE}")
    video = read_video(path)
    if video.seconds > longest:
        whole = max(video.seconds, 60)
        limit = f"this page takes up to {longest / 60:g} minutes (--longest)"
        raise ValueError(f"the video is {clock(video.seconds, whole)} long; {limit}. {ELSEWHERE}")
    return video


def usual_stride(video: VideoFile) -> int:
    """Frames of a video that lie as far apart as in the papers, 2/15 s; every 4th at usual rates, as the official tests do."""
    times = video.times
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else 30
    return USUAL_STRIDE if USUAL_RATES[0] <= rate <= USUAL_RATES[1] else max(1, round(rate * APART))


def told(path: Path, what: Callable[[], str]) -> tuple[str, bool]:
    """What is said of a video, and whether that is an answer; or why there is none. An error of ours is a traceback in the
    terminal, and a sentence on the page."""
    try:
        return what(), True
    except REFUSED as error:
        return refusal(path.name, reason(error)), False
    except Exception:
        print_exc()
        return refusal(path.name, "something went wrong in this program; its terminal says what"), False


def refusal(name: str, why: str) -> str:
    return str(_parts.refusal(name, why[:1].upper() + why[1:]))


def waiting(text: str) -> str:
    """What a panel says before there is a video."""
    return str(_parts.waiting(text))


def head(shown: ShownModels) -> str:
    """What the page is for; what the weights can show, what not, and why."""
    return str(_parts.head(list(shown.predictors.values()), list(shown.reconstructors.values()), shown.neither))


def prediction(
    predictor: Predictor, path: Path, video: VideoFile, asked: Asked, done: Callable[[int, int], None] | None = None
) -> str:
    """The most probable classes; of a video longer than a window, when they are there. Raises what REFUSED names."""
    clip, num_frames = video.clip, predictor.model.config.num_frames
    stride = asked.stride or usual_stride(video)
    needed = end_to_end(clip.num_frames, num_frames, stride)
    views = (MOST_WINDOWS, 1) if needed > MOST_WINDOWS else None
    found = predict(predictor.model, video, stride, views, done=done)
    rows = found.line.rows(TOP)
    flags = ["--stride", str(stride), *(["--views", f"{MOST_WINDOWS}x1"] if views else [])]
    return str(
        _parts.prediction(
            name=path.name,
            about=about(video),
            windows=len(found.frames),
            span=num_frames * stride,
            needed=needed,
            every=every(stride),
            repeated=num_frames - len(np.unique(found.frames[0])),
            classes=predictor.classes,
            named=predictor.named,
            best=rows[0],
            top=rows[:TOP],
            line=drawn(found.line, rows, found.pictures) if found.timed else None,
            clock=lambda seconds: clock(seconds, video.seconds),
            command=command("predict", path, predictor.place, flags),
        )
    )


def drawn(line: TimeLine, rows: Sequence[Any], pictures: np.ndarray) -> dict[str, Any]:
    """A strip of frames, rows with bars in thousandths of the video's length, and ticks below them."""
    spans, values = line.spans, line.probabilities
    begin, whole = spans[0, 0], spans[-1, 1] - spans[0, 0]
    places = (spans - begin) / whole * 1000
    step = next((step for step in TICKS if whole <= 6 * step), whole)
    ticks = np.arange(np.ceil(begin / step), np.floor((begin + whole) / step) + 1) * step
    return {
        "coarse": pictures.shape[1] < COARSE,
        "strip": jpeg(np.concatenate(list(pictures), axis=1), quality=90, subsampling=0),
        "rows": [
            (row, [(left, right - left, p) for (left, right), p in zip(places, values[:, row.index], strict=True)])
            for row in rows
        ],
        "ticks": [(float((tick - begin) / whole * 100), clock(float(tick), float(whole))) for tick in ticks],
    }


def reconstruction(reconstructor: Reconstructor, path: Path, video: VideoFile, asked: Asked) -> str:
    """Four films beside each other, and the errors of the last two. Raises what REFUSED names."""
    config, stride = reconstructor.model.config, asked.stride or usual_stride(video)
    last = max(0, video.clip.num_frames - (config.num_frames - 1) * stride - 1)
    start = float(video.times[round(last * asked.moment)])
    frames = window(video, config.num_frames, stride, start)
    images = reconstruct(reconstructor.model, video, frames, asked.mask, asked.mask_ratio, asked.seed)
    films = [
        (name.replace("\n", " "), jpeg(np.concatenate(list(clip[0]), axis=1), quality=92, subsampling=0))
        for name, clip in zip(ROWS, images[:4], strict=True)
    ]
    begin, end = (clock(float(seconds), video.seconds) for seconds in video.times[frames[[0, -1]]])
    flags = ["--mask-ratio", f"{asked.mask_ratio:g}", "--mask", asked.mask, "--seed", str(asked.seed)]
    flags += ["--stride", str(stride), "--start", f"{start:.3f}"]
    return str(
        _parts.reconstruction(
            films=films,
            coarse=config.input_size < COARSE,
            num_frames=len(frames),
            seconds=len(frames) / rate_of(video, frames, stride),
            every=every(stride),
            begin=begin,
            end=end,
            hidden=asked.mask_ratio,
            mask=asked.mask,
            error=images.error,
            error_of_means=images.error_of_means,
            command=command("reconstruct", path, reconstructor.place, flags),
        )
    )


def about(video: VideoFile) -> str:
    frames = video.clip.num_frames
    return f"{video.seconds:.1f} s, {frames:,} frame{'' if frames == 1 else 's'} of {video.clip.width} × {video.clip.height}"


def every(stride: int) -> str:
    return "every frame" if stride == 1 else f"every {stride}{ {2: 'nd', 3: 'rd'}.get(stride, 'th') } frame"


def command(program: str, path: Path, place: str, flags: Sequence[str]) -> str:
    """What gives the same in a terminal."""
    return printable(shlex.join(["tubecell", program, path.name, "--weights", place, *flags]))
