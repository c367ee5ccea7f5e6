"""What `gpu_suite.py` measures: parts in their order of importance, their measurements, and the figures that each of them owes.

A measurement is a function of its part's module, called with a `Bench`. Every figure named here is in the report: with its
value, or with the reason why it has none.
"""

from dataclasses import dataclass

IN_FLIGHT = (1, 2, 4, 7, 14)  # an H100 or H200 has seven NVDEC
GOPS = (8, 16, 32, 250)
SIZES = ((352, 256), (448, 256), (1280, 720))  # width, height
CODECS = ("h264-fast", "hevc", "vp9")
STARTS = (0, 60, 120, 230)  # of 300 frames
REUSE = ("first_call", "multiple_of_16", "not_multiple_of_16", "sizes_in_turn", "sizes_mixed")
DAMAGE = ("as_libav", "delivered_but_refused_by_libav", "whole_afterwards")
DETERMINISM = ("gradients", "deterministic_gradients", "cost")
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


def parity_name(case: tuple[str, str, str, int, tuple[int, int]]) -> str:
    """`h264-fast-bt709-full-90-340x254`"""
    codec, matrix, span, rotation, (width, height) = case
    return f"{codec}-{matrix}-{span}-{rotation}-{width}x{height}"


def end_to_end_figures(model: str) -> tuple[str, ...]:
    """Of training a model with every decoder."""
    used = [f"{model}/{decoder}/{what}" for decoder in DECODERS for what in ("data_wait", "cores", "nvdec")]
    return (f"{model}/cached", *(f"{model}/{decoder}" for decoder in DECODERS), *used, f"{model}/discarded")


@dataclass(frozen=True, slots=True)
class Measurement:
    """A function of a part's module, and what comes of it."""

    name: str
    """Of the function."""
    seconds: float
    """At full size, about. With much less left it is not begun; longer than `limit` it is killed."""
    figures: tuple[str, ...]
    """What it owes."""
    limit: float | None = None
    """Seconds; by default twice `seconds` and 15."""
    spare: bool = False
    """Done with what is left over: no share of the time is set aside for it."""

    def patience(self, dry: bool) -> float:
        """Seconds after which it is killed. A dry walk may run on a machine that is busy with other things."""
        if self.limit is not None:
            return self.limit
        return 2 * self.seconds + (150 if dry else 15)


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


PARTS = (
    Part(
        "machine",
        "The machine",
        f"{__package__}.machine",
        (Measurement("ceilings", 12, ("copy", *(f"gemm/{kind}" for kind in ("bf16", "fp16", "tf32")), "host_to_device")),),
    ),
    Part(
        "steps",
        "Training steps",
        f"{__package__}.steps",
        (
            Measurement(
                "vit_g",
                75,
                ("vit-g/dual", "bar/of_data_sheet", "bar/of_gemm", *(f"profile/{c}" for c in COSTS), "no_host_sync"),
            ),
            Measurement("vit_b", 30, ("vit-b/dual", "guard/skips", "guard/goes_on")),
            Measurement("modes", 35, ("mode/eager", "mode/compiled", "mode/cuda_graph")),
            Measurement("precisions", 40, tuple(f"precision/{precision}" for precision in STEP_PRECISIONS)),
            Measurement("vit_l", 35, ("vit-l/dual",), spare=True),
            Measurement("vit_h", 40, ("vit-h/dual",), spare=True),
            Measurement("encoder_only", 80, tuple(f"{model}/encoder_only" for model in MODELS), spare=True),
            Measurement("largest", 90, tuple(f"largest/{policy}" for policy in POLICIES), spare=True),
        ),
    ),
    Part(
        "decoding",
        "NVDEC through DALI",
        f"{__package__}.decoding",
        (
            Measurement("in_flight", 22, tuple(f"in_flight/{codec}/{number}" for codec in CODECS for number in IN_FLIGHT)),
            Measurement("modes", 9, ("mode/dynamic", "mode/pipeline")),
            Measurement("trimming", 14, ("whole", "trimmed", *(f"start/{start}" for start in STARTS), "trim")),
            Measurement("formats", 14, (*(f"gop/{gop}" for gop in GOPS), *(f"size/{w}x{h}" for w, h in SIZES))),
            Measurement("reuse", 8, tuple(f"reuse/{case}" for case in REUSE)),
            Measurement("damage", 6, tuple(f"damage/{case}" for case in DAMAGE)),
            Measurement("memory", 20, ("memory/device", "memory/host")),
        ),
    ),
    Part(
        "parity",
        "Parity of the decoders",
        f"{__package__}.parity",
        (
            Measurement("decoders", 10, tuple(parity_name(case) for case in PARITY)),
            Measurement("matrices", 3, tuple(f"matrix/{tag}" for tag in TAGS)),
            Measurement("corrections", 3, ("truncation",)),
            Measurement("resizing", 2, ("resize",)),
        ),
    ),
    Part(
        "end_to_end",
        "End to end",
        f"{__package__}.end_to_end",
        (
            Measurement("vit_g", 55, end_to_end_figures("vit-g")),
            Measurement("vit_b", 45, (*end_to_end_figures("vit-b"), "vit-b/trace")),
        ),
    ),
    Part(
        "kernels",
        "Kernels",
        f"{__package__}.kernels",
        (
            Measurement(
                "tokens",
                15,
                tuple(f"tokens/{m}/{how}{e}" for m in TOKEN_MODELS for how in TOKEN_METHODS for e in ("", "/error")),
            ),
            Measurement("attention", 6, tuple(f"attention/{place}/{b}" for place in ("encoder", "decoder") for b in BACKENDS)),
            Measurement("widths", 3, ("width/2234", "width/2240")),
        ),
    ),
    Part(
        "learning",
        "It learns there too",
        f"{__package__}.learning",
        (
            Measurement(
                "quickstart", 40, tuple(f"quickstart/{what}" for what in ("seconds", "views", "first_loss", "last_loss"))
            ),
            Measurement("resume", 25, ("resume/bit_exact",)),
            Measurement("determinism", 20, tuple(f"determinism/{what}" for what in DETERMINISM)),
            Measurement(
                "vit_s", 330, tuple(f"vit-s/{what}" for what in ("seconds", "views", "first_loss", "last_loss")), spare=True
            ),
        ),
    ),
)
