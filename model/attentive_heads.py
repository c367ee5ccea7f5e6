"""Attentive probes: each has a query that looks at a frozen encoder's tokens, and a classifier of what it finds. Several at
once, and one of them as the head of a classifier. Parameters have the names of V-JEPA 2's evaluation.

B views, N tokens, D width, H heads of attention and d = D / H, G probes, K copies of the tokens: 1 while they are the same for
all probes, else G; n = B N; E outputs of a linear layer, C classes.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from model.initialization import initial_value, parameter_seed
from model.layers import product
from model.trainable import Trainable

EPS, MLP_RATIO = 1e-5, 4  # of every norm and MLP there
Parameters = Mapping[str, Tensor]  # of G probes: (G, ...) each, by a single one's names


class AttentivePooler(nn.Module):
    """Tokens (B, N, D) -> (B, D). Depth 1 is a block whose query is learned: cross-attention without an output projection, and
    an MLP. Depth P has P - 1 blocks of self-attention over the tokens before it."""

    def __init__(self, dim: int, num_heads: int, depth: int = 1) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_tokens = nn.Parameter(torch.zeros(1, 1, dim))
        self.cross_attention_block = _block(dim, xattn={"q": dim, "kv": 2 * dim})
        self.blocks = nn.ModuleList(_block(dim, attn={"qkv": 3 * dim, "proj": dim}) for _ in range(depth - 1))

    def forward(self, x_BND: Tensor) -> Tensor:
        return pooled(stacked([self]), x_BND, self.num_heads).squeeze(0)


class AttentiveHeads(Trainable):
    """Tokens -> logits of every probe, in products over all of them. `heads.I.pooler.*` and `heads.I.head.*` are parameters of
    their own, so that each probe may have an optimizer's group of its own."""

    def __init__(self, dim: int, num_heads: int, depth: int, num_classes: int, num_probes: int) -> None:
        super().__init__()
        self.num_heads, self.depth = num_heads, depth
        self.heads = nn.ModuleList(
            nn.ModuleDict({"pooler": AttentivePooler(dim, num_heads, depth), "head": nn.Linear(dim, num_classes)})
            for _ in range(num_probes)
        )

    def parts(self) -> dict[str, nn.Module]:
        """Blocks over all tokens cost as much as the encoder's, and are in its type."""
        return {"heads" if self.depth == 1 else "encoder": self}

    def initial_value(self, name: str, shape: tuple[int, ...], seed: int) -> Tensor:
        """The same for every probe: what it becomes does not depend on the others. As there: truncated normal with deviation
        0.02, what leaves a branch of block i divided by the root of 2 i; the classifier PyTorch's default, U(±1/sqrt(D))."""
        name = name.split(".", 2)[2]
        if name.startswith("head."):
            bound = 1 / math.sqrt(self.heads[0].get_parameter("head.weight").shape[1])
            generator = torch.Generator().manual_seed(parameter_seed(name, seed))
            return torch.empty(shape).uniform_(-bound, bound, generator=generator)
        value = initial_value(name, shape, seed)
        if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
            number = int(name.split(".")[2]) + 1 if ".blocks." in name else max(self.depth - 1, 1)
            value /= math.sqrt(2 * number)
        return value

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) -> (B, G C), probe by probe."""
        probes = stacked(self.heads)
        x_GBD = pooled({name.removeprefix("pooler."): value for name, value in probes.items()}, x_BND, self.num_heads)
        return torch.cat(_linear(x_GBD, probes, "head").unbind(), 1)


def stacked(modules: Sequence[nn.Module] | nn.ModuleList) -> dict[str, Tensor]:
    """Their parameters, which have the same names and shapes."""
    names = [name for name, _ in modules[0].named_parameters()]
    return {name: torch.stack([module.get_parameter(name) for module in modules]) for name in names}


def pooled(of: Parameters, x_BND: Tensor, num_heads: int) -> Tensor:
    """What G poolers make of the same tokens -> (G, B, D)."""
    B, depth = len(x_BND), len({name.split(".")[1] for name in of if name.startswith("blocks.")})
    x_KnD = x_BND.flatten(0, 1)[None]
    for number in range(depth):
        x_KnD = _self_attention(x_KnD, of, f"blocks.{number}.", B, num_heads)
    return _cross_attention(x_KnD, of, "cross_attention_block.", B, num_heads)


def _self_attention(x_KnD: Tensor, of: Parameters, block: str, num_views: int, num_heads: int) -> Tensor:
    qkv_GnE = _normed_linear(x_KnD, of, f"{block}norm1", f"{block}attn.qkv")
    q, k, v = rearrange(qkv_GnE, "g (b n) (t h d) -> t (g b) h n d", b=num_views, t=3, h=num_heads)
    y_GnD = rearrange(product(q, k, v), "(g b) h n d -> g (b n) (h d)", b=num_views)
    return _with_mlp(x_KnD + _linear(y_GnD, of, f"{block}attn.proj"), of, block)


def _cross_attention(x_KnD: Tensor, of: Parameters, block: str, num_views: int, num_heads: int) -> Tensor:
    """One query looks at N tokens, so neither keys nor values are made of them: q · (W x) = (Wᵀ q) · x, and the mean of W x is
    W times the mean of x. That is 2 H D products a token instead of 2 D² and 2 D: of 20 probes on ViT-B's 1568 tokens 0.7 GMAC
    a view instead of 37. Biases of keys have no effect: softmax cancels them.
    """
    query_GD, xattn = of["query_tokens"].flatten(1), f"{block}xattn."
    q_GHd = _linear(query_GD[:, None], of, f"{xattn}q").unflatten(2, (num_heads, -1)).squeeze(1)
    key_GHdD, value_GHdD = of[f"{xattn}kv.weight"].unflatten(1, (2, num_heads, -1)).unbind(1)
    scale_G1D, shift_GD = of[f"{block}norm1.weight"][:, None], of[f"{block}norm1.bias"]
    looked_for_GHD = torch.einsum("ghi,ghij->ghj", q_GHd, key_GHdD) * scale_G1D / math.sqrt(q_GHd.shape[2])

    x_KnD = _normal(x_KnD)
    scores_Kne = x_KnD @ looked_for_GHD.view(len(x_KnD), -1, x_KnD.shape[2]).mT
    scores_KBNe = rearrange(scores_Kne, "k (b n) e -> (k b) n e", b=num_views)
    weights_KBNe = scores_KBNe.softmax(1, dtype=torch.promote_types(scores_Kne.dtype, torch.float32)).to(x_KnD.dtype)
    mean_KBeD = weights_KBNe.mT @ rearrange(x_KnD, "k (b n) d -> (k b) n d", b=num_views)
    mean_GHBD = rearrange(mean_KBeD, "(k b) (g h) d -> (k g) h b d", b=num_views, h=num_heads)

    bias_GHd = of[f"{xattn}kv.bias"].unflatten(1, (2, num_heads, -1))[:, 1] + torch.einsum("ghij,gj->ghi", value_GHdD, shift_GD)
    y_GHBd = mean_GHBD @ (value_GHdD * scale_G1D[:, None]).mT + bias_GHd[:, :, None]
    return _with_mlp(query_GD[:, None] + rearrange(y_GHBd, "g h b d -> g b (h d)"), of, block)


def _with_mlp(x_GnD: Tensor, of: Parameters, block: str) -> Tensor:
    hidden_GnE = gelu(_normed_linear(x_GnD, of, f"{block}norm2", f"{block}mlp.fc1"))
    return x_GnD + _linear(hidden_GnE, of, f"{block}mlp.fc2")


def _normed_linear(x_KnD: Tensor, of: Parameters, norm: str, layer: str) -> Tensor:
    """A linear layer of what a norm leaves. Its weight and bias go into the layer's: so tokens that are the same for all probes
    are normalised once, and have no gradient."""
    weight_GED, bias_GE = of[f"{layer}.weight"], of[f"{layer}.bias"]
    bias_GE = bias_GE + torch.einsum("gij,gj->gi", weight_GED, of[f"{norm}.bias"])
    return _product(_normal(x_KnD), weight_GED * of[f"{norm}.weight"][:, None], bias_GE)


def _linear(x_GnD: Tensor, of: Parameters, layer: str) -> Tensor:
    return _product(x_GnD, of[f"{layer}.weight"], of[f"{layer}.bias"])


def _product(x_KnD: Tensor, weight_GED: Tensor, bias_GE: Tensor) -> Tensor:
    return torch.baddbmm(bias_GE[:, None], x_KnD.expand(len(weight_GED), -1, -1), weight_GED.mT)


def _normal(x: Tensor) -> Tensor:
    """A norm without weight and bias."""
    return layer_norm(x, x.shape[-1:], eps=EPS)


def _block(dim: int, **attention: Mapping[str, int]) -> nn.ModuleDict:
    """What holds a block's parameters; never called. `attention`: a name, and the outputs of its linear layers."""
    ((name, layers),) = attention.items()
    hidden = MLP_RATIO * dim
    return nn.ModuleDict(
        {
            "norm1": nn.LayerNorm(dim, EPS),
            name: nn.ModuleDict({layer: nn.Linear(dim, size) for layer, size in layers.items()}),
            "norm2": nn.LayerNorm(dim, EPS),
            "mlp": nn.ModuleDict({"fc1": nn.Linear(dim, hidden), "fc2": nn.Linear(hidden, dim)}),
        }
    )
