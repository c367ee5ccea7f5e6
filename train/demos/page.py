"""The page of `tubecell demo`: a video goes in, classes and pixels come out. It asks nothing of any other machine."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import gradio as gr

from pipeline.sampling import MaskRule
from train.demos.answers import (
    LARGEST,
    STRIDES,
    STYLE,
    Asked,
    head,
    opened,
    prediction,
    reconstruction,
    told,
    waiting,
)
from train.demos.shown_models import ShownModels

FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif")
MONO = ("ui-monospace", "SF Mono", "DejaVu Sans Mono", "monospace")
THEME = gr.themes.Base(primary_hue="orange", neutral_hue="slate", font=FONTS, font_mono=MONO, radius_size="md")
SWEEP, KEPT = 60, 3600  # seconds between two looks for uploads that are older than an hour, which are removed
BY_RATE = "by its rate"
DROP = "Drop a video on the left, or record one. What it shows will stand here."
HIDDEN = "And here the video as the model sees it, with most of it hidden, and what the model makes of that."


def page(shown: ShownModels, clips: Sequence[Path], longest: float) -> gr.Blocks:
    """What the models can show, of any video of at most so many seconds; `clips` are there to be tried."""
    first = next(iter(shown.reconstructors.values()), None)
    with gr.Blocks(title="tubecell demo", analytics_enabled=False, delete_cache=(SWEEP, KEPT)) as blocks:
        gr.HTML(head(shown))
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                # audio as it is: to leave it out, Gradio would run a program `ffmpeg`
                camera = gr.WebcamOptions(mirror=False)
                video = gr.Video(label="Video", webcam_options=camera, include_audio=True, elem_id="video")
                if clips:
                    samples, labels = [[str(clip)] for clip in clips], [clip.parent.name for clip in clips]
                    gr.Examples(samples, video, label="Or a clip that the quickstart held out", example_labels=labels)
                with gr.Accordion("Settings", open=False):
                    choices = [BY_RATE, *map(str, STRIDES)]
                    stride = gr.Radio(choices, value=BY_RATE, label="Take every n-th frame of the video", elem_id="stride")
                    used = bool(first)
                    share = gr.Slider(
                        *(0.5, 0.95, first.mask_ratio if first else 0.9), step=0.05, label="Share that is hidden", visible=used
                    )
                    moment = gr.Slider(0, 100, 50, step=1, label="Moment to reconstruct, % of the video", visible=used)
                    rule = first.mask if first else "tube"
                    mask = gr.Dropdown(list(get_args(MaskRule)), value=rule, label="What is hidden", visible=used)
                    seed = gr.Number(0, precision=0, minimum=0, label="Seed: another number hides other patches", visible=used)
                    predictor = one_of(shown.predictors, "Predict with")
                    reconstructor = one_of(shown.reconstructors, "Reconstruct with")
            with gr.Column(scale=6, min_width=320):
                classes = gr.HTML(waiting(DROP), elem_id="prediction", visible=bool(shown.predictors))
        pixels = gr.HTML(waiting(HIDDEN), elem_id="reconstruction", visible=used)

        def answer(
            path: str | None, *choices: Any, parts: str = "classes pixels", progress: Any = None
        ) -> Iterator[tuple[Any, Any]]:
            """What both panels say: first both of nothing, then the one, then the other."""
            stride, share, moment, mask, seed, predictor, reconstructor = choices
            if not path:
                yield waiting(DROP), waiting(HIDDEN)
                return
            file = Path(path)
            asked = Asked(None if stride == BY_RATE else int(stride), mask, share, int(seed or 0), moment / 100)
            found: list[Any] = []

            def open_it() -> str:
                found.append(opened(file, longest))
                return ""

            said, good = told(file, open_it)
            if not good:
                yield (said, waiting(HIDDEN)) if shown.predictors else (gr.skip(), said)
                return
            if "classes" in parts and predictor:
                one = shown.predictors[predictor]
                yield told(file, lambda: prediction(one, file, found[0], asked, progress))[0], gr.skip()
            if "pixels" in parts and reconstructor:
                other = shown.reconstructors[reconstructor]
                yield gr.skip(), told(file, lambda: reconstruction(other, file, found[0], asked))[0]

        listen(answer, video, [stride, share, moment, mask, seed, predictor, reconstructor], [classes, pixels])
    return blocks


def one_of(models: dict[str, Any], label: str) -> gr.Dropdown:
    """A choice, if there is one."""
    return gr.Dropdown(list(models), value=next(iter(models), None), label=label, visible=len(models) > 1)


def listen(answer: Callable[..., Any], video: gr.Video, choices: list[Any], panels: list[Any]) -> None:
    """A new video and settings of both are answered by both panels, settings of one by that."""

    def whole(*values: Any, progress: Any = gr.Progress()) -> Iterator[Any]:  # noqa: B008  Gradio looks for it there
        yield from answer(*values, progress=lambda done, of: progress((done, of), unit="windows"))

    def classes(*values: Any, progress: Any = gr.Progress()) -> Iterator[Any]:  # noqa: B008
        yield from answer(*values, parts="classes", progress=lambda done, of: progress((done, of), unit="windows"))

    def pixels(*values: Any) -> Iterator[Any]:
        yield from answer(*values, parts="pixels")

    stride, share, moment, mask, seed, predictor, reconstructor = choices
    how: dict[str, Any] = {"inputs": [video, *choices], "concurrency_id": "models", "api_visibility": "private"}
    gr.on([video.change, stride.change], whole, outputs=panels, **how, trigger_mode="always_last")
    gr.on([predictor.change], classes, outputs=panels, **how, trigger_mode="always_last", show_progress_on=panels[0])
    gr.on(
        [share.release, moment.release, mask.change, seed.change, reconstructor.change],
        pixels,
        outputs=panels,
        **how,
        trigger_mode="always_last",
        show_progress_on=panels[1],
    )


def mounted(app: Any, blocks: gr.Blocks) -> Any:
    """The page, as the whole of an application of FastAPI."""
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        show_error=False,
        max_file_size=LARGEST,
        enable_monitoring=False,
        mcp_server=False,
        theme=THEME,
        css=STYLE.read_text("utf-8"),
    )
