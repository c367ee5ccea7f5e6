"""What `gpu_suite.py` measures: parts in their order of importance, their measurements, and the figures that each of them owes.

A measurement is a function of its part's module, called with a `Bench`. Every figure named here is in the report: with its
value, or with the reason why it has none.
"""

from collections.abc import Iterable
from dataclasses import dataclass

IN_FLIGHT = (1, 2, 4, 7, 14)  # an H100 or H200 has seven NVDEC
GOPS = (8, 16, 32, 250)
SIZES = ((352, 256), (448, 256), (1280, 720))  # width, height
CODECS = ("h264-fast", "hevc", "vp9")
STARTS = (0, 60, 120, 230)  # of 300 frames
REUSE = ("first_call", "multiple_of_16", "not_multiple_of_16", "sizes_in_turn", "sizes_mixed")
DAMAGE = ("as_libav", "delivered_but_refused_by_libav", "whole_afterwards")
DETERMINISM = ("gradients", "deterministic_gradients", "cost")
LEARNING = ("seconds", "views", "first_loss", "last_loss")
TOKEN_MODELS, TOKEN_METHODS = ("vit-g", "vit-b"), ("reference", "compiled", "triton")
BACKENDS = ("flash", "efficient", "cudnn", "math")
STEP_PRECISIONS = ("bf16", "fp16", "paper")
POLICIES = ("none", "every:2", "full")  # of activation checkpointing
COSTS = ("matrix_products", "attention", "elementwise_and_norms", "optimizer", "tokens", "copies", "other")
MODELS = ("vit-b", "vit-l", "vit-h", "vit-g")
DECODERS = ("auto", "libav", "dali")
# (codec, matrix, range, rotation, (width, height)) of the parity between the decoders
PARITY = (
    ("h264-fast", "bt601", "limited", 0, (352, 256)),
    ("h264-fast", "bt601", "full", 0, (352, 256)),
    ("h264-fast", "bt709", "limited", 0, (352, 256)),
    ("h264-fast", "bt709", "full", 90, (340, 254)),
    ("h264-fast", "bt601", "limited", 180, (340, 254)),
    ("h264-fast", "bt601", "limited", 270, (352, 256)),
    ("hevc", "bt601", "limited", 0, (352, 256)),
    ("hevc", "bt709", "limited", 90, (352, 256)),
    ("hevc", "bt709", "full", 0, (340, 254)),
    ("vp9", "bt601", "limited", 0, (352, 256)),
    ("vp9", "bt709", "limited", 180, (352, 256)),
    ("vp9", "bt709", "full", 270, (340, 254)),
    ("vp8", "bt601", "limited", 0, (352, 256)),
    ("mjpeg", "bt601", "full", 0, (352, 256)),
)
TAGS = tuple(f"{codec}-{matrix}-{span}" for codec in CODECS for matrix in ("bt601", "bt709") for span in ("limited", "full"))


def under(prefix: str, names: Iterable[object]) -> tuple[str, ...]:
    """`prefix/name` of each."""
    return tuple(f"{prefix}/{name}" for name in names)


def parity_name(case: tuple[str, str, str, int, tuple[int, int]]) -> str:
    """`h264-fast-bt709-full-90-340x254`"""
    codec, matrix, span, rotation, (width, height) = case
    return f"{codec}-{matrix}-{span}-{rotation}-{width}x{height}"


def end_to_end_figures(model: str, *decoders: str) -> tuple[str, ...]:
    """Of training a model with these decoders."""
    return tuple(f"{model}/{decoder}{what}" for decoder in decoders for what in ("", "/data_wait", "/cores", "/nvdec"))


@dataclass(frozen=True, slots=True)
class Measurement:
    """A function of a part's module, and what comes of it."""

    name: str  # of the function
    seconds: float  # at full size, about; with much less left it is not begun, longer than `limit` it is killed
    figures: tuple[str, ...]  # what it owes
    limit: float | None = None  # seconds; by default twice `seconds` and 15
    spare: bool = False  # done with what is left over: no share of the time is set aside for it

    def patience(self, dry: bool) -> float:
        """Seconds after which it is killed. A dry walk may run on a machine that is busy with other things."""
        return 2 * self.seconds + (150 if dry else 15) if self.limit is None else self.limit


@dataclass(frozen=True, slots=True)
class Part:
    """Measurements that share a process."""

    name: str
    title: str
    module: str
    measurements: tuple[Measurement, ...]

    @property
    def seconds(self) -> float:
        """That are set aside for it, at full size."""
        return sum(measurement.seconds for measurement in self.measurements if not measurement.spare)


def _part(name: str, title: str, *measurements: Measurement) -> Part:
    """Of the module of the same name."""
    return Part(name, title, f"{__package__}.{name}", measurements)


PARTS = (
    _part(
        "machine",
        "The machine",
        Measurement("ceilings", 12, ("copy", *under("gemm", ("bf16", "fp16", "tf32")), "host_to_device")),
    ),
    _part(
        "steps",
        "Training steps",
        Measurement("vit_g", 75, ("vit-g/dual", "bar/of_data_sheet", "bar/of_gemm", *under("profile", COSTS), "no_host_sync")),
        Measurement("vit_b", 30, ("vit-b/dual", "guard/skips", "guard/goes_on")),
        Measurement("modes", 35, ("mode/eager", "mode/compiled", "mode/cuda_graph")),
        Measurement("precisions", 40, under("precision", STEP_PRECISIONS)),
        Measurement("vit_l", 35, ("vit-l/dual",), spare=True),
        Measurement("vit_h", 40, ("vit-h/dual",), spare=True),
        Measurement("encoder_only", 80, tuple(f"{model}/encoder_only" for model in MODELS), spare=True),
        Measurement("largest", 90, under("largest", POLICIES), spare=True),
    ),
    _part(
        "decoding",
        "NVDEC through DALI",
        Measurement("in_flight", 22, tuple(f"in_flight/{codec}/{number}" for codec in CODECS for number in IN_FLIGHT)),
        Measurement("modes", 9, ("mode/dynamic", "mode/pipeline")),
        Measurement("trimming", 14, ("whole", "trimmed", *under("start", STARTS), "trim")),
        Measurement("formats", 14, (*under("gop", GOPS), *(f"size/{w}x{h}" for w, h in SIZES))),
        Measurement("reuse", 8, under("reuse", REUSE)),
        Measurement("damage", 6, under("damage", DAMAGE)),
        Measurement("memory", 20, ("memory/device", "memory/host")),
    ),
    _part(
        "parity",
        "Parity of the decoders",
        Measurement("decoders", 10, tuple(parity_name(case) for case in PARITY)),
        Measurement("matrices", 3, under("matrix", TAGS)),
        Measurement("corrections", 3, ("truncation",)),
        Measurement("resizing", 2, ("resize",)),
    ),
    _part(
        "end_to_end",
        "End to end",
        Measurement("vit_g", 55, ("vit-g/cached", *end_to_end_figures("vit-g", *DECODERS), "vit-g/discarded")),
        Measurement("vit_b", 45, ("vit-b/cached", *end_to_end_figures("vit-b", *DECODERS), "vit-b/discarded", "vit-b/trace")),
    ),
    _part(
        "kernels",
        "Kernels",
        Measurement(
            "tokens", 15, tuple(f"tokens/{m}/{how}{e}" for m in TOKEN_MODELS for how in TOKEN_METHODS for e in ("", "/error"))
        ),
        Measurement("attention", 6, tuple(f"attention/{place}/{b}" for place in ("encoder", "decoder") for b in BACKENDS)),
        Measurement("widths", 3, ("width/2234", "width/2240")),
    ),
    _part(
        "learning",
        "It learns there too",
        Measurement("quickstart", 40, under("quickstart", LEARNING)),
        Measurement("resume", 25, ("resume/bit_exact",)),
        Measurement("determinism", 20, under("determinism", DETERMINISM)),
        Measurement("vit_s", 330, under("vit-s", LEARNING), spare=True),
    ),
)
