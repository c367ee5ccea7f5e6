"""A folder of numbered images as a source: their bytes go to FFmpeg one after the other through a pipe, their names nowhere."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import BinaryIO

import av
import av.logging

from dataset_builders.media.ffmpeg_process import FfmpegLog
from dataset_builders.media.image_names import image_names
from dataset_builders.media.probe import VideoInfo, open_file, picture
from dataset_builders.media.rejects import Reason, RejectedError
from pipeline.decoding.orientation import rotation_of, stored_size

# by extension: FFmpeg's demuxer of images in a row, libavcodec's decoder, and what stands near the end of a whole file
FORMATS = {
    b".jpg": ("jpeg_pipe", "mjpeg", b"\xff\xd9"),
    b".jpeg": ("jpeg_pipe", "mjpeg", b"\xff\xd9"),
    b".png": ("png_pipe", "png", b"IEND"),
    b".webp": ("webp_pipe", "webp", b""),
}


@dataclass(slots=True)
class ImageFolder:
    """The images that are wanted of a folder, in the order of the numbers in their names."""

    folder: bytes
    names: list[bytes]
    rate: Fraction
    _problem: RejectedError | None = field(default=None, init=False)

    @classmethod
    def list(cls, folder: bytes, rate: Fraction, first: int = 0, num_images: int | None = None) -> "ImageFolder":
        """JPEG, PNG or WebP files of a folder; raises RejectedError (unreadable, not_video, unsupported, truncated).

        Other files are passed over, see image_names.py. `first` is a place among the images, from 0.
        """
        try:
            names = image_names(os.listdir(folder))
        except OSError as error:
            raise RejectedError(Reason.UNREADABLE, error.strerror or str(error)) from None
        if not names:
            raise RejectedError(Reason.NOT_VIDEO, "the folder holds no images (.jpg, .jpeg, .png, .webp)")
        kinds = sorted({FORMATS[_extension(name)][0].removesuffix("_pipe") for name in names})
        if len(kinds) > 1:
            raise RejectedError(Reason.UNSUPPORTED, f"the folder holds images of {len(kinds)} formats: {', '.join(kinds)}")
        taken = names[first : None if num_images is None else first + num_images]
        if not taken or len(taken) < (num_images or 0):
            wanted = "some" if num_images is None else num_images
            detail = f"{wanted} images are wanted from place {first} on, the folder holds {len(names)} in all"
            raise RejectedError(Reason.TRUNCATED, detail)
        return cls(folder, taken, rate)

    @property
    def reading(self) -> dict[str, str]:
        """FFmpeg's options for what `opened` gives."""
        return {"f": FORMATS[_extension(self.names[0])][0], "framerate": str(self.rate)}

    def probe(self) -> VideoInfo:
        """From the first image; raises RejectedError (damaged, unreadable)."""
        decoder = _decoder(self.names[0])
        frame = _decode(decoder, self._read(self.names[0]))
        if frame is None:
            raise self._damaged(self.names[0], "it does not decode")
        return VideoInfo(
            stream=0,
            container=self.reading["f"],
            codec=decoder.name,
            planar_yuv=False,  # and never interlaced
            **picture(frame, decoder.sample_aspect_ratio),
            rate=self.rate,
            constant_rate=True,
            num_packets=len(self.names),
            last=(len(self.names) - 1) / float(self.rate),
        )

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The reading end of a pipe that a thread writes the images to, until one cannot be read or is not whole."""
        reading, writing = os.pipe()
        feeder = threading.Thread(target=self._feed, args=(writing,), daemon=True)
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            feeder.start()
            yield pipe
        feeder.join()  # with the reading end closed it cannot wait for anybody

    def _feed(self, writing: int) -> None:
        with os.fdopen(writing, "wb", buffering=0) as pipe:
            for name in self.names:
                try:
                    data = memoryview(self._read(name))
                    while data:
                        data = data[pipe.write(data) :]
                except RejectedError as error:
                    self._problem = error
                    return
                except BrokenPipeError:  # FFmpeg has ended, and its log says why
                    return

    def _read(self, name: bytes) -> bytes:
        try:
            with open(open_file(os.path.join(self.folder, name)), "rb") as file:
                data = file.read()
        except RejectedError as error:
            raise RejectedError(error.reason, f"{_text(name)}: {error.detail}") from None
        except OSError as error:
            raise RejectedError(Reason.UNREADABLE, f"{_text(name)}: {error.strerror}") from None
        mark = FORMATS[_extension(name)][2]
        short = len(data) < int.from_bytes(data[4:8], "little") + 8 if data[:4] == b"RIFF" else mark not in data[-1024:]
        if short:  # otherwise FFmpeg would take the next image for its end
            raise self._damaged(name, "the file is empty" if not data else "it ends early")
        return data

    def check(self, log: FfmpegLog) -> None:
        """Raise RejectedError (damaged, unsupported) that names the image, if FFmpeg did not take them all."""
        if self._problem:
            raise self._problem
        missing = len(self.names) - log.frames_decoded
        if log.status < 0 or log.out_of_memory or not (log.first_error or log.reconfigured or missing):
            return
        size: tuple[int, int] | None = None  # as shown: photographs may lie on their side
        for name in self.names:
            frame = _decode(_decoder(name), self._read(name))
            if frame is None:
                raise self._damaged(name, "it does not decode")
            shown = stored_size(frame.width, frame.height, rotation_of(frame))
            size = size or shown
            if shown != size:
                detail = f"{_text(name)} is {shown[0]}x{shown[1]} pixels, {_text(self.names[0])} is {size[0]}x{size[1]}"
                raise RejectedError(Reason.UNSUPPORTED, detail)
        if not log.status and (missing or log.first_error):
            raise RejectedError(Reason.DAMAGED, f"{missing} of {len(self.names)} images do not decode{log.said}")

    def _damaged(self, name: bytes, what: str) -> RejectedError:
        return RejectedError(Reason.DAMAGED, f"{_text(name)}: {what}")


def _decoder(name: bytes) -> av.VideoCodecContext:
    decoder = av.CodecContext.create(FORMATS[_extension(name)][1], "r")
    assert isinstance(decoder, av.VideoCodecContext)
    return decoder


def _decode(decoder: av.VideoCodecContext, data: bytes) -> av.VideoFrame | None:
    """None if it fails or libavcodec complains."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as complaints:
            frames = [*decoder.decode(av.Packet(data)), *decoder.decode(None)]
    except MemoryError:
        raise
    except av.error.FFmpegError:
        return None
    finally:
        av.logging.set_level(level)
    frame = next(iter(frames), None)
    return frame if frame is not None and not complaints and not frame.is_corrupt else None


def _extension(name: bytes) -> bytes:
    return os.path.splitext(name)[1].lower()


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
