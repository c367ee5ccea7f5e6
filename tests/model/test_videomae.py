import dataclasses

import pytest
import torch
from torch.nn.functional import conv3d, gelu, layer_norm, linear

from model.config import MODELS, ModelConfig
from model.initialization import initialise
from model.layers import reset_buffers
from model.pixels import IMAGENET_MEAN, IMAGENET_STD
from model.trainable import blocks_of
from model.videomae import VideoMAE, pixel_loss

SMALL = ModelConfig(
    input_size=28,
    num_frames=8,
    patch_size=7,
    encoder_dim=24,
    encoder_depth=2,
    encoder_heads=3,
    decoder_dim=12,
    decoder_depth=2,
    decoder_heads=2,
    mlp_ratio=48 / 11,
)  # 64 tokens
V, K, L = 12, 32, 26


def build(config=SMALL, dtype=torch.float32, seed=0):
    model = VideoMAE(config)
    initialise(model, seed)
    with torch.no_grad():  # biases and norms away from 0 and 1, so that a misplaced one shows
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.to(dtype)


def batch(config=SMALL, B=2, visible=V, decoded=K, loss=L, seed=0):
    """Views and indices as the sampler gives them: loss tokens first, then decoded ones that the encoder sees."""
    generator = torch.Generator().manual_seed(seed)
    size = config.input_size
    views = torch.randint(0, 256, (B, config.num_frames, size, size, 3), dtype=torch.uint8, generator=generator)
    order = torch.stack([torch.randperm(config.num_tokens, generator=generator) for _ in range(B)])
    visible_idx = order[:, :visible].sort(1).values
    decoded_idx = torch.cat([order[:, visible : visible + loss], order[:, : decoded - loss]], 1)
    return views, visible_idx, decoded_idx, torch.ones(B, loss)


def slow_loss(model, views, visible_idx, decoded_idx, weight):
    """The forward written out: float clip, all tokens embedded, boolean masks, explicit attention; one sample at a time."""
    c, sd = model.config, dict(model.named_parameters())
    dtype = model.mask_token.dtype
    mean = torch.tensor(IMAGENET_MEAN).view(3, 1, 1, 1)
    std = torch.tensor(IMAGENET_STD).view(3, 1, 1, 1)

    def positions(dim):
        j = torch.arange(dim, dtype=torch.float64)
        angle = torch.arange(c.num_tokens, dtype=torch.float64)[:, None] / 10000 ** (2 * (j // 2) / dim)
        return torch.where(j % 2 == 0, angle.sin(), angle.cos()).float().to(dtype)

    def norm(x, name):
        return layer_norm(x, x.shape[-1:], sd[name + ".weight"], sd[name + ".bias"], 1e-6)

    def block(x, name, heads):
        y = norm(x, name + "norm1")
        q, k, v = (y @ sd[name + "attn.qkv.weight"].T).chunk(3, -1)
        q, v = q + sd[name + "attn.q_bias"], v + sd[name + "attn.v_bias"]
        q, k, v = (z.unflatten(-1, (heads, -1)).transpose(0, 1) for z in (q, k, v))
        y = ((q @ k.transpose(1, 2)) / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + linear(y.transpose(0, 1).flatten(1), sd[name + "attn.proj.weight"], sd[name + "attn.proj.bias"])
        y = linear(norm(x, name + "norm2"), sd[name + "mlp.fc1.weight"], sd[name + "mlp.fc1.bias"])
        return x + linear(gelu(y), sd[name + "mlp.fc2.weight"], sd[name + "mlp.fc2.bias"])

    total, weights = 0.0, 0.0
    for b in range(len(views)):
        clip = ((views[b].permute(3, 0, 1, 2).float() / 255 - mean) / std).to(dtype)
        s, p = c.tubelet_size, c.patch_size
        kernel, bias = sd["encoder.patch_embed.proj.weight"], sd["encoder.patch_embed.proj.bias"]
        x = conv3d(clip[None], kernel, bias, stride=(s, p, p))[0].flatten(1).T + positions(c.encoder_dim)
        x = x[visible_idx[b]]
        for i in range(c.encoder_depth):
            x = block(x, f"encoder.blocks.{i}.", c.encoder_heads)
        x = norm(x, "encoder.norm") @ sd["encoder_to_decoder.weight"].T
        table = positions(c.decoder_dim)
        x = torch.cat([x + table[visible_idx[b]], sd["mask_token"][0] + table[decoded_idx[b]]])
        for i in range(c.decoder_depth):
            x = block(x, f"decoder.blocks.{i}.", c.decoder_heads)
        x = linear(norm(x, "decoder.norm"), sd["decoder.head.weight"], sd["decoder.head.bias"])[len(visible_idx[b]) :]
        raw = clip * std.to(dtype) + mean.to(dtype)
        t, h, w = c.grid
        raw = raw.view(3, t, s, h, p, w, p).permute(1, 3, 5, 2, 4, 6, 0).reshape(t * h * w, s * p * p, 3)
        target = (raw - raw.mean(1, keepdim=True)) / (raw.var(1, unbiased=True, keepdim=True).sqrt() + 1e-6)
        for i in range(weight.shape[1]):
            error = (x[i] - target[decoded_idx[b, i]].flatten()).square().mean()
            total = total + weight[b, i] * error
            weights = weights + weight[b, i]
    return total / weights


def test_loss_and_gradients_equal_the_forward_written_out():
    model = build(dtype=torch.float64)
    inputs = batch()
    loss = pixel_loss(model, *inputs)
    assert loss.shape == () and loss.dtype == torch.float64
    want = slow_loss(model, *inputs)
    torch.testing.assert_close(loss, want, rtol=1e-12, atol=0)
    names, parameters = zip(*model.named_parameters(), strict=True)
    got_grads, want_grads = torch.autograd.grad(loss, parameters), torch.autograd.grad(want, parameters)
    for name, got_grad, want_grad in zip(names, got_grads, want_grads, strict=True):
        assert want_grad.abs().max() > 0, name
        torch.testing.assert_close(got_grad, want_grad, rtol=1e-9, atol=1e-14, msg=name)


def test_weights_choose_which_targets_count():
    """Every decoded token given a target and the seen ones weight 0: the same loss as the first L alone."""
    model = build(dtype=torch.float64)
    views, visible_idx, decoded_idx, _ = batch()
    want = pixel_loss(model, views, visible_idx, decoded_idx, torch.ones(2, L))
    weight = (torch.arange(K) < L).double().expand(2, -1)
    torch.testing.assert_close(pixel_loss(model, views, visible_idx, decoded_idx, weight), want, rtol=1e-13, atol=0)
    weight = torch.rand(2, L, dtype=torch.float64)
    got = pixel_loss(model, views, visible_idx, decoded_idx, weight)
    torch.testing.assert_close(got, slow_loss(model, views, visible_idx, decoded_idx, weight), rtol=1e-12, atol=0)


def test_predictions_of_the_loss_are_those_of_all_tokens():
    """What training leaves out, of a picture's predictions, changes nothing of the rest."""
    model = build(dtype=torch.float64)
    views, visible_idx, decoded_idx, _ = batch()
    with torch.no_grad():
        latent = model.encode(views, visible_idx)
        every, loss_only = (model.decode(latent, visible_idx, decoded_idx, n) for n in (None, L))
    assert every.shape[1] == K and loss_only.shape[1] == L
    torch.testing.assert_close(loss_only, every[:, :L], rtol=1e-12, atol=1e-12)


def test_order_of_decoded_tokens_does_not_matter():
    model = build(dtype=torch.float64)
    views, visible_idx, decoded_idx, _ = batch()
    with torch.no_grad():
        latent = model.encode(views, visible_idx)
        prediction = model.decode(latent, visible_idx, decoded_idx)
        shuffled = torch.randperm(K)
        other = model.decode(latent, visible_idx, decoded_idx[:, shuffled])
    assert latent.shape == (2, V, SMALL.encoder_dim) and prediction.shape == (2, K, SMALL.patch_values)
    torch.testing.assert_close(other, prediction[:, shuffled], rtol=1e-11, atol=1e-12)


def test_encoder_only_masking():
    """VideoMAE V1: decode exactly what the encoder does not see."""
    model = build(dtype=torch.float64)
    hidden = SMALL.num_tokens - V
    inputs = batch(decoded=hidden, loss=hidden)
    torch.testing.assert_close(pixel_loss(model, *inputs), slow_loss(model, *inputs), rtol=1e-12, atol=0)


def test_encoder_sees_only_visible_pixels():
    model = build()
    views, visible_idx, _, _ = batch(B=1)
    want = model.encode(views, visible_idx)
    seen = torch.zeros(SMALL.num_tokens, dtype=torch.bool)
    seen[visible_idx[0]] = True
    t, h, w = SMALL.grid
    pixels = seen.view(t, 1, h, 1, w, 1, 1).expand(t, 2, h, 7, w, 7, 3).reshape(1, *views.shape[1:])
    assert torch.equal(model.encode(torch.where(pixels, views, 255 - views), visible_idx), want)
    assert not torch.equal(model.encode(torch.where(pixels, 255 - views, views), visible_idx), want)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_lower_precision_follows_the_parameters(dtype, tolerance):
    inputs = batch()
    want = pixel_loss(build(dtype=torch.float64), *inputs)
    model = build(dtype=dtype)
    loss = pixel_loss(model, *inputs)
    loss.backward()
    assert loss.dtype == torch.float32
    assert model.encode(*inputs[:2]).dtype == dtype
    assert loss.item() == pytest.approx(want.item(), rel=tolerance)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_a_meta_build_becomes_the_direct_one():
    inputs = batch()
    model = build()
    with torch.device("meta"):
        empty = VideoMAE(SMALL)
    assert all(t.is_meta for t in [*empty.parameters(), *empty.buffers()])
    empty.to_empty(device="cpu")
    for tensor in [*empty.parameters(), *empty.buffers()]:
        tensor.detach().fill_(torch.nan)
    reset_buffers(empty)
    empty.load_state_dict(model.state_dict())
    assert torch.equal(pixel_loss(empty, *inputs), pixel_loss(model, *inputs))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own look at the activations it traces
def test_blocks_compile_whole_and_once_a_kind():
    torch._dynamo.reset()
    model, inputs = build(), batch()
    want = pixel_loss(model, *inputs)
    assert [blocks_of(part) for part in model.parts().values()] == [[*model.encoder.blocks], [*model.decoder.blocks]]
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    for block in (*model.encoder.blocks, *model.decoder.blocks):
        block.compile(fullgraph=True, dynamic=False, backend=backend)
    torch._dynamo.utils.counters.clear()
    for _ in range(2):
        loss = pixel_loss(model, *inputs)
        loss.backward()
    torch.testing.assert_close(loss, want)
    assert len(graphs) == 3  # one for the encoder, one for the decoder, one for its last block
    assert not torch._dynamo.utils.counters["graph_break"]
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("name", "total", "encoder", "decoder", "entries"),
    [
        ("vit-s", 24_029_376, 21_879_936, 2_075_520, 218),
        ("vit-b", 94_210_944, 86_227_200, 7_688_448, 218),
        ("vit-l", 317_782_016, 303_860_736, 13_396_480, 374),
        ("vit-h", 645_659_392, 631_607_040, 13_396_480, 478),
        ("vit-g", 1_026_306_560, 1_011_610_752, 13_974_400, 582),
    ],
)
def test_parameters_of_the_official_models(name, total, encoder, decoder, entries):
    with torch.device("meta"):
        model = VideoMAE(MODELS[name])
    count = {"total": model, "encoder": model.encoder, "decoder": model.decoder}
    count = {part: sum(p.numel() for p in module.parameters()) for part, module in count.items()}
    assert count == {"total": total, "encoder": encoder, "decoder": decoder}
    assert len(model.state_dict()) == entries
    assert set(model.state_dict()) == {n for n, _ in model.named_parameters()}  # no buffer is saved


def test_state_dict_has_the_official_names_and_shapes():
    with torch.device("meta"):
        model = VideoMAE(dataclasses.replace(MODELS["vit-g"], encoder_depth=1, decoder_depth=1))

    def block(dim, hidden):
        return {
            "norm1.weight": (dim,),
            "norm1.bias": (dim,),
            "attn.q_bias": (dim,),
            "attn.v_bias": (dim,),
            "attn.qkv.weight": (3 * dim, dim),
            "attn.proj.weight": (dim, dim),
            "attn.proj.bias": (dim,),
            "norm2.weight": (dim,),
            "norm2.bias": (dim,),
            "mlp.fc1.weight": (hidden, dim),
            "mlp.fc1.bias": (hidden,),
            "mlp.fc2.weight": (dim, hidden),
            "mlp.fc2.bias": (dim,),
        }

    want = {
        "mask_token": (1, 1, 512),
        "encoder.patch_embed.proj.weight": (1408, 3, 2, 14, 14),
        "encoder.patch_embed.proj.bias": (1408,),
        **{f"encoder.blocks.0.{k}": v for k, v in block(1408, 6144).items()},
        "encoder.norm.weight": (1408,),
        "encoder.norm.bias": (1408,),
        **{f"decoder.blocks.0.{k}": v for k, v in block(512, 2234).items()},
        "decoder.norm.weight": (512,),
        "decoder.norm.bias": (512,),
        "decoder.head.weight": (1176, 512),
        "decoder.head.bias": (1176,),
        "encoder_to_decoder.weight": (512, 1408),
    }
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == want
