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
    return gmac(config, config.num_tokens, num_visible, num_decoded, num_visible + num_decoded, num_decoded)


def executed_gmac(config: ModelConfig, num_visible: int, num_decoded: int, num_loss: int) -> float:
    """Forward of one view in GMAC as run here: only visible patches are embedded, and from the last decoder block's queries on
    only the tokens of the loss computed. ViT-g with 920 of them 237.32, ViT-B with 704 23.64. For MFU."""
    return gmac(config, num_visible, num_visible, num_decoded, num_loss, num_loss)


def gmac(
    config: ModelConfig, num_embedded: int, num_visible: int, num_decoded: int, num_queries: int, num_predicted: int
) -> float:
    """Patch embedding, encoder, projection to the decoder's width, decoder and head, in GMAC.

    The last decoder block has `num_queries`, the head `num_predicted` tokens.
    """
    embed = num_embedded * config.patch_values * config.encoder_dim
    encoder = config.encoder_depth * block_mac(num_visible, config.encoder_dim, config.encoder_mlp_dim)
    projection = num_visible * config.encoder_dim * config.decoder_dim
    num_tokens, dim, mlp_dim = num_visible + num_decoded, config.decoder_dim, config.decoder_mlp_dim
    decoder = (config.decoder_depth - 1) * block_mac(num_tokens, dim, mlp_dim)
    decoder += block_mac(num_tokens, dim, mlp_dim, num_queries)
    head = num_predicted * dim * config.patch_values
    return (embed + encoder + projection + decoder + head) / 1e9


def block_mac(num_tokens: int, dim: int, mlp_dim: int, num_queries: int | None = None) -> int:
    """qkv (3 D² a token) of all tokens; of the queries, by default all: attention's two products over all tokens, proj (D²),
    and MLP."""
    num_queries = num_tokens if num_queries is None else num_queries
    return 3 * num_tokens * dim * dim + num_queries * (2 * num_tokens * dim + dim * dim + 2 * dim * mlp_dim)
