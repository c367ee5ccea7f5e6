"""Retrieval: videos and texts that belong together are drawn together, on a pre-trained or fine-tuned encoder and a text
tower of transformers (CLIP's symmetric loss; of videos as in Frozen in Time and CLIP4Clip)."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from model.config import Implementation
from model.trainable import Trainable
from model.two_towers import TwoTowers
from model.weights import RETRIEVE, Transfer
from pipeline.captions import FIELDS, Captions
from pipeline.console import complain
from pipeline.loader import Batch, ClipLoader, LoaderState
from pipeline.sampling import PlainViews, SamplingRecipe
from pipeline.sampling.draws import Draws
from pipeline.sampling.frames import Temporal
from pipeline.sampling.splits import checked_split, rows_of_split
from pipeline.settings import setting
from pipeline.storage.manifest import Manifest
from train.augmentation import on_device
from train.compute.memory import STATISTIC, BlockShape, Cost, ParameterSizes
from train.compute.optimizer import parameter_groups
from train.compute.parallel import Ranks
from train.compute.precision import PRECISIONS
from train.config import ComputeConfig, OptimConfig, RunConfig, at_least_1
from train.parts import from_init, nothing_frozen, open_training
from train.retrieval.contrastive import contrastive_loss
from train.retrieval.held_out import held_out_pairs
from train.retrieval.text_folder import begun
from train.retrieval.text_trial import Asked
from train.stage import Evaluator
from train.stages.finetuning import check_trunk


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrieveConfig(RunConfig):
    """A run of retrieval. The whole batch of a step is one forward pass of every rank: each clip is held against all others.
    --freeze N of all the encoder's blocks leaves it as it is."""

    text: str | None = setting(None, was=None, place=True)
    """The text tower: a local folder with a tokenizer and a model of transformers. Needed in a dry run, too."""
    pooling: Asked = setting("auto", was="mean")
    """What a text's feature is made of: "mean" of its tokens, "first" one, or "pooled", what the text tower itself pools.
    "auto" takes what a tower pools that was trained to find pictures (CLIP's: the last token), and of others the mean."""
    words: int = 32
    """Tokens of a text; what is longer is cut."""
    captions: tuple[str, ...] = FIELDS
    """Fields of the dataset's `extra` that may hold a clip's captions, one or a list: the first that it has counts."""
    width: int = 256
    """Of the space in which videos and texts are compared."""
    freeze_text: bool = False
    """Do not train the text tower; its projection is trained."""
    text_lr: float = 0.1
    """Learning rate of the text tower by that of what is new."""
    frames: Temporal = "tsn"
    """Of a clip: "tsn", one of each of T segments of the whole clip, which a caption is of; others as in fine-tuning."""
    crop: Literal["random_resized", "multi_scale"] = "multi_scale"
    """Crops of views, as in fine-tuning: at least two thirds of a frame's side."""
    drop_path: float = 0.0
    """Probability that a view skips a branch of the encoder's last block; it grows linearly from 0 at the first."""
    layer_decay: float = 0.75
    """Learning rate of an encoder's block by that of the next one; what is new has the whole."""

    views: PlainViews = field(default_factory=lambda: PlainViews(views_per_step=128, views_per_clip=1))
    optim: OptimConfig = setting(default_factory=lambda: OptimConfig(betas=(0.9, 0.98)), may_change=True)

    def __post_init__(self) -> None:
        super(RetrieveConfig, self).__post_init__()  # slots: the class that a bare super() names is another
        if not (self.model.positions_size or self.model.positions_frames):  # as in fine-tuning
            sizes = {"positions_size": self.model.input_size, "positions_frames": self.model.num_frames}
            object.__setattr__(self, "model", replace(self.model, **sizes))
        check_trunk(self, "drop_path")
        if not 0 < self.text_lr <= 1:
            raise ValueError(
                f"--text-lr {self.text_lr} must be over 0 and at most 1; --freeze-text leaves the text tower as it is"
            )
        for name in ("words", "width"):
            at_least_1(self, name)
        if not self.captions:
            raise ValueError("--captions: at least one field of `extra` is needed")
        if self.views.views_per_clip != 1:
            raise ValueError(f"--views.views-per-clip {self.views.views_per_clip} must be 1: views of a clip have its captions")

    @property
    def sampling(self) -> SamplingRecipe:
        """Without masks. Raises ValueError if such views cannot be taken."""
        return self.joined(masks=None, temporal=self.frames, crop=self.crop)

    @property
    def views_matter(self) -> bool:
        """A pass that holds less than the step has fewer to tell apart."""
        return True

    def accumulation(self, world_size: int, most: int | None = None) -> int:
        """One. Raises ValueError for ranks that cannot share the step, and for passes that may not hold a rank's share."""
        given, share = self.compute.views_per_forward, self.views.views_per_step // world_size
        if given is not None and given < share:
            raise ValueError(
                f"--compute.views-per-forward {given} must be at least {share}, a rank's share of the step: every clip is held "
                "against all others. Take more ranks, or lower --views.views-per-step"
            )
        return RunConfig.accumulation(self, world_size, self.views.views_per_step)


class Retrieving:
    """The stage."""

    name: ClassVar[str] = RETRIEVE

    def __init__(self, config: RetrieveConfig) -> None:
        """Raises ValueError for a text tower that cannot be."""
        self.config = config
        if config.text is None:
            raise ValueError("--text FOLDER is needed: a local folder with a tokenizer and a text model of transformers")
        self._folder = begun(config.text, config.pooling, config.words, config.out)
        self._captions: Captions | None = None

    frozen = nothing_frozen

    def loader(self, ranks: Ranks, state: LoaderState | None, clips_per_batch: int, label_map: Path | None) -> ClipLoader:
        """Endless batches of the configuration's recipe. Says which clips have no caption. Raises ValueError, too, if none
        has."""
        config = self.config
        loader = open_training(config, self, ranks, state, clips_per_batch, label_map)
        try:
            lacking, of = ranks.first(partial(self._lacking, loader.manifest))  # which makes what the others map
            self._captions = Captions(loader.manifest, config.captions)
        except ValueError:
            loader.close()
            raise
        if self._folder.is_kept and ranks.rank == 0:
            print(f"text tower: tokenizer and sizes are those that the run kept of {self._folder.facts['from']}")
        if lacking:
            loader.notices.append(f"{lacking:,} of {of:,} clips have no caption: nothing is learned from them")
            if ranks.rank == 0:
                complain(loader.notices[-1], once=True)
        return loader

    def _lacking(self, manifest: Manifest) -> tuple[int, int]:
        """Clips without a caption, and all of training."""
        rows = rows_of_split(manifest, checked_split(self.config.sampling.split))
        lacking = int((Captions(manifest, self.config.captions).counts(rows) == 0).sum())
        if lacking == len(rows):
            raise ValueError(
                f"no clip of split {self.config.sampling.split} of {manifest.place} has a caption in `extra`, as "
                f"{' or '.join(self.config.captions)} (--captions): build it of a CSV list with a column `caption`, or of "
                "--msrvtt, --msvd, --webvid"
            )
        return lacking, len(rows)

    def model(self, how: Implementation) -> TwoTowers:
        config, folder = self.config, self._folder
        tower = folder.tower()
        if config.freeze_text:
            tower.requires_grad_(False)
        return TwoTowers(
            config.model, tower, folder.width, config.width, lambda name: folder.values[name], config.drop_path, how
        )

    def start_from(self, model: Trainable) -> Transfer | None:
        """The encoder, and of an earlier run of this stage all of it."""
        return from_init(self, model)

    def groups(self, model: Trainable) -> list[dict[str, Any]]:
        """The encoder layer by layer, and the text tower as a whole."""
        depth, decay, named = self.config.model.encoder_depth, self.config.optim.weight_decay, [*model.named_parameters()]
        texts = [(name, parameter) for name, parameter in named if name.startswith("text.")]
        others = [(name, parameter) for name, parameter in named if not name.startswith("text.")]
        found = [{**group, "lr_scale": self.config.text_lr} for group in parameter_groups(texts, decay)]
        return parameter_groups(others, decay, self.config.layer_decay, depth) + found

    def loss(self, model: TwoTowers, batch: Batch, draws: Draws | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Of every clip with one of its captions, against all others of the step, on all ranks; how often a text's own video,
        and a video's own text, is the most alike of them; and the temperature."""
        assert draws is not None, "what is held out is judged by what it finds, see `evaluators`"
        assert self._captions is not None
        device, rows = batch.views.device, batch.rows.numpy()
        each = [self._captions.of(row) for row in rows.tolist()]
        taken = draws.captions(np.array([max(1, len(captions)) for captions in each]))
        texts = [captions[place] if captions else "" for captions, place in zip(each, taken.tolist(), strict=True)]
        ids_BL, there_BL = (on_device(tokens, device) for tokens in self._folder.tokens(texts))
        keep = on_device(draws.keep(model.drop_rates), device) if self.config.drop_path else None
        video_BE, text_BE, scale = model(batch.views, ids_BL, there_BL, keep)
        words_B = on_device(np.array([number_of(text) for text in texts], np.int64), device)
        told_B = on_device(np.array([bool(captions) for captions in each]), device)
        return contrastive_loss(video_BE, text_BE, scale, on_device(rows, device), words_B, told_B)

    def cost(self, compute: ComputeConfig) -> Cost:
        """Kept outside of the blocks are e N P of patches, the norm, the text tower's blocks, and similarities with all clips
        of the step, both ways, three times each while the loss runs."""
        config, dtype, step = self.config.model, PRECISIONS[compute.precision].encoder, self.config.views.views_per_step
        N, D, E = config.num_tokens, config.encoder_dim, self.config.width
        block = BlockShape(N, N, D, config.encoder_mlp_dim, config.encoder_heads, dtype)
        text, depth = self._folder.block(dtype, not self.config.freeze_text)
        with torch.device("meta"):
            sizes = ParameterSizes.of(self.model(Implementation()))
        macs = config.encoder_depth * block.mac + N * config.patch_values * D + D * E + 2 * step * E
        trained, frozen = (0, depth * text.mac) if self.config.freeze_text else (depth * text.mac, 0)
        kept = depth * text.kept_bytes + 2 * STATISTIC * (D + E + step)
        return Cost(
            blocks=((block,) * config.encoder_depth,),
            sizes=sizes,
            gmac=(macs + trained) / 1e9,
            outside=dtype.itemsize * N * config.patch_values + STATISTIC * (2 + 2 * D) + kept,
            errors=kept,
            loss=3 * 2 * STATISTIC * step,
            inputs=config.num_frames * config.input_size**2 * 3,
            frozen_gmac=frozen / 1e9,
            notes={
                "text tower": f"{self._folder.place}: {depth} blocks of {self._folder.width}, {self.config.words} tokens, "
                + ("frozen" if self.config.freeze_text else f"{depth * text.mac / 1e9:.2f} GMAC a text"),
                "forward": f"{macs / 1e9:.2f} GMAC a view of {N} tokens; {6 * (macs + trained) / 1e12:.3g} TFLOP with its text",
            },
        )

    def evaluators(self, model: TwoTowers, ranks: Ranks, run: Path, manifest: Manifest) -> Sequence[Evaluator]:
        """What texts and videos find of each other on clips with a caption, in figures and on a page; the weights with the best
        R@1 of texts are kept. What evaluating later needs of the text tower goes into the run's folder."""
        assert self._captions is not None
        if ranks.rank == 0:
            self._folder.keep(run)
        return held_out_pairs(self, ranks, run, manifest, self._captions, self._folder)


def number_of(text: str) -> int:
    """Tells texts apart, the same on every rank."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)
