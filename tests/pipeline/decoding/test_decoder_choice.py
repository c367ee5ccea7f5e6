"""Who decodes, and how the loader says so."""

from pathlib import Path

import pytest

from pipeline.decoding import decoder_choice
from pipeline.decoding.decoder_choice import DecoderChoice, choose_decoder
from pipeline.loader import ClipLoader
from pipeline.sampling.samples import SamplingRecipe
from pipeline.storage.manifest import Manifest
from tests.manifest_rows import row, write_rows

LEFT = "DALI decodes h264, hevc, vp8, vp9 on a GPU, not mpeg4"
TWO_CORES = "2 cores decode about 182 clips/s"


def manifest(folder: Path, *codecs: str) -> Manifest:
    write_rows(folder, [row(i, codec=codec) for i, codec in enumerate(codecs)])
    return Manifest(folder)


@pytest.fixture
def h200(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU with DALI."""
    monkeypatch.setattr(decoder_choice, "what_dali_lacks", lambda: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA H200")


@pytest.mark.parametrize(
    ("device", "codecs", "name", "reasons"),
    [
        ("cpu", ("vp9", "vp9", "vp9"), "libav", {"the batch is wanted on a CPU": 3}),
        ("cuda", ("h264", "h264", "vp9"), "dali", {}),
        ("cuda:1", ("h264", "mpeg4", "mpeg4"), "both", {LEFT: 2}),
        ("cuda", ("mpeg4", "mpeg4", "mpeg4"), "libav", {LEFT: 3}),
    ],
)
def test_auto_goes_by_codec_and_device(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    h200: None,
    device: str,
    codecs: tuple[str, ...],
    name: str,
    reasons: dict[str, int],
) -> None:
    monkeypatch.setitem(decoder_choice.DALI_RATES, "H200", 280.0)
    choice = choose_decoder(manifest(tmp_path, *codecs), device, cores=2, wanted=585)
    assert choice == DecoderChoice(name, reasons)
    rates = f"{TWO_CORES}, the step takes about 585, DALI on NVIDIA H200 gives about 280"
    assert (rates in str(choice)) == (name in ("dali", "both"))


@pytest.mark.parametrize(
    ("cores", "wanted", "measured", "why"),
    [
        (2, None, 280, f"{TWO_CORES}; how many the step takes is not known"),
        (14, 84.4, 280, "14 cores decode about 1,274 clips/s, the step takes about 84"),
        (2, 182, 280, f"{TWO_CORES}, the step takes about 182"),
        (1, 585, 80, "1 core decodes about 91 clips/s, the step takes about 585, DALI on NVIDIA H200 gives about 80"),
        (
            *(2, 585, None),
            f"{TWO_CORES}, the step takes about 585: it may wait for data; where NVDEC decodes more, --loader.decoder dali "
            "helps, not measured on NVIDIA H200",
        ),
    ],
)
def test_auto_on_a_gpu_is_libav_unless_cores_are_too_few_and_dali_was_measured_to_be_faster(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    h200: None,
    cores: int,
    wanted: float | None,
    measured: float | None,
    why: str,
) -> None:
    if measured:
        monkeypatch.setitem(decoder_choice.DALI_RATES, "H200", measured)
    clips = manifest(tmp_path, "h264", "vp9")
    choice = choose_decoder(clips, "cuda", cores=cores, wanted=wanted)
    assert choice == DecoderChoice("libav", {why: 2})
    assert str(choice).startswith(f"libav: libav takes 2 clips ({why}); crops: ")
    assert choose_decoder(clips, "cuda", "dali", cores=cores, wanted=wanted) == DecoderChoice("dali")


def test_what_is_asked_for_is_given_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = manifest(tmp_path, "h264", "vp9", "mpeg4")
    left = "DALI decodes vp8, vp9, mjpeg on a CPU, not "
    on_cpu = choose_decoder(clips, "cpu", "dali")
    assert on_cpu == DecoderChoice("both", {f"{left}h264": 1, f"{left}mpeg4": 1})
    assert str(on_cpu).startswith(f"both: libav takes 1 clips ({left}h264), libav takes 1 clips ({left}mpeg4); crops: ")
    assert choose_decoder(clips, "cuda", "libav").name == "libav"
    monkeypatch.setattr(decoder_choice, "what_dali_lacks", lambda: "NVDEC is not there")
    why = f"{TWO_CORES}, the step takes about 200: it may wait for data, and NVDEC is not there"
    assert choose_decoder(clips, "cuda", cores=2, wanted=200) == DecoderChoice("libav", {why: 3})
    with pytest.raises(ValueError, match="decoder 'dali' cannot be had: NVDEC is not there; or take decoder 'libav'"):
        choose_decoder(clips, "cuda", "dali")


def test_what_makes_crops_and_colours_is_named_and_a_slow_one_is_told_once(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decoder_choice, "find_kernel", lambda: "there is no C compiler")
    monkeypatch.setattr(decoder_choice, "find_swscale", lambda: "PyAV's libswscale is 10")
    for rank in (1, 0, 0):
        choice = ClipLoader(dataset, SamplingRecipe(views_per_step=8), rank=rank, world_size=2).decoder_choice
    assert str(choice).endswith("; crops: torch, colours: PyAV")
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and all(line.startswith("warning: ") for line in told)
    assert told[0].endswith(": there is no C compiler") and told[1].endswith(": PyAV's libswscale is 10")


def test_a_missing_package_or_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert decoder_choice.what_dali_lacks() is None
    monkeypatch.setattr("ctypes.CDLL", absent)
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video" in str(decoder_choice.what_dali_lacks())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert decoder_choice.what_dali_lacks() == "nvidia-dali-cuda130 is not installed"
