import copy
import dataclasses
import io
import itertools
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from tubecell.model import load_encoder

from model.classifier import VideoClassifier
from model.config import ModelConfig
from model.initialization import initialise
from model.pixels import normalise
from model.video_encoder import VideoEncoder
from model.videomae import VideoMAE
from model.weights import metadata_of
from train.compute.optimizer import parameter_groups

CONFIG = ModelConfig(
    input_size=24, num_frames=4, patch_size=8, encoder_dim=24, encoder_depth=3, encoder_heads=3, decoder_dim=12, decoder_heads=2
)
OTHER = (8, 32, 40)  # frames and pixels: every axis is interpolated


def random_clips(T=4, H=24, W=24, B=2):
    return torch.randint(0, 256, (B, T, H, W, 3), dtype=torch.uint8)


def random_encoder(num_classes=0, depth=3, **norms):
    encoder = VideoEncoder(dataclasses.replace(CONFIG, encoder_depth=depth), num_classes, **norms)
    initialise(encoder, 0, head_scale=1.0)
    return encoder


def bare(state, prefix=""):
    return {name.removeprefix(prefix): tensor.clone() for name, tensor in state.items() if name.startswith(prefix)}


def test_it_is_the_classifier():
    """Also on another grid: the classifier is built for one, whose positions are interpolated, too."""
    small = VideoClassifier(CONFIG, 5)
    initialise(small, 0, head_scale=1.0)
    encoder = VideoEncoder.from_tensors(CONFIG, bare(small.state_dict()))
    larger = dataclasses.replace(CONFIG, num_frames=6, input_size=40, positions_size=24, positions_frames=4)
    large = VideoClassifier(larger, 5)
    large.load_state_dict(small.state_dict())
    for classifier, clips in ((small, random_clips()), (large, random_clips(6, 40, 40))):
        tokens = encoder.forward_features(clips)
        assert torch.equal(encoder.forward_head(tokens, pre_logits=True), classifier.features(clips))
        assert torch.equal(encoder(clips), classifier(clips))
    assert not encoder.training and encoder.num_classes == 5 and isinstance(encoder.norm, torch.nn.Identity)
    # weights that were fine-tuned on interpolated positions: theirs are interpolated again from the first ones
    assert torch.equal(VideoEncoder.from_tensors(larger, bare(small.state_dict()))(clips), large(clips))


def test_it_is_the_autoencoders_encoder():
    model = VideoMAE(CONFIG)
    initialise(model, 0)
    encoder = VideoEncoder.from_tensors(CONFIG, bare(model.state_dict(), "encoder."))
    clips = random_clips()
    want = model.encode(clips, torch.arange(CONFIG.num_tokens).expand(2, -1))
    torch.testing.assert_close(encoder.forward_features(clips), want)
    torch.testing.assert_close(encoder(clips), want.mean(1))
    assert encoder.get_classifier()(want) is want and not encoder.num_classes
    # a model that is built for interpolated positions has them in encoder and decoder
    other = VideoMAE(dataclasses.replace(CONFIG, num_frames=8, positions_frames=4))
    assert torch.equal(other.encoder.positions.table, encoder.positions.at((4, 3, 3)))
    assert other.decoder.positions.built_for == (2, 3, 3)


@pytest.mark.parametrize("size", [(4, 24, 24), OTHER])
def test_layouts_of_clips(size):
    encoder, clips = random_encoder(), random_clips(*size)
    floats, want = normalise(clips.flatten(2)).view(clips.shape), encoder.forward_features(clips)
    for same in (clips.movedim(-1, 1), clips.movedim(-1, 1).contiguous(), floats, floats.movedim(-1, 1).contiguous()):
        assert torch.equal(encoder.forward_features(same), want)
    assert want.shape == (2, size[0] // 2 * (size[1] // 8) * (size[2] // 8), 24)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (2, 5, 24, 24, 3),
            r"\(2, 5, 24, 24, 3\) must .* T a multiple of the tubelet size 2, H and W multiples of the patch size 8",
        ),
        ((2, 3, 4, 24, 28), r"\(2, 3, 4, 24, 28\) must be \(B, T, H, W, 3\) or \(B, 3, T, H, W\)"),
        ((2, 3, 24, 24, 3), r"\(2, 3, 24, 24, 3\) must"),  # 3 frames, or 3 columns: neither fits
        ((2, 4, 0, 24, 3), "must"),
        ((2, 4, 24, 24, 4), "must"),
        ((4, 24, 24, 3), "must"),
        ((3,), "must"),
    ],
)
def test_other_clips_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        random_encoder()(torch.zeros(shape))


def test_integers_are_refused():
    with pytest.raises(ValueError, match=r"clips of torch.int64 must be uint8, or floats that"):
        random_encoder()(random_clips().long())


def test_weights_that_do_not_fit_are_named():
    tensors = bare(random_encoder(5).state_dict())
    tensors["decoder.norm.weight"] = tensors.pop("blocks.1.attn.q_bias")
    tensors["head.weight"] = tensors["head.weight"][:, :7]
    message = r"blocks.1.attn.q_bias is missing, decoder.norm.weight has no place, head.weight is \(5, 7\), not \(5, 24\)$"
    with pytest.raises(ValueError, match=message):
        VideoEncoder.from_tensors(CONFIG, tensors)
    with pytest.raises(ValueError, match=r"patch_embed.proj.weight is missing.* and 36 others"):
        VideoEncoder.from_tensors(CONFIG, {})


def test_loaded_from_files(tmp_path):
    classifier, autoencoder, clips = VideoClassifier(CONFIG, 5), VideoMAE(CONFIG), random_clips(*OTHER)
    for model, labels in ((classifier, list("abcde")), (autoencoder, None)):
        initialise(model, 0, head_scale=1.0)
        file = tmp_path / f"{type(model).__name__}.safetensors"
        save_file(model.state_dict(), file, metadata_of(CONFIG, labels))
        encoder, tensors = load_encoder(file), bare(model.state_dict(), "" if labels else "encoder.")
        assert torch.equal(encoder(clips), VideoEncoder.from_tensors(CONFIG, tensors)(clips))
        assert encoder.labels == labels and not encoder.training
    # files that do not say so
    hints, clips = {"encoder_heads": 3, "input_size": 24, "num_frames": 4}, random_clips()
    for model in (autoencoder, classifier):
        save_file(model.half().state_dict(), file)
        with pytest.raises(ValueError, match="nothing tells how many heads its encoder has"):
            load_encoder(file)
        encoder = load_encoder(file, **hints)
        assert encoder.positions.grid == (2, 3, 3)
    assert torch.equal(encoder(clips), classifier.float()(clips))
    # what is loaded lies in no file: this one may be written over, and tensors that shared memory may be trained
    shared = classifier.state_dict() | {"fc_norm.weight": classifier.fc_norm.bias, "head.bias": torch.zeros(1).expand(5)}
    torch.save(shared, file := tmp_path / "x.pth")
    encoder = load_encoder(file, **hints)
    file.write_bytes(b"")
    assert torch.equal(encoder.fc_norm.weight, classifier.fc_norm.bias)
    encoder.fc_norm.weight.data += 1
    encoder.head.bias.data += 1
    assert torch.equal(encoder.fc_norm.bias, classifier.fc_norm.bias)
    light = "import sys, tubecell.model; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", light], check=True)
    with pytest.raises(ImportError, match="load_decoder"):
        from tubecell.model import load_decoder  # noqa: F401


def test_intermediate_layers_are_asked_for_as_of_timm():
    """The same questions to both: which blocks, in which order, normed or not, and shaped how."""
    encoder, clips, grid = random_encoder(), random_clips(*OTHER), (4, 4, 5)
    theirs = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=24, depth=3, num_heads=3, class_token=False, num_classes=0, global_pool=""
    )
    images = torch.randn(2, 3, 16, 16)

    def outputs(model, inputs):
        """After each of the model's blocks, and what it gives."""
        found = []
        hooks = [block.register_forward_hook(lambda _, __, out: found.append(out.detach())) for block in model.blocks]
        final = model.forward_features(inputs)
        for hook in hooks:
            hook.remove()
        return found, final

    ours_at, final = outputs(encoder, clips)
    theirs_at, _ = outputs(theirs, images)

    def which(got, at, norm):
        """After which blocks tensors came."""
        return [next(i for i, x in enumerate(at) if torch.equal(y, norm(x))) for y in got]

    for n, norm in itertools.product((1, 2, 3, [0], [2, 0], [-1, -3]), (False, True)):
        got, like = (m.get_intermediate_layers(x, n, norm=norm) for m, x in ((encoder, clips), (theirs, images)))
        norms = (encoder.norm, theirs.norm) if norm else (torch.nn.Identity(),) * 2
        assert which(got, ours_at, norms[0]) == which(like, theirs_at, norms[1]), (n, norm)
    (flat,), (shaped,) = encoder.get_intermediate_layers(clips), encoder.get_intermediate_layers(clips, reshape=True)
    assert shaped.shape == (2, 24, *grid) and shaped.is_contiguous()
    assert torch.equal(shaped.flatten(2).transpose(1, 2), flat)
    last, every = encoder.forward_intermediates(clips, output_fmt="NLC")
    assert torch.equal(last, final) and which(every, ours_at, torch.nn.Identity()) == [0, 1, 2]
    early, _ = encoder.forward_intermediates(clips, [1], stop_early=True)
    assert torch.equal(early, encoder.norm(ours_at[1]))
    for n in (0, 4, [3], [-4], []):
        with pytest.raises(ValueError, match=r"asked for; the encoder has 3"):
            encoder.get_intermediate_layers(clips, n)
    with pytest.raises(ValueError, match="output_fmt 'NCHW' must be one of NCTHW, NLC"):
        encoder.forward_intermediates(clips, output_fmt="NCHW")


def test_another_classifier():
    encoder, clips = random_encoder(5, norm=False, fc_norm=True).double(), random_clips()
    encoder.labels = list("abcde")
    features = encoder.forward_head(encoder.forward_features(clips), pre_logits=True)
    encoder.reset_classifier(7)
    assert encoder(clips).shape == (2, 7) and encoder.labels is None and encoder.num_classes == 7
    assert torch.equal(encoder(clips), encoder.get_classifier()(features))
    encoder.reset_classifier(0, "")
    assert torch.equal(encoder(clips), encoder.fc_norm(encoder.forward_features(clips)))
    encoder.reset_classifier(0, "avg")
    assert torch.equal(encoder(clips), features)
    with pytest.raises(ValueError, match="global_pool 'token' must be"):
        encoder.reset_classifier(5, "token")


def test_optimizers_of_timm_group_it_officially():
    encoder = random_encoder(5, norm=False, fc_norm=True)
    classifier = VideoClassifier(CONFIG, 5)
    assert [n for n, _ in encoder.named_parameters()] == [n for n, _ in classifier.named_parameters()]

    def by_name(model, groups):
        names = {id(p): name for name, p in model.named_parameters()}
        return {names[id(p)]: (pytest.approx(g["lr_scale"]), g["weight_decay"]) for g in groups for p in g["params"]}

    timms = param_groups_layer_decay(encoder, 0.05, encoder.no_weight_decay(), layer_decay=0.75)
    ours = parameter_groups(list(classifier.named_parameters()), 0.05, 0.75, CONFIG.encoder_depth)
    assert by_name(encoder, timms) == by_name(classifier, ours)
    undecayed = {name for name, (_, decay) in by_name(classifier, ours).items() if not decay}
    assert encoder.no_weight_decay() == undecayed


def test_checkpointing_keeps_less_and_changes_no_gradient():
    encoder, clips = random_encoder(5), random_clips(*OTHER)

    def gradients():
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            loss = encoder(clips).square().sum()
        encoder.zero_grad()
        loss.backward()
        return sum(kept), [p.grad.clone() for p in encoder.parameters()]

    much, want = gradients()
    encoder.set_grad_checkpointing()
    little, got = gradients()
    assert little < much / 3
    assert all(torch.equal(a, b) and a.any() for a, b in zip(got, want, strict=True))
    encoder.set_grad_checkpointing(False)
    assert gradients()[0] == much


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    encoder, clips = random_encoder(5), random_clips(*OTHER)
    with torch.autocast("cpu", dtype):
        mixed = encoder.forward_features(clips)
    want = encoder.forward_features(clips)
    table = encoder.positions.at((4, 4, 5))
    got = encoder.to(dtype).forward_features(clips)
    assert got.dtype == dtype and torch.isfinite(got).all()
    torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.05)
    torch.testing.assert_close(mixed.float(), want, rtol=0.05, atol=0.05)
    assert torch.equal(encoder.positions.at((4, 4, 5)), table)  # not of a rounded one


def test_copies_and_pickles():
    encoder, clips = random_encoder(5), random_clips(*OTHER)
    with torch.inference_mode():
        want = encoder(clips)
    assert len(encoder.positions.others) == 1 and not any("positions" in name for name in encoder.state_dict())
    file = io.BytesIO()
    torch.save(encoder, file)
    file.seek(0)
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder)), torch.load(file, weights_only=False)):
        assert not other.positions.others
        assert torch.equal(other(clips), want)
        other(clips).sum().backward()
    encoder(clips).sum().backward()  # with a table that was made in inference mode
    for T in range(2, 20, 2):
        encoder(random_clips(T))
    assert len(encoder.positions.others) == 4


def test_compiled():
    encoder = random_encoder(5, depth=1)
    compiled = torch.compile(encoder, fullgraph=True, dynamic=False, backend="eager")
    for size in ((4, 24, 24), OTHER):
        clips = random_clips(*size)
        torch.testing.assert_close(compiled(clips), encoder(clips))


@pytest.mark.slow
def test_compiled_to_kernels_and_trained():
    encoder, clips = random_encoder(5, depth=1), random_clips(*OTHER)
    encoder.set_grad_checkpointing()
    losses = (model(clips).square().sum() for model in (torch.compile(encoder, fullgraph=True), encoder))
    for got, want in zip(*(torch.autograd.grad(loss, list(encoder.parameters())) for loss in losses), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_exported(strict):
    """For all sizes of more than a tubelet; and, which is slow, for one."""
    encoder, Dim = random_encoder(5, depth=1), torch.export.Dim
    for size in ((4, 24, 24), OTHER) if strict else ():
        clips = random_clips(*size)
        program = torch.export.export(encoder, (clips,), strict=strict)
        torch.testing.assert_close(program.module()(clips), encoder(clips))
    sizes = {0: Dim("batch"), 1: 2 * Dim("tubelets", min=2), 2: 8 * Dim("rows"), 3: 8 * Dim("columns")}
    program = torch.export.export(encoder, (random_clips(*OTHER),), dynamic_shapes=(sizes,), strict=strict)
    for clips in (random_clips(), random_clips(6, 16, 48, B=1), random_clips(*OTHER)):
        torch.testing.assert_close(program.module()(clips), encoder(clips))
