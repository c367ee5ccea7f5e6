"""An action detector's weights have the names of a probe's classifier: what tells them apart, and what goes in and out."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.action_detector import ActionDetector, Regions
from model.classifier import VideoClassifier
from model.config import MODELS
from model.video_encoder import load_encoder
from model.videomae import VideoMAE
from model.weight_files import WeightFile
from model.weights import Weights, metadata_of, read_weights, transfer, understand
from tests.model.test_weights import equal

TINY = replace(MODELS["tiny"], input_size=16, num_frames=4)
HINTS = {"encoder_heads": 4, "input_size": 16, "num_frames": 4}


def of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}


def understood(tensors: dict[str, Tensor], **facts: str) -> Weights:
    """As of a file of ours."""
    return understand(WeightFile("x", tensors, metadata_of(TINY, **facts)))


def test_the_official_detectors_are_known_by_their_classes(tmp_path: Path) -> None:
    tensors = of(ActionDetector(TINY, 80))
    torch.save({"module": tensors}, tmp_path / "x.pth")
    found = read_weights(tmp_path / "x.pth", **HINTS)
    assert found.kind == "detector" and equal(found.tensors, tensors) and not found.left and not found.differs
    assert "80 classes of boxes" in str(found) and "taken to be an action detector" in str(found)
    views = torch.randint(0, 256, (1, 4, 16, 16, 3), dtype=torch.uint8)
    built = found.build()
    assert isinstance(built, ActionDetector) and built(views, Regions(torch.ones(2, 4), torch.zeros(2))).shape == (2, 80)

    torch.save({"module": of(ActionDetector(TINY, 79))}, tmp_path / "y.pth")
    assert read_weights(tmp_path / "y.pth").kind == "classifier"  # a probe's, as before


def test_ours_say_what_they_are() -> None:
    tensors = of(ActionDetector(TINY, 5))
    assert understood(tensors, stage="detect").kind == "detector"
    assert understood(tensors, stage="probe").kind == "classifier"
    assert understood(of(ActionDetector(TINY, 80)), stage="probe").kind == "classifier"
    assert understood(of(VideoClassifier(TINY, 80)), stage="finetune").kind == "classifier"


def test_the_encoder_of_a_detector_has_no_head(tmp_path: Path) -> None:
    torch.save({"model": of(ActionDetector(TINY, 80))}, tmp_path / "x.pth")
    encoder = load_encoder(tmp_path / "x.pth", **HINTS)
    assert encoder.num_classes == 0 and isinstance(encoder.norm, torch.nn.LayerNorm)
    assert encoder(torch.zeros(1, 4, 16, 16, 3)).shape == (1, 128)


@pytest.mark.parametrize(
    ("earlier", "fresh"),
    [
        (VideoMAE(TINY), {"head.weight", "head.bias"}),
        (VideoClassifier(TINY, 7), {"norm.weight", "norm.bias", "head.weight", "head.bias"}),
        (ActionDetector(TINY, 80), set()),
    ],
)
def test_what_a_detector_begins_with(earlier: torch.nn.Module, fresh: set[str]) -> None:
    """The last norm of pre-training, which a fine-tuned encoder has not: that begins as the identity."""
    shapes = {name: parameter.shape for name, parameter in ActionDetector(TINY, 80).named_parameters()}
    found = transfer(understood(of(earlier)), shapes)
    assert set(found.fresh) == fresh and set(found.taken) == shapes.keys() - fresh
    deeper = ActionDetector(replace(TINY, encoder_depth=5), 80)
    with pytest.raises(ValueError, match="does not fit the model"):
        transfer(understood(of(earlier)), {name: parameter.shape for name, parameter in deeper.named_parameters()})
