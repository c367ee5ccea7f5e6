"""The arithmetic of a sample: (dataset, recipe, epoch, position) -> clip, frames, crops, masks, noise. Begin at samples.py."""

from pipeline.sampling.evaluation import EvaluationSampler
from pipeline.sampling.frames import segment_frames, start_range, validation_frames, window_frames
from pipeline.sampling.masks.rules import DecoderMaskRule, MaskRule
from pipeline.sampling.order import Order, order_of
from pipeline.sampling.recipe import PlainViews, SamplingRecipe, Views
from pipeline.sampling.sampler import Sampler, TrainingSampler
from pipeline.sampling.samples import (
    ClipSamples,
    multi_view_clips,
    sample_clips,
    sample_masks,
    steps_per_epoch,
    validation_clips,
)

__all__ = [
    "ClipSamples",
    "DecoderMaskRule",
    "EvaluationSampler",
    "MaskRule",
    "Order",
    "PlainViews",
    "Sampler",
    "SamplingRecipe",
    "TrainingSampler",
    "Views",
    "multi_view_clips",
    "order_of",
    "sample_clips",
    "sample_masks",
    "segment_frames",
    "start_range",
    "steps_per_epoch",
    "validation_clips",
    "validation_frames",
    "window_frames",
]
