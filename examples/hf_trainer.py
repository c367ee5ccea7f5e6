"""Labels in Hugging Face's Trainer: VideoMAE's classifier, with checkpoints from which it goes on in the middle of an epoch.

    pip install 'transformers>=5' accelerate
    torchrun --nproc-per-node 8 examples/hf_trainer.py DATASET RUN

The same command resumes, on any number of ranks.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback, TrainingArguments, VideoMAEConfig, VideoMAEForVideoClassification, set_seed
from transformers.trainer_utils import get_last_checkpoint
from tubecell.pipeline.loader import ClipLoader, LoaderState
from tubecell.pipeline.sampling import EvaluationSampler, SamplingRecipe

IGNORED = -100  # a label without loss, in transformers


class Epoch:
    """A loader's batches to the end of its epoch, as the model's inputs. Trainer takes it for a DataLoader."""

    def __init__(self, loader: ClipLoader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        """Of a whole epoch, though the first may be the rest of one."""
        return self.loader.steps_per_epoch * self.loader.batches_per_step

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self.loader.epochs(1):
            labels = batch.labels.masked_fill((batch.labels < 0) | (batch.weight == 0), IGNORED)
            views_per_clip = len(batch.views) // len(batch.rows)
            yield {"pixel_values": batch.floats(layout="BTCHW"), "labels": labels.repeat_interleave(views_per_clip)}


class ClipTrainer(Trainer):
    """The batches go past accelerate, which would deal them out to the ranks, and asks for each before the one before it is
    trained on. They are this rank's already, on its device, and the loader's state is that of the step."""

    def get_train_dataloader(self) -> Epoch:
        return self.train_dataset

    def get_eval_dataloader(self, eval_dataset: Epoch | None = None) -> Epoch:
        return eval_dataset or self.eval_dataset


class SaveLoader(TrainerCallback):
    """The loader's state of all ranks, in each checkpoint."""

    def __init__(self, loader: ClipLoader) -> None:
        self.loader = loader

    def on_save(self, args, state, control, **others) -> None:
        states = gather_object([self.loader.state()])
        if args.should_save:
            file = Path(args.output_dir, f"checkpoint-{state.global_step}", "loader.json")
            file.write_text(json.dumps(LoaderState.merged(states).plain()))


def top1(found) -> dict[str, float]:
    """Of the clips that have a label and could be decoded; their number."""
    known = found.label_ids != IGNORED
    return {"top1": (found.predictions.argmax(1) == found.label_ids)[known].mean(), "clips": known.sum()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("run", type=Path)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--views", type=int, default=64, help="of a step, on all ranks")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--dim", type=int, default=384)
    options = parser.parse_args()

    set_seed(0)
    arguments = TrainingArguments(
        options.run,
        num_train_epochs=options.epochs,
        gradient_accumulation_steps=options.accumulate,
        learning_rate=1e-3,
        eval_strategy="epoch",
        save_steps=options.save_every,
        logging_steps=1,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),  # unsaid, each rank on CPUs would train a model of its own
        ddp_find_unused_parameters=False,
        ignore_data_skip=True,  # the loader is where it was
    )
    last = get_last_checkpoint(options.run) if options.run.exists() else None
    state = json.loads(Path(last, "loader.json").read_text()) if last else None

    recipe = SamplingRecipe(
        views_per_step=options.views, views_per_clip=2, input_size=options.size, crop="random_resized", masks=None
    )
    here = {"rank": arguments.process_index, "world_size": arguments.world_size, "device": arguments.device}
    clips = options.views // recipe.views_per_clip // arguments.world_size // options.accumulate
    loader = ClipLoader(options.dataset, recipe, state=state, clips_per_batch=clips, **here)
    if loader.label_kind != "single":
        raise SystemExit(f"{options.dataset}: the clips' labels are {loader.label_kind}, and this needs a class for each")
    held_out = replace(recipe, split="val")
    val = ClipLoader(options.dataset, held_out, sampler=EvaluationSampler(), label_map=loader.label_map, **here)

    classes = dict(enumerate(loader.label_map))
    sizes = {"image_size": options.size, "hidden_size": options.dim, "intermediate_size": 4 * options.dim}
    config = VideoMAEConfig(**sizes, num_frames=recipe.num_frames, id2label=classes)
    trainer = ClipTrainer(
        VideoMAEForVideoClassification(config),
        arguments,
        train_dataset=Epoch(loader),
        eval_dataset=Epoch(val),
        compute_metrics=top1,
        callbacks=[SaveLoader(loader)],
    )
    trainer.train(resume_from_checkpoint=last)


if __name__ == "__main__":
    main()
