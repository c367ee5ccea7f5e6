"""Labels in plain PyTorch: a 3-D CNN under DDP, which saves, resumes, and tells how many clips of split val it names rightly.

    torchrun --nproc-per-node 8 examples/ddp_labels.py DATASET RUN.pt

The same command goes on after the last epoch that was saved, on any number of ranks.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from tubecell.pipeline.loader import ClipLoader, LoaderState
from tubecell.pipeline.sampling import EvaluationSampler, SamplingRecipe


def cnn(classes: int, width: int = 16) -> nn.Sequential:
    """Views (n, 3, T, H, W) -> logits (n, C)."""
    layers: list[nn.Module] = []
    for before, after in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv3d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4 * width, classes))


@torch.no_grad()
def top1(model: nn.Module, val: ClipLoader) -> str:
    """One pass over all clips but those without a label, and those that cannot be decoded (`val.missing` of each rank). All
    ranks take as many batches: where one has no clip left, a place has weight 0."""
    counts = torch.zeros(2, device=val.device)
    for batch in val:
        of_clips = model(batch.floats()).softmax(1).unflatten(0, (len(batch.rows), -1)).mean(1)  # over the views of each
        weight = batch.weight * (batch.labels >= 0)
        counts += torch.stack([(weight * (of_clips.argmax(1) == batch.labels)).sum(), weight.sum()])
    dist.all_reduce(counts)
    right, taken = map(int, counts)
    return f"top-1 {right} of {taken}, {val.num_clips - taken} of {val.num_clips} left out"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("run", type=Path)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--views", type=int, default=64, help="of a step, on all ranks")
    parser.add_argument("--size", type=int, default=112)
    options = parser.parse_args()

    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group()
    rank, ranks = dist.get_rank(), dist.get_world_size()
    saved = torch.load(options.run, map_location=device, weights_only=True) if options.run.exists() else None

    # two views of each clip a step; without masks, so of any number of frames and any size
    recipe = SamplingRecipe(
        views_per_step=options.views, views_per_clip=2, num_frames=8, input_size=options.size, crop="random_resized", masks=None
    )
    loader = ClipLoader(
        options.dataset,
        recipe,
        rank=rank,
        world_size=ranks,
        device=device,
        state=saved and saved["loader"],
        label_map=saved and saved["label_map"],  # a class keeps its number, whatever is added to the dataset
    )
    if loader.label_kind != "single":
        raise SystemExit(f"{options.dataset}: the clips' labels are {loader.label_kind}, and this needs a class for each")
    val = ClipLoader(
        options.dataset,
        replace(recipe, split="val"),
        sampler=EvaluationSampler(views="full", segments=2, crops=3),
        rank=rank,
        world_size=ranks,
        device=device,
        label_map=loader.label_map,
    )

    torch.manual_seed(0)
    model = DistributedDataParallel(cnn(len(loader.label_map)).to(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if saved:
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])

    for epoch in range(saved["epoch"] + 1 if saved else 1, options.epochs + 1):
        total = torch.zeros((), device=device)
        for batch in loader.epochs(1):
            labels = batch.labels.repeat_interleave(recipe.views_per_clip)  # -1: a clip without a label
            loss = cross_entropy(model(batch.floats()), labels, ignore_index=-1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() / loader.steps_per_epoch
        dist.all_reduce(total)
        found = top1(model.module, val)

        states = [None] * ranks
        dist.all_gather_object(states, loader.state())
        if rank == 0:
            print(f"epoch {epoch}: loss {total / ranks:.6f}, {found}", flush=True)
            state = {"epoch": epoch, "model": model.module.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"loader": LoaderState.merged(states).plain(), "label_map": loader.label_map}
            torch.save(state, part := options.run.with_suffix(".part"))
            part.replace(options.run)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
