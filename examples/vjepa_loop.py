"""Latent prediction as in V-JEPA: a student sees the visible tokens, and a predictor guesses what a teacher, who sees all,
makes of the hidden ones. The teacher is a running mean of the student; the masks are the loader's.

    torchrun --nproc-per-node 8 examples/vjepa_loop.py DATASET RUN.pt

The same command goes on where it was stopped, on any number of ranks.
"""

import argparse
import copy
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import l1_loss, layer_norm
from torch.nn.parallel import DistributedDataParallel
from tubecell.pipeline.loader import Batch, ClipLoader, LoaderState
from tubecell.pipeline.sampling import SamplingRecipe


def blocks(dim: int, depth: int) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(dim, 4, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, depth, nn.LayerNorm(dim), enable_nested_tensor=False)


def at(tokens: Tensor, idx: Tensor) -> Tensor:
    """Tokens (n, N, D) or (N, D), indices (n, V) -> (n, V, D)."""
    return tokens.expand(len(idx), -1, -1).gather(1, idx[..., None].expand(-1, -1, tokens.shape[-1]))


class Encoder(nn.Module):
    """Float views (n, 3, T, H, W) -> features (n, N, D) of all tokens, or (n, V, D) of those at `idx`."""

    def __init__(self, recipe: SamplingRecipe, dim: int, depth: int) -> None:
        super().__init__()
        token = (recipe.tubelet_size, recipe.patch_size, recipe.patch_size)
        self.embed = nn.Conv3d(3, dim, token, stride=token)
        self.positions = nn.Parameter(0.02 * torch.randn(torch.Size(recipe.grid).numel(), dim))
        self.blocks = blocks(dim, depth)

    def forward(self, views: Tensor, idx: Tensor | None = None) -> Tensor:
        x = self.embed(views).flatten(2).mT + self.positions  # tokens in the loader's order: by time, then row, then column
        return self.blocks(x if idx is None else at(x, idx))


class Student(nn.Module):
    """Encoder and predictor: views, `visible` (n, V), `hidden` (n, K) -> guesses (n, K, D)."""

    def __init__(self, recipe: SamplingRecipe, dim: int, depth: int) -> None:
        super().__init__()
        self.encoder = Encoder(recipe, dim, depth)
        self.narrow, self.widen = nn.Linear(dim, dim // 2), nn.Linear(dim // 2, dim)
        self.mask_token = nn.Parameter(torch.zeros(dim // 2))
        self.positions = nn.Parameter(0.02 * torch.randn(torch.Size(recipe.grid).numel(), dim // 2))
        self.predictor = blocks(dim // 2, depth)

    def forward(self, views: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        seen = self.narrow(self.encoder(views, visible)) + at(self.positions, visible)
        guessed = self.predictor(torch.cat([seen, self.mask_token + at(self.positions, hidden)], 1))
        return self.widen(guessed[:, visible.shape[1] :])


def loss_of(student: nn.Module, teacher: Encoder, batch: Batch) -> Tensor:
    views = batch.floats()
    with torch.no_grad():
        target = at(teacher(views), batch.decoded)
        target = layer_norm(target, target.shape[-1:])
    return l1_loss(student(views, batch.visible, batch.decoded), target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--views", type=int, default=64, help="of a step, on all ranks")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--dim", type=int, default=384)
    options = parser.parse_args()

    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group()
    rank, ranks = dist.get_rank(), dist.get_world_size()
    saved = torch.load(options.run, map_location=device, weights_only=True) if options.run.exists() else None

    # blocks that hide 80 % of the frame; without a mask for the decoder, `decoded` is all that `visible` leaves out
    recipe = SamplingRecipe(
        views_per_step=options.views, input_size=options.size, masks="multi-block", mask_ratio=0.8, decoder_mask_ratio=0
    )
    state = saved and saved["loader"]
    loader = ClipLoader(options.dataset, recipe, rank=rank, world_size=ranks, device=device, state=state)

    torch.manual_seed(0)
    student = Student(recipe, options.dim, depth=4).to(device)
    teacher = copy.deepcopy(student.encoder).requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    parts = {"student": student, "teacher": teacher, "optimizer": optimizer}
    if saved:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    model = DistributedDataParallel(student)

    for step in range(saved["step"] + 1 if saved else 1, options.steps + 1):
        loss = loss_of(model, teacher, next(loader))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mean, now in zip(teacher.parameters(), student.encoder.parameters(), strict=True):
                mean.lerp_(now, 1 - 0.998)
        if step % options.save_every == 0:
            dist.all_reduce(loss := loss.detach() / ranks)
            states = [None] * ranks
            dist.all_gather_object(states, loader.state())
            if rank == 0:
                print(f"step {step}: loss {loss:.6f}", flush=True)
                kept = {name: part.state_dict() for name, part in parts.items()}
                kept |= {"step": step, "loader": LoaderState.merged(states).plain()}
                torch.save(kept, part := options.run.with_suffix(".part"))
                part.replace(options.run)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
