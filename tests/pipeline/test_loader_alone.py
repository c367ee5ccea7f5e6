"""The loader in somebody else's trainer: a script in another folder, with nothing of ours but the installed package."""

import json
import os
import subprocess
import sys
from pathlib import Path

TRAINER = """
import sys, torch
from tubecell.pipeline.loader import ClipLoader
from tubecell.pipeline.sampling import SamplingRecipe

recipe = SamplingRecipe(views_per_step=8, views_per_clip=2, num_frames=8, input_size=32, patch_size=8)
loader = ClipLoader(sys.argv[1], recipe, rank=0, world_size=2)
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(5):
    batch = next(loader)
    loss = model(batch.views.float().mean((1, 2, 3)) / 255).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
state = loader.state()
"""
LOOK = """
import json, pathlib, psutil
maps = [pathlib.Path(f"/proc/{pid}/maps").read_text() for pid in ("self", loader._process.pid)]
(server,) = psutil.Process(loader._process.pid).children()
again = ClipLoader(sys.argv[1], recipe, rank=0, world_size=2, state=state)
print(json.dumps({
    "distributed": torch.distributed.is_initialized(),
    "ours": sorted({name.split(".")[0] for name in sys.modules} & {"train", "model", "benchmarks", "dataset_builders"}),
    "where": [state["epoch"], state["step"]],
    "next": bool((next(loader).views == next(again).views).all()),
    "shm": [line for text in maps for line in text.splitlines() if "/dev/shm" in line],
    "memfd": [text.count("memfd:tubecell-ring") for text in maps],
    "arrow": ["libarrow" in text for text in maps],
    "threads": [process.num_threads() for process in (server, *server.children())],
}))
"""


def test_fifteen_lines_are_a_trainer(dataset: Path, tmp_path: Path) -> None:
    assert len(TRAINER.strip().splitlines()) <= 15
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER + LOOK)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}  # what an editable installation comes to
    done = subprocess.run(
        [sys.executable, "-W", "error", script, dataset],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    said = json.loads(done.stdout)
    assert said["distributed"] is False and said["ours"] == []
    assert said["where"] == [1, 2] and said["next"]
    # works with a /dev/shm of 64 MB, or none
    assert said["shm"] == [] and min(said["memfd"]) >= 1
    # pyarrow's threads are the trainer's alone; the process that forks has none, and so neither have those that decode
    assert said["arrow"] == [True, False] and len(said["threads"]) > 1 and set(said["threads"]) == {1}
