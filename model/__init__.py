"""uint8 batches -> loss, features, logits: the dual-masked video autoencoder. Begin with videomae.py."""
