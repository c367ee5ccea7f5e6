"""Multiply-accumulates of a forward pass, in closed form.

Counted are the products: linear layers and the two of attention; as in the paper, and as `torch.utils.flop_counter`, which
gives twice as many operations. Norms, softmax, GELU, targets and loss are left out. A training step takes three times the
forward: its own and two for the gradients.
"""

from model.config import ModelConfig


def paper_gmac(config: ModelConfig, num_visible: int, num_decoded: int) -> float:
    """Forward of one view in GMAC as the official code runs it, which embeds all N tokens and then drops most.

    ViT-g with 208 visible and 1024 decoded tokens: 241.61, the paper's Table 2; ViT-B with 160 and 784: 25.84 (paper: 25.87).
    With 1840 and 1408 decoded tokens, encoder-only masking: 263.96 and 35.44 (paper: 263.93 and 35.48).
    """
    return gmac(config, config.num_tokens, num_visible, num_decoded)


def executed_gmac(config: ModelConfig, num_visible: int, num_decoded: int) -> float:
    """Forward of one view in GMAC as run here, only visible patches embedded: ViT-g 238.57, ViT-B 24.18. For MFU."""
    return gmac(config, num_visible, num_visible, num_decoded)


def gmac(config: ModelConfig, num_embedded: int, num_visible: int, num_decoded: int) -> float:
    """Patch embedding, encoder, projection to the decoder's width, decoder and head, in GMAC."""
    embed = num_embedded * config.patch_values * config.encoder_dim
    encoder = config.encoder_depth * block_mac(num_visible, config.encoder_dim, config.encoder_mlp_dim)
    projection = num_visible * config.encoder_dim * config.decoder_dim
    decoder = config.decoder_depth * block_mac(num_visible + num_decoded, config.decoder_dim, config.decoder_mlp_dim)
    head = num_decoded * config.decoder_dim * config.patch_values
    return (embed + encoder + projection + decoder + head) / 1e9


def block_mac(num_tokens: int, dim: int, mlp_dim: int) -> int:
    """qkv and proj (4 D² a token), MLP, and attention's two products over all pairs."""
    return num_tokens * (4 * dim * dim + 2 * dim * mlp_dim) + 2 * num_tokens * num_tokens * dim
