"""Pre-training: the dual-masked autoencoder predicts what neither of its masks shows (VideoMAE V2, section 3)."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from model.config import MODELS, Implementation, ModelConfig
from model.flops import executed_gmac, paper_gmac
from model.videomae import Loss, VideoMAE, loss_function
from pipeline.loader import Batch
from pipeline.sampling import DecoderMaskRule, MaskRule, SamplingRecipe, Views
from pipeline.sampling.draws import Draws
from pipeline.sampling.masking import TokenCounts
from pipeline.settings import setting
from pipeline.storage.manifest import Manifest
from train.compute.memory import STATISTIC, BlockShape, Cost, ParameterSizes
from train.compute.parallel import Ranks
from train.compute.precision import PRECISIONS, Precision
from train.config import ComputeConfig, RunConfig, at_least_1
from train.evaluation import held_out
from train.parts import from_init, plain_groups, training_loader
from train.stage import Evaluator, Frozen
from train.targets import TARGETS


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig(RunConfig):
    """A pre-training run."""

    mask: MaskRule = setting("tube", was="tube")
    """What is hidden from the encoder: tubes; random tokens or whole frames (V1, Table 2b, worse); or a few blocks in space
    through all frames (V-JEPA)."""
    decoder_mask: DecoderMaskRule = setting("running-cell", was="running-cell")
    """What the decoder leaves out: running cells; or random tokens or whole frames (V2, Table 1, worse)."""
    target: Literal["pixels", "plain-pixels", "features"] = "pixels"
    """What is predicted of a hidden token: its pixels, normalised (the paper), or as they are, in [0, 1]; or a frozen teacher's
    features of it."""
    loss: Loss = setting("mse", was="mse")
    """Error of a predicted value: squared (the papers), "l1" or "smooth-l1" (V1, Table 2f, worse)."""
    loss_on: Literal["invisible", "all"] = setting("invisible", was="invisible")
    """Tokens that the loss compares: those decoded that the encoder does not see, or all decoded (V2, Table 1, worse)."""
    teacher: str | None = None
    """Of --target features: weights of any layout, or a run's folder, whose encoder has the same tokens."""
    reconstruct_every: int | None = setting(None, may_change=True)
    """Steps between two pictures of what the model makes of six clips, in RUN/reconstructions and TensorBoard."""

    model: ModelConfig = field(default_factory=lambda: MODELS["vit-b"])
    views: Views = field(default_factory=Views)

    def __post_init__(self) -> None:
        super(PretrainConfig, self).__post_init__()  # slots: the class that a bare super() names is another
        at_least_1(self, "reconstruct_every")
        if self.reconstruct_every and self.target != "pixels":
            raise ValueError(f"--reconstruct-every: pictures are made of --target pixels, and it is {self.target}; leave it")
        if self.loss_on == "all" and self.views.decoder_mask_ratio == 0:
            raise ValueError(
                "--loss-on all: with --views.decoder-mask-ratio 0 the decoder is given hidden tokens alone; leave it"
            )

    @property
    def sampling(self) -> SamplingRecipe:
        """With masks. Raises ValueError if the views cannot be masked so."""
        return self.joined(masks=self.mask, decoder_masks=self.decoder_mask)

    @property
    def views_matter(self) -> bool:
        """Where the number of loss tokens varies, every decoded one is compared: see `token_counts`."""
        tokens = self.sampling.tokens
        return self.loss_on == "invisible" and self.views.decoder_mask_ratio > 0 and tokens.loss == tokens.decoded

    @property
    def tokens(self) -> TokenCounts:
        """Of a view; in the loss those that are compared."""
        tokens = self.sampling.tokens
        return tokens if self.loss_on == "invisible" else replace(tokens, loss=tokens.decoded)


class Pretraining:
    """The stage."""

    name: ClassVar[str] = "pretrain"

    def __init__(self, config: PretrainConfig) -> None:
        """Raises ValueError for a teacher that cannot be."""
        self.config = config
        self.target = TARGETS[config.target](config.model, config.compute.tokens, config.teacher)
        self._dtype = PRECISIONS[config.compute.precision].decoder  # the model's, outside of its encoder

    loader, groups, start_from = training_loader, plain_groups, from_init

    def model(self, how: Implementation) -> VideoMAE:
        return VideoMAE(self.config.model, how, self.target.values)

    def frozen(self) -> Mapping[str, Frozen]:
        return self.target.frozen()

    def loss(self, model: VideoMAE, batch: Batch, draws: Draws | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The bytes are read once, for patches and targets."""
        self.config.model.check_views(batch.views.shape)
        assert batch.visible is not None and batch.decoded is not None and batch.loss_weight is not None
        weight_BL = (
            batch.loss_weight if self.config.loss_on == "invisible" else torch.ones_like(batch.decoded, dtype=torch.float32)
        )
        L = weight_BL.shape[1]
        patches_BVP, target_BLP = self.target(batch.views, batch.visible, batch.decoded[:, :L], self._dtype)
        prediction_BLP = model(patches_BVP, batch.visible, batch.decoded, L)
        return loss_function(model.how, self.config.loss)(prediction_BLP, target_BLP, weight_BL), {}

    def cost(self, compute: ComputeConfig) -> Cost:
        config, precision = self.config.model, PRECISIONS[compute.precision]
        tokens = self.config.tokens
        cost = autoencoder_cost(config, tokens, precision, self.target.values)
        paper = paper_gmac(config, tokens.visible, tokens.decoded)
        notes = {
            "tokens of a view": f"{tokens.visible} visible + {tokens.decoded} decoded, {tokens.loss} in the loss, "
            f"of {config.num_tokens}",
            "forward": f"{paper:.2f} GMAC a view as the paper counts, {cost.gmac:.2f} executed; "
            f"{6 * cost.gmac / 1e3:.3g} TFLOP a view in training",
        }
        frozen_bytes = precision.encoder.itemsize * self.target.parameters
        return replace(cost, notes=notes, frozen_gmac=self.target.gmac, frozen_bytes=frozen_bytes)

    def evaluators(self, model: VideoMAE, ranks: Ranks, run: Path, manifest: Manifest) -> Sequence[Evaluator]:
        found = held_out(self, ranks, run, manifest)
        if every := self.config.reconstruct_every:
            from train.stages.reconstructions import Reconstructions  # matplotlib: half a second

            pictures = Reconstructions(run, manifest, self.config.sampling, model, ranks)
            found.append(Evaluator(every, pictures, last=False))
        return found


def autoencoder_cost(config: ModelConfig, tokens: TokenCounts, precision: Precision, values: int | None = None) -> Cost:
    """Of a view with so many tokens, of which `values` are predicted, by default the P of a patch.

    V visible, K decoded and L loss tokens; e bytes of a value in the encoder, of width D, e' in the decoder, of width D'. Kept
    outside of the blocks are e V (P + D) + e' V D: patches, the stream into the encoder's norm, the latent; 2 e' L D': the
    stream into the decoder's norm, its output; float32 statistics of the two; 4 L (P + 1): errors and their weights, always
    float32. The loss's backward pass has 16 L P alive: four float32 copies of the targets.
    """
    values = values or config.patch_values
    V, N, L = tokens.visible, tokens.visible + tokens.decoded, tokens.loss
    e, e2 = precision.encoder.itemsize, precision.decoder.itemsize
    encoder = BlockShape(V, V, config.encoder_dim, config.encoder_mlp_dim, config.encoder_heads, precision.encoder)
    decoder = BlockShape(N, N, config.decoder_dim, config.decoder_mlp_dim, config.decoder_heads, precision.decoder)
    ends = e * V * (config.patch_values + config.encoder_dim) + e2 * V * config.encoder_dim + e2 * 2 * L * config.decoder_dim
    errors = 4 * L * (values + 1)
    return Cost(
        blocks=(
            (encoder,) * config.encoder_depth,
            (*(decoder,) * (config.decoder_depth - 1), replace(decoder, queries=L)),
        ),
        sizes=autoencoder_sizes(config, values),
        gmac=executed_gmac(config, V, tokens.decoded, L) + L * config.decoder_dim * (values - config.patch_values) / 1e9,
        outside=ends + 2 * STATISTIC * (V + L) + errors,
        errors=errors,
        loss=16 * L * values,
        inputs=config.num_frames * config.input_size**2 * 3,
    )


@functools.cache
def autoencoder_sizes(config: ModelConfig, values: int) -> ParameterSizes:
    """Of the model, which is built without values."""
    with torch.device("meta"):
        return ParameterSizes.of(VideoMAE(config, target_values=values))
