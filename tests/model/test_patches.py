import numpy as np
import pytest
import torch
from einops import rearrange

from model.pixels import gather_patches, normalise, patches_and_targets, pixel_targets

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])


def random_views(B, T, H, W, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (B, T, H, W, 3), dtype=np.uint8))


def every_patch(views, p, s):
    return rearrange(views, "b (t s) (h p) (w q) c -> b (t h w) (s p q c)", s=s, p=p, q=p)


def random_tokens(B, num_tokens, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(num_tokens, generator=generator)[:n] for _ in range(B)])


@pytest.mark.parametrize(
    ("T", "H", "W", "p", "s"), [(16, 64, 64, 16, 2), (8, 56, 84, 14, 2), (4, 24, 16, 8, 2), (6, 9, 15, 3, 3), (3, 5, 10, 5, 1)]
)
def test_gather_takes_the_rearranged_patches(T, H, W, p, s):
    views = random_views(3, T, H, W)
    want = every_patch(views, p, s)
    idx = random_tokens(3, want.shape[1], max(1, want.shape[1] // 2))
    got = gather_patches(views, idx, p, s)
    assert got.dtype == torch.uint8
    assert torch.equal(got, want.gather(1, idx[..., None].expand(-1, -1, want.shape[-1])))


def test_gather_reads_views_that_begin_inside_a_buffer():
    buffer = random_views(4, 4, 28, 28)
    idx = random_tokens(2, 8, 5)
    assert torch.equal(gather_patches(buffer[1:3], idx, 14, 2), gather_patches(buffer[1:3].clone(), idx, 14, 2))


def test_gather_refuses_views_that_the_patches_do_not_tile():
    with pytest.raises(AssertionError):
        gather_patches(random_views(1, 4, 30, 28), torch.zeros(1, 1, dtype=torch.int64), 14, 2)


def test_normalise_equals_the_loader_bit_for_bit():
    """All 256 values of all channels, against float32 arithmetic in NumPy in the official order."""
    u8 = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    want = (u8.astype(np.float32) / np.float32(255) - MEAN.astype(np.float32)) / STD.astype(np.float32)
    got = normalise(torch.from_numpy(u8).flatten()[None])[0].view(256, 3).numpy()
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, want)


def slow_targets(patch_u8):
    """One patch (pixels, 3) uint8 -> (pixels, 3), channel by channel in float64 from the float32 clip."""
    x = (patch_u8.astype(np.float32) / np.float32(255) - MEAN.astype(np.float32)) / STD.astype(np.float32)
    x = x.astype(np.float64) * STD.astype(np.float32) + MEAN.astype(np.float32)
    out = np.empty_like(x)
    for c in range(3):
        out[:, c] = (x[:, c] - x[:, c].mean()) / (x[:, c].std(ddof=1) + 1e-6)
    return out


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_targets_are_normalised_per_token_and_channel(dtype, tolerance):
    views = random_views(2, 4, 28, 28, seed=3)
    idx = random_tokens(2, 8, 8)
    got = pixel_targets(gather_patches(views, idx, 14, 2), dtype)
    assert got.dtype == dtype
    patches = every_patch(views, 14, 2)
    for b in range(2):
        for i in range(8):
            want = slow_targets(patches[b, idx[b, i]].view(-1, 3).numpy())
            np.testing.assert_allclose(got[b, i].view(-1, 3).numpy(), want, rtol=0, atol=tolerance)


def test_targets_of_low_contrast_patches_keep_the_official_rounding():
    """Four neighbouring grey levels: their float32 values are not evenly spaced, and the targets show it."""
    patch = np.random.default_rng(0).integers(90, 94, (512, 3), dtype=np.uint8)
    got = pixel_targets(torch.from_numpy(patch).flatten()[None], torch.float64)[0].view(-1, 3).numpy()
    np.testing.assert_allclose(got, slow_targets(patch), rtol=0, atol=1e-12)
    x = patch / 255.0
    plain = (x - x.mean(0)) / (x.std(0, ddof=1) + 1e-6)
    assert np.abs(got - plain).max() > 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_targets_of_flat_patches_are_finite_and_near_zero(dtype, level):
    got = pixel_targets(torch.full((1, 1536), level, dtype=torch.uint8), dtype)
    assert got.isfinite().all()
    assert got.abs().max() < 0.1  # rounding noise over epsilon


@pytest.mark.parametrize(
    ("dtype", "target_dtype"), [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)]
)
def test_patches_and_targets_in_one_go(dtype, target_dtype):
    views = random_views(2, 4, 32, 32)
    visible, loss = random_tokens(2, 8, 3, seed=1), random_tokens(2, 8, 4, seed=2)
    patches, targets = patches_and_targets(views, visible, loss, 16, 2, dtype)
    assert patches.dtype == dtype and targets.dtype == target_dtype
    assert torch.equal(patches, normalise(gather_patches(views, visible, 16, 2)).to(dtype))
    assert torch.equal(targets, pixel_targets(gather_patches(views, loss, 16, 2), target_dtype))
