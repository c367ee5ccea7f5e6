"""A stage in one file, as a user writes it: a linear head on the frozen features of a pre-trained encoder."""

import sys
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from model.config import MODELS
from model.pixels import gather_patches, normalise
from model.trainable import Trainable
from model.videomae import Encoder
from model.weights import with_views
from train.checkpoint.source import read_once
from train.compute.memory import Cost, ParameterSizes
from train.config import RunConfig
from train.entry import run
from train.evaluation import held_out
from train.parts import from_init, plain_groups, training_loader
from train.stage import Frozen


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig(RunConfig):
    encoder: str = ""
    classes: int = 8


class Head(Trainable):
    def __init__(self, dim, classes):
        super().__init__()
        self.head = nn.Linear(dim, classes)
        self.forward = self.head.forward


class Probe:
    name = "toy-probe"
    loader, groups, start_from = training_loader, plain_groups, from_init

    def __init__(self, config):
        self.config = config
        weights = with_views(read_once(config.encoder), config.model.input_size, config.model.num_frames)
        self.sizes, self.weights = weights.config, weights.encoder

    def model(self, how):
        return Head(self.sizes.encoder_dim, self.config.classes)

    def frozen(self):
        self.encoder = Encoder(self.sizes)
        return {"encoder": Frozen(self.encoder, self.weights)}

    def loss(self, model, batch, draws):
        every = torch.arange(self.sizes.num_tokens, device=batch.views.device).expand(len(batch.views), -1)
        patches = normalise(gather_patches(batch.views, every, self.sizes.patch_size, self.sizes.tubelet_size))
        with torch.no_grad():
            features = self.encoder(patches.to(self.encoder.norm.weight.dtype), every).mean(1)
        logits, labels = model(features).float(), batch.labels.repeat_interleave(len(batch.views) // len(batch.rows))
        return cross_entropy(logits, labels), {"top1": (logits.argmax(1) == labels).float().mean()}

    def cost(self, compute):
        with torch.device("meta"):
            sizes = ParameterSizes.of(self.model(None))
        views = 3 * self.sizes.num_frames * self.sizes.input_size**2
        return Cost(blocks=((),), sizes=sizes, gmac=sizes.whole / 1e9, inputs=views)

    def evaluators(self, model, ranks, folder, manifest):
        return held_out(self, ranks, folder, manifest)


def main(arguments=None):
    return run(Probe, {"tiny": lambda: ProbeConfig(model=MODELS["tiny"], steps=20, epochs=None)}, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
