"""Views as the official tests make them of whole decoded frames: resized bilinearly to 8 bits, not antialiased, then cut.

For who reproduces a published figure to the last clip: `tubecell evaluate --resize official`. `ClipLoader` cuts first, to whole
pixels, and resizes antialiased, as official pre-training does: on frames of 60 x 81 its view of 48 x 48 differs from the
official validation's by 0.056 in the mean of normalised values; by 0.022 if it differed in the antialiasing alone.
"""

from dataclasses import dataclass

import av
import numpy as np
import torch
from torch.nn.functional import interpolate

from pipeline.decoding.decode import ClipRequest, DecodeError, Failure, decode_upright
from pipeline.sampling.crops import Size, resized_side, spread


def crop_resize(clip: torch.Tensor, box: tuple[int, int, int, int], size: Size) -> torch.Tensor:
    """Floats (C, T, H, W), a box (top, left, height, width) -> (C, T, *size)."""
    top, left, height, width = box
    cut = clip[:, :, top : top + height, left : left + width].transpose(0, 1)
    return interpolate(cut, size, mode="bilinear", align_corners=False).transpose(0, 1)


def resized_views(width: int, height: int, short: int, size: Size, crops: int = 1) -> tuple[Size, np.ndarray]:
    """Of a frame whose short side is resized to `short`: its (height, width) then, and where crops of `size` begin, int64
    (C, 2), as (x, y): spread along the long side from the other's edge on, or one in the middle of both (validation)."""
    long = int(resized_side(np.array(max(width, height)), np.array(min(width, height)), np.array(short)))
    resized = (short, long) if width >= height else (long, short)
    free = np.array(resized[::-1]) - size[::-1]
    if crops == 1:
        return resized, spread(free, 1).T
    places = np.zeros((crops, 2), np.int64)
    places[:, int(height > width)] = spread(free.max(keepdims=True), crops)
    return resized, places


def cut_views(frames: np.ndarray, short: int, size: Size, crops: int = 1) -> np.ndarray:
    """uint8 (T, H, W, 3) -> uint8 (C, T, *size, 3), of frames whose short side is resized to `short`: see `resized_views`."""
    resized, places = resized_views(frames.shape[2], frames.shape[1], short, size, crops)
    frames_CTHW, box = torch.from_numpy(frames).permute(3, 0, 1, 2).float(), (0, 0, *frames.shape[1:3])
    whole_THWC = crop_resize(frames_CTHW, box, resized).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()
    return np.stack([whole_THWC[:, y : y + size[0], x : x + size[1]] for x, y in places.tolist()])


def squashed(frame: np.ndarray, size: Size) -> torch.Tensor:
    """uint8 (H, W, 3) -> float32 (*size, 3) of 0 to 255: the whole frame, whatever its shape, as in official feature
    extraction."""
    whole = torch.from_numpy(frame).permute(2, 0, 1)[:, None].float()
    return crop_resize(whole, (0, 0, *frame.shape[:2]), size)[:, 0].permute(1, 2, 0).contiguous()


@dataclass(frozen=True, slots=True)
class OfficialDecoder:
    """A `ClipLoader`'s decoder, on libav: frames are resized whole, and view i of a clip is crop i mod C of `crops`, wherever
    the sampler wants it."""

    crops: int

    def __call__(self, request: ClipRequest, views: np.ndarray) -> None:
        """As `decode_libav`; views are square."""
        assert views.dtype == np.uint8, views.dtype
        size, wanted, places = views.shape[2:4], *np.unique(request.frames, return_inverse=True)
        of_view = np.broadcast_to(places.reshape(request.frames.shape), views.shape[:2])

        def cut(number: int, frame: np.ndarray) -> None:
            crops = cut_views(frame[None], size[0], size, self.crops)[:, 0]
            for view, place in np.argwhere(of_view == number).tolist():
                views[view, place] = crops[view % self.crops]

        try:
            decode_upright(request.clip, request.data, wanted, cut, request.meter)
        except (av.FFmpegError, ValueError, EOFError) as error:
            raise DecodeError(Failure.DAMAGED, f"{type(error).__name__}: {error}") from error
