"""Steps of real ranks, traced and counted by torch's own counter, for a rehearsal to be compared with.

python tests/benchmarks/gloo_steps.py FOLDER 4      # writes FOLDER/4.pt
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from torch.distributed.tensor.debug import CommDebugMode

from benchmarks.rehearsal_parts.rehearsed_step import Mesh, fake_batch, make_moments, trace_step
from benchmarks.rehearsal_parts.step_trace import collectives
from pipeline.loader import Batch
from tests.train import parallel_cases
from train.compute.parallel import Ranks
from train.recipes.pretraining import RECIPES
from train.stages.pretraining import PretrainConfig, Pretraining
from train.training import Training

MESHES = [(Mesh(shard=4, reshard=False), 1), (Mesh(shard=4, reshard=True), 1), (Mesh(shard=2, reshard=True), 3)]
"""And passes of a step."""
VIEWS = 2  # of a pass


def config(mesh: Mesh, passes: int = 1) -> PretrainConfig:
    """The recipe "tiny" on four ranks."""
    tiny = RECIPES["tiny"]()
    compute = replace(
        tiny.compute,
        shard=mesh.shard,
        reshard_after_forward=mesh.reshard,
        views_per_forward=VIEWS,
        attention="flash",
        tokens="reference",
    )
    return replace(tiny, views=replace(tiny.views, views_per_step=4 * VIEWS * passes), compute=compute)


def batch(stage: Pretraining) -> Batch:
    """What the loader gives, of black views."""
    made = fake_batch(stage, VIEWS)
    for tensor in (made.views, made.visible, made.decoded, made.loss_weight):
        assert tensor is not None
        tensor.zero_()
    return made


def counted(ranks: Ranks) -> list[dict[str, Any]]:
    """Of each mesh."""
    found = []
    for mesh, passes in MESHES:
        stage = Pretraining(config(mesh, passes))
        training = Training(stage, ranks)
        make_moments(training)
        with CommDebugMode() as counter:
            trace = trace_step(training, ranks, batch(stage))
        counts = {str(operation): number for operation, number in counter.get_comm_counts().items() if number}
        found.append({"collectives": dict(collectives(trace.events)), "counts": counts, "peak": trace.peak})
        del training
    return found


if __name__ == "__main__":
    sys.exit(parallel_cases.main(Path(sys.argv[1]), [int(argument) for argument in sys.argv[2:]], counted))
