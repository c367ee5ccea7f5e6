"""Attentive probes: in products over all of them each is what its formula says, and has the gradients that it has alone."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

from model.attentive_heads import AttentiveHeads

B, N, D, H, CLASSES, PROBES = 3, 7, 16, 4, 5, 3


def written_out(of: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """One probe, as papers draw it: every token becomes a key and a value."""

    def layer(name: str, x: Tensor) -> Tensor:
        return linear(x, of[f"{name}.weight"], of[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return layer_norm(x, (D,), of[f"{name}.weight"], of[f"{name}.bias"], eps=1e-5)

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(2, (H, -1)).transpose(1, 2)

    def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(heads(q), heads(k), heads(v)).transpose(1, 2).flatten(2)

    def mlp(block: str, x: Tensor) -> Tensor:
        return layer(f"{block}.mlp.fc2", gelu(layer(f"{block}.mlp.fc1", norm(f"{block}.norm2", x))))

    for number in range(sum(name.endswith("attn.proj.weight") for name in of)):
        block = f"pooler.blocks.{number}"
        qkv = layer(f"{block}.attn.qkv", norm(f"{block}.norm1", x)).chunk(3, 2)
        x = x + layer(f"{block}.attn.proj", attended(*qkv))
        x = x + mlp(block, x)
    block, query = "pooler.cross_attention_block", of["pooler.query_tokens"].expand(len(x), -1, -1)
    keys_and_values = layer(f"{block}.xattn.kv", norm(f"{block}.norm1", x)).chunk(2, 2)
    query = query + attended(layer(f"{block}.xattn.q", query), *keys_and_values)
    return layer("head", (query + mlp(block, query))[:, 0])


@pytest.mark.parametrize("depth", [1, 3])
def test_each_is_what_it_is_alone_and_written_out(depth: int) -> None:
    model = AttentiveHeads(D, H, depth, CLASSES, PROBES).double()
    for number, parameter in enumerate(model.parameters()):
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(number))
    x = torch.randn(B, N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(99)) * 3 + 1
    logits = model(x)
    assert logits.shape == (B, PROBES * CLASSES)
    logits.square().sum().backward()
    for number, logits_BC in enumerate(logits.split(CLASSES, 1)):
        own = {name: parameter.detach().requires_grad_() for name, parameter in model.heads[number].named_parameters()}
        alone = AttentiveHeads(D, H, depth, CLASSES, 1).double()
        alone.heads[0].load_state_dict(own)
        for wanted, found in ((written_out(own, x), own), (alone(x), dict(alone.heads[0].named_parameters()))):
            torch.testing.assert_close(logits_BC, wanted, rtol=1e-9, atol=1e-9)
            wanted.square().sum().backward()
            for name, parameter in model.heads[number].named_parameters():
                torch.testing.assert_close(parameter.grad, found[name].grad, rtol=1e-8, atol=1e-8, msg=name)
                assert parameter.grad.abs().max() > 1e-3, name


@pytest.mark.parametrize(("depth", "last"), [(1, 1), (4, 3)])
def test_initial_values_are_the_same_for_every_probe(depth: int, last: int) -> None:
    """As of V-JEPA 2's evaluation."""
    model = AttentiveHeads(64, 4, depth, 10, 2)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found = {name: model.initial_value(name, shape, 7) for name, shape in shapes.items()}
    for name, value in found.items():
        assert torch.equal(value, found[name.replace("heads.1.", "heads.0.")])
        if name.endswith("bias") and ".head." not in name:
            assert not value.any(), name
        elif "norm" in name:
            assert (value == 1).all(), name
    pooler = "heads.0.pooler"
    deviations = {f"{pooler}.cross_attention_block.mlp.fc2.weight": last, f"{pooler}.cross_attention_block.xattn.q.weight": 0.5}
    if depth > 1:
        deviations |= {f"{pooler}.blocks.1.attn.proj.weight": 2, f"{pooler}.blocks.0.mlp.fc2.weight": 1}
    for name, number in deviations.items():
        assert found[name].std() == pytest.approx(0.02 / math.sqrt(2 * number), rel=0.05), name
    assert found["heads.0.head.weight"].std() == pytest.approx(1 / math.sqrt(64 * 3), rel=0.1)
    assert found["heads.0.head.bias"].abs().max() <= 1 / 8
