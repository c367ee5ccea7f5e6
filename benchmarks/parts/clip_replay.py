"""One clip, decoded again: what it is and where its time goes."""

from contextlib import closing
from dataclasses import asdict

import numpy as np
import pyarrow.compute as pc
import torch

from dataset_builders.media.decode_check import VerifiedClip, verify
from pipeline.decoding.decode import ClipRequest, decode_libav
from pipeline.report.figures import parsed, spelled
from pipeline.sampling import SamplingRecipe, validation_clips
from pipeline.stage_meters import RECORD, STAGES, ClipMeter
from pipeline.storage.manifest import Clip, Manifest
from pipeline.storage.shards import ShardReader

REPETITIONS = 7


def clip_of(data: bytes, verified: VerifiedClip | None = None, key: str = "") -> Clip:
    """The manifest's row of a clip that is in no dataset. Raises RejectedError if it is not `verified` and cannot be."""
    verified = verified or verify(data)
    columns = {name: value for name, value in asdict(verified).items() if name in Clip.__dataclass_fields__}
    columns |= {"keyframes": tuple(verified.keyframes), "size": len(data)}
    return Clip(row=0, key=key, shard="", offset=0, content_hash="", **columns)


def replay(manifest: Manifest, recipe: SamplingRecipe, key: str, frames: str | None) -> str:
    """Fetch and decode clip `key` with these frames (default: the middle ones), `REPETITIONS` times -> the terminal's text.

    Raises ValueError for a key or frames that the dataset does not have, and what fetching and decoding raise.
    """
    row = pc.index(manifest.column("key"), key).as_py()
    if row < 0:
        raise ValueError(f"--replay {key}: {manifest.place} has no clip of that key")
    clip = manifest.clip(row)
    samples = validation_clips(manifest, recipe, np.array([row]))
    wanted = np.array(parsed(frames)) if frames else np.unique(samples.frames[0])
    if wanted[-1] >= clip.num_frames:
        raise ValueError(f"--frames {frames}: frame {wanted[-1]} is asked for, and {key} has {clip.num_frames} frames")
    boxes = np.repeat(samples.boxes[0], recipe.views_per_clip, axis=0)
    places = np.sort(np.resize(np.arange(len(wanted)), recipe.num_frames))
    views = np.zeros((recipe.views_per_clip, recipe.num_frames, *recipe.view_size, 3), np.uint8)
    records = np.zeros(REPETITIONS, RECORD)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with closing(ShardReader(manifest.root)) as reader:
            for record in records:
                meter = ClipMeter()
                data = reader.read(clip)
                meter.fetched(len(data))
                decode_libav(ClipRequest(clip, data, wanted[places], boxes, meter), views)
                meter.write(record, 0)
    finally:
        torch.set_num_threads(threads)
    times = {stage: records[stage] / 1e6 for stage in STAGES} | {"all": (records["ended"] - records["began"]) / 1e6}
    gaps = np.diff([*clip.keyframes, clip.num_frames]) if clip.keyframes else np.array([clip.num_frames])
    last = records[-1]
    lines = [
        f"clip     {clip.key}, row {clip.row}: bytes {clip.offset:,} to {clip.offset + clip.size:,} of {clip.shard}",
        f"video    {clip.codec}, {clip.width} x {clip.height}, {clip.num_frames} frames, {len(clip.keyframes)} key frames, "
        f"{gaps.max()} frames apart at most; {clip.matrix} {clip.range}, rotated by {clip.rotation}",
        f"frames   {spelled(wanted.tolist())}: {last['frames_decoded']} decoded for {last['frames_kept']}; "
        f"{last['bytes_used']:,} of {clip.size:,} bytes given to the decoder",
        f"{'stage':<9}{'first ms':>10}{'median ms':>11}",
    ]
    return "\n".join([*lines, *(f"{stage:<9}{ms[0]:>10.2f}{np.median(ms):>11.2f}" for stage, ms in times.items())])
