import math

import numpy as np
import pytest
import torch
from torch.nn.functional import conv3d

from model.config import Implementation
from model.layers import (
    Attention,
    Block,
    PatchEmbed,
    PositionTable,
    activate_flash_attention_3,
    interpolated,
    reset_buffers,
    sinusoids,
)


def randomise(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return module


def test_attention_equals_explicit_softmax():
    D, H, N = 24, 3, 7
    layer = randomise(Attention(D, H).double())
    x = torch.randn(2, N, D, dtype=torch.float64)
    want = torch.zeros(2, N, D, dtype=torch.float64)
    for h in range(H):
        rows = slice(h * D // H, (h + 1) * D // H)
        q = x @ layer.qkv.weight[:D][rows].T + layer.q_bias[rows]
        k = x @ layer.qkv.weight[D : 2 * D][rows].T
        v = x @ layer.qkv.weight[2 * D :][rows].T + layer.v_bias[rows]
        want[..., rows] = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(D // H), -1) @ v
    torch.testing.assert_close(layer(x), layer.proj(want), rtol=1e-12, atol=1e-12)


def test_attention_has_no_key_bias_to_learn_or_to_save():
    layer = Attention(24, 3)
    assert set(layer.state_dict()) == {"qkv.weight", "q_bias", "v_bias", "proj.weight", "proj.bias"}
    assert not layer.k_bias.requires_grad and not layer.k_bias.any()


def test_block_is_pre_norm_with_exact_gelu():
    block = randomise(Block(24, 3, 50).double())
    x = torch.randn(2, 5, 24, dtype=torch.float64)

    def norm(x, layer):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return x * layer.weight + layer.bias

    y = x + block.attn(norm(x, block.norm1))
    hidden = norm(y, block.norm2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    want = y + hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
    torch.testing.assert_close(block(x), want, rtol=1e-12, atol=1e-12)


def test_a_block_gives_only_the_tokens_asked_for():
    block = randomise(Block(24, 3, 50).double())
    x = torch.randn(2, 9, 24, dtype=torch.float64)
    torch.testing.assert_close(block(x, slice(2, 6)), block(x)[:, 2:6], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mlp_dim", [2234 // 64, 64])
def test_aligned_mlp_is_the_same_mlp(mlp_dim):
    """Names, shapes, output and every gradient: the padding is inert."""
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    plain, aligned = (randomise(Block(24, 3, mlp_dim, how=Implementation(align_mlp=on)).double()) for on in (False, True))
    assert {k: v.shape for k, v in aligned.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    widths = []
    aligned.mlp.act.register_forward_hook(lambda act, inputs, output: widths.append(output.shape[-1]))
    got, want = aligned(x), plain(x)
    assert widths == [64]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    got.square().sum().backward()
    want.square().sum().backward()
    for (name, a), b in zip(aligned.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a Hopper GPU says")
def test_flash_attention_3_needs_its_gpu():
    with pytest.raises(ValueError, match=r'--compute.attention flash3: torch sees no Hopper GPU; take "flash" or "cudnn"'):
        activate_flash_attention_3()


@pytest.mark.parametrize("queries", [None, slice(1, 3)])
def test_stochastic_depth_keeps_branches_of_views(queries):
    block = randomise(Block(24, 3, 48, drop_path=0.2).double())
    x = torch.randn(4, 5, 24, dtype=torch.float64)
    keep = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    some = x if queries is None else x[:, queries]
    attention = block.attn(block.norm1(x), queries) / 0.8
    want = some + keep[:, :1, None] * attention
    want = want + keep[:, 1:, None] * block.mlp(block.norm2(want)) / 0.8
    torch.testing.assert_close(block(x, queries, keep), want, rtol=1e-6, atol=1e-6)
    assert torch.equal(block(x, queries, keep)[3], some[3])
    # rate 0 takes the same way and changes nothing
    never = randomise(Block(24, 3, 48))
    assert torch.equal(never(x.float(), queries, torch.ones(4, 2, dtype=torch.bool)), never(x.float(), queries))


def test_the_factor_of_stochastic_depth_is_not_rounded_to_bf16():
    block = randomise(Block(24, 3, 48, drop_path=0.1)).bfloat16()
    block.keep_scale = torch.tensor(1 / 0.9)  # as under FSDP2, which casts parameters only
    x = torch.randn(2, 5, 24).bfloat16()
    keep = torch.tensor([[True, False]] * 2)
    branch = block.attn(block.norm1(x)).float()
    assert torch.equal(block(x, keep=keep), x + (branch / 0.9).bfloat16())
    assert not torch.equal((branch / 0.9).bfloat16(), branch.bfloat16() * torch.tensor(1 / 0.9).bfloat16())


def test_impossible_rates_are_refused():
    with pytest.raises(ValueError, match=r"drop_path 1.0 must be at least 0 and less than 1"):
        Block(24, 3, 48, drop_path=1.0)


@pytest.mark.parametrize(("p", "s"), [(4, 2), (5, 1)])
def test_patch_embedding_equals_the_convolution(p, s):
    layer = randomise(PatchEmbed(6, p, s).double())
    clip = torch.randn(2, 3, 2 * s, 2 * p, 3 * p, dtype=torch.float64)  # (B, C, T, H, W)
    want = conv3d(clip, layer.proj.weight, layer.proj.bias, stride=(s, p, p)).flatten(2).transpose(1, 2)
    patches = clip.view(2, 3, 2, s, 2, p, 3, p).permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(2, 12, s * p * p * 3)
    torch.testing.assert_close(layer(patches), want, rtol=1e-12, atol=1e-12)


def test_position_table_is_an_interleaved_sinusoid_of_the_flat_index():
    table = PositionTable((8, 16, 16), 10)
    table.reset()
    assert table.table.dtype == torch.float32 and not table.state_dict()
    for n, j in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (7, 9), (2047, 4), (2047, 5)):
        angle = n / 10000 ** (2 * (j // 2) / 10)
        want = math.sin(angle) if j % 2 == 0 else math.cos(angle)
        assert table.table[n, j].item() == pytest.approx(want, abs=1e-7)
    idx = torch.tensor([[3, 2047], [0, 3]])
    assert torch.equal(table(idx, torch.bfloat16), table.table[idx].bfloat16())
    want = table.table.clone()
    assert torch.equal(table.half().table, want)  # rounded where it is added, not before it is interpolated


@pytest.mark.parametrize("grid", [(4, 5, 7), (2, 3, 4), (6, 2, 2), (2, 5, 4), (5, 3, 4), (1, 3, 4)])
def test_position_table_is_interpolated_bicubic_in_space_and_linear_in_time(grid):
    """Against weights of a matrix for each axis: the two-point tent, and Keys' kernel with a = -0.75."""
    built_for, dim = (2, 3, 4), 10
    table = PositionTable(grid, dim, built_for)
    table.reset()

    def tent(x):
        return np.maximum(1 - np.abs(x), 0)

    def keys(x, a=-0.75):
        x = np.abs(x)
        near, far = ((a + 2) * x - (a + 3)) * x * x + 1, a * (((x - 5) * x + 8) * x - 4)
        return np.where(x <= 1, near, np.where(x < 2, far, 0))

    def weights(old, new, kernel, clamp):
        matrix = np.zeros((new, old))
        for i in range(new):
            at = (i + 0.5) * old / new - 0.5
            at = max(at, 0) if clamp else at  # linear: no index below 0; bicubic: the border is repeated
            for j in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
                matrix[i, min(max(j, 0), old - 1)] += kernel(at - j)
        return matrix

    angle = np.arange(24)[:, None] / 10000.0 ** (2 * (np.arange(dim) // 2) / dim)
    old = np.where(np.arange(dim) % 2, np.cos(angle), np.sin(angle)).reshape(*built_for, dim)
    kinds = zip(built_for, grid, (tent, keys, keys), (True, False, False), strict=True)
    want = np.einsum("Tt,Hh,Ww,thwd->THWd", *(weights(*kind) for kind in kinds), old).reshape(-1, dim)
    torch.testing.assert_close(table.table, torch.from_numpy(want).float(), rtol=0, atol=2e-7)
    own = PositionTable(built_for, dim)
    own.reset()
    assert torch.equal(table.table, own.at(grid)) and own.at(grid) is own.at(grid)
    assert torch.equal(table.table, own.table) == (grid == built_for)


def test_other_tables_than_the_trained_one():
    """64 frames of 266 x 266, ViT-g pre-trained on 16 of 224 x 224. What the official code makes of it, which takes its new
    table for one of 8 x 38 x 38 tokens, has the similarity that was measured there; re-indexing is no nearer."""
    dim, grid = 1408, (32, 19, 19)
    trained, new = sinusoids(8 * 16 * 16, dim), sinusoids(32 * 19 * 19, dim)
    want = interpolated(trained, (8, 16, 16), grid)
    official = torch.cosine_similarity(interpolated(new, (8, 38, 38), grid), want, dim=1)
    assert [round(x.item(), 2) for x in (official.mean(), official.min(), official.max())] == [0.08, -0.08, 0.84]
    assert torch.cosine_similarity(new, want, dim=1).mean() == pytest.approx(0.069, abs=0.001)


def test_buffers_can_be_computed_anew():
    table, layer, block = PositionTable((2, 2, 2), 4), Attention(6, 2), Block(6, 2, 8, drop_path=0.5)
    module = torch.nn.ModuleList([table, layer, block])
    reset_buffers(module)
    want = table.table.clone()
    table.table.fill_(math.nan)
    layer.k_bias.fill_(math.nan)
    block.keep_scale.fill_(math.nan)
    reset_buffers(module)
    assert torch.equal(table.table, want) and not layer.k_bias.any() and block.keep_scale == 2
