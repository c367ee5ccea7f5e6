"""uint8 batches -> loss, features, logits: the dual-masked video autoencoder. Begin with videomae.py."""


def __getattr__(name: str) -> object:
    """`load_encoder`, when somebody asks for it: importing a part of the model does not import all of it."""
    if name != "load_encoder":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from model.video_encoder import load_encoder

    return load_encoder
