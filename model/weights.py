"""Weights of others, and ours, under official names: what is in a file, of which network, and what another model may take of
it.

Known layouts, found out by their names: the official VideoMAE and VideoMAE V2 code's, of pre-training (`encoder.*`,
`decoder.*`), of a classifier (`blocks.*`, `fc_norm`, `head`) and of VideoMAE's detector for AVA (`blocks.*`, `norm`, `head`),
as well as V2's encoders on the Hugging Face hub; transformers' VideoMAE, all three of its models; timm's ViT; and
`model.safetensors` of a run, which says itself what it is. (A run's folder is read by `train/checkpoint`, and converted by
`train/convert.py`.)"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from model.action_detector import ActionDetector
from model.classifier import VideoClassifier
from model.config import MODELS, Implementation, ModelConfig
from model.layers import sinusoids
from model.layouts import Mapped, from_hf, from_timm, is_hf, is_timm, unwrapped, without_owner
from model.localizer_config import LocalizerConfig
from model.localizer_weights import is_localizer
from model.two_towers import PAIRED
from model.videomae import VideoMAE
from model.weight_files import WeightFile, read_weight_file

Kind = Literal["autoencoder", "classifier", "detector", "encoder"]
DETECT = "detect"  # the stage whose head is of boxes
RETRIEVE = "retrieve"  # the stage whose model has a text tower besides
AVA_CLASSES = 80
HEAD_DIM = 64  # of an attention head, where no named model is so wide
HF_FINAL_EPS = 1e-5  # of transformers' decoder.norm and fc_norm, whatever its configuration says
MODEL, LABELS, DESCENT = "model", "labels", "descends_from"  # keys of a safetensors file's metadata


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensors under official names, on the CPU, in the type that they have in the file."""

    place: str
    layout: str
    """Whose names the file has."""
    tensors: Mapping[str, Tensor]
    sizes: Mapping[str, Any]
    """Fields of a ModelConfig that are known."""
    left: Mapping[str, str] = field(default_factory=dict)
    """Names of what was not taken, and why."""
    differs: Sequence[str] = ()
    """Why a network of ours with these tensors would not compute what the file's does: it may begin with them, no more."""
    notes: Sequence[str] = ()
    """What was chosen, and what is taken to be so."""
    labels: Sequence[str] | None = None
    """Names of the classes."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Of a file of ours: step, stage, recipe, tubecell (the version), descends_from."""
    detects: bool = False
    """Its head is of boxes, not of views."""

    @property
    def kind(self) -> Kind:
        return "detector" if self.detects else kind_of(self.tensors)

    @property
    def has_texts(self) -> bool:
        """Whether it has a text tower besides."""
        return self.metadata.get("stage") == RETRIEVE

    @property
    def num_classes(self) -> int:
        """0 without a head."""
        return len(self.tensors["head.weight"]) if "head.weight" in self.tensors else 0

    @property
    def config(self) -> ModelConfig:
        """The sizes. Raises ValueError if the number of heads, which no tensor tells, is unknown."""
        for stack in ("encoder", "decoder"):
            if self.sizes.get(f"{stack}_heads", 1) is None:
                width = self.sizes[f"{stack}_dim"]
                flag = "--decoder-heads" if stack == "decoder" else "--heads"
                raise ValueError(f"{self.place}: nothing tells how many heads its {stack} has, {width} wide; give {flag}")
        return ModelConfig(**self.sizes)

    @property
    def name(self) -> str:
        """ "ViT-B", or how wide and deep it is."""
        known = ("encoder_dim", "encoder_depth", "patch_size")
        for name, config in MODELS.items():
            if all(getattr(config, size) == self.sizes[size] for size in known) and name not in ("micro", "tiny"):
                return f"ViT-{'g' if name == 'vit-g' else name[-1].upper()}"
        return f"{self.sizes['encoder_depth']} blocks of {self.sizes['encoder_dim']}, patch {self.sizes['patch_size']}"

    @property
    def what(self) -> str:
        """Encoder and what is beside it, or the number of classes."""
        alone = "encoder and text tower" if self.has_texts else "encoder alone"
        what = {"autoencoder": "encoder and decoder", "classifier": f"{self.num_classes} classes", "encoder": alone}
        return (what | {"detector": f"{self.num_classes} classes of boxes"})[self.kind]

    def encoder(self) -> dict[str, Tensor]:
        """Without the decoder, and without the prefix `encoder.`: patch_embed.*, blocks.*; norm.* after pre-training, fc_norm.*
        of a classifier, and its head.*, but not a detector's."""
        stack = ("encoder.", "decoder.", "encoder_to_decoder.", "mask_token", *PAIRED, *(["head."] if self.detects else []))
        if any(name.startswith("encoder.") for name in self.tensors):
            return {n.removeprefix("encoder."): t for n, t in self.tensors.items() if n.startswith("encoder.")}
        return {name: tensor for name, tensor in self.tensors.items() if not name.startswith(stack)}

    def check_same(self) -> None:
        """Raises ValueError if a network of ours would compute something else with them."""
        if self.differs:
            raise ValueError(
                f"{self.place} ({self.layout}) is another network: {'; '.join(self.differs)}. --init may begin with its tensors"
            )

    def build(self, how: Implementation | None = None) -> VideoMAE | VideoClassifier | ActionDetector:
        """The autoencoder, classifier or detector with these weights, float32, on the CPU, in evaluation mode. Raises
        ValueError for an encoder alone (see `load_encoder`), and for another network."""
        self.check_same()
        if self.kind == "encoder":
            raise ValueError(f"{self.place} has neither decoder nor head; it is an encoder: see load_encoder")
        with torch.device("meta"):
            model = _network(self.config, self.kind, self.tensors, how)
        model.to_empty(device="cpu")
        model.load_state_dict(self.tensors)
        model.reset_buffers()
        return model.eval()

    def __str__(self) -> str:
        """What it is, what was chosen, and what is left: a few lines."""
        types = "/".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in self.tensors.values()}))
        lines = [f"{self.place}: {self.name}, {self.what}; {self.layout}; {len(self.tensors)} tensors, {types}"]
        lines += [f"  {note}" for note in self.notes]
        lines += [f"  differs: {reason}" for reason in self.differs]
        return "\n".join(lines + listed("not taken", self.left))


def kind_of(tensors: Mapping[str, Tensor]) -> Kind:
    """By official names."""
    if "mask_token" in tensors:
        return "autoencoder"
    return "classifier" if "head.weight" in tensors else "encoder"


def of_detector(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    """Whether a head is of boxes, which no name tells: a probe's classifier has the same ones. A file of ours says its stage;
    of others it is taken to be so by AVA's number of classes."""
    if not {"head.weight", "norm.weight"} <= tensors.keys() or "fc_norm.weight" in tensors or pooler_depth_of(tensors):
        return False
    return metadata.get("stage") == DETECT if MODEL in metadata else len(tensors["head.weight"]) == AVA_CLASSES


def listed(title: str, why: Mapping[str, str]) -> list[str]:
    """{name: why} -> a line for each reason, with the names, or the first ones."""
    reasons: dict[str, list[str]] = {}
    for name, reason in why.items():
        reasons.setdefault(reason, []).append(name)
    lines = []
    for reason, names in reasons.items():
        more = f" and {len(names) - 3} others" if len(names) > 4 else ""
        lines.append(f"  {title}: {', '.join(names[: 3 if more else 4])}{more}: {reason}")
    return lines


def read_weights(
    place: str | Path,
    *,
    key: str | None = None,
    encoder_heads: int | None = None,
    decoder_heads: int | None = None,
    input_size: int | None = None,
    num_frames: int | None = None,
) -> Weights:
    """A file or folder of any known layout. `key` names a checkpoint's dictionary, such as model_ema; the others are what a
    file may not tell: attention heads, and the height and width in pixels and the frames of the views it was trained on,
    224 and 16 by default.

    Raises ValueError, in a line, for files that cannot be read or that hold objects (`read_weight_file`), for networks that are
    no video ViT, and for such whose tensors are not complete.
    """
    found = read_weight_file(place, key)
    return understand(
        found,
        {"encoder_heads": encoder_heads, "decoder_heads": decoder_heads, "input_size": input_size, "num_frames": num_frames},
    )


def understand(file: WeightFile, hints: Mapping[str, int | None] | None = None) -> Weights:
    """What `read_weights` does once a file is read."""
    place = file.place
    tensors, left = without_owner(unwrapped(file.tensors))
    if is_localizer(tensors):
        raise ValueError(f"{place} is a localizer's, no video ViT's: `localize --init` and `localize evaluate` take it")
    try:
        layout, mapped, told = _mapped(
            tensors, file, {name: value for name, value in (hints or {}).items() if value is not None}
        )
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    notes = list(file.notes)
    sizes = _sizes(mapped.tensors, told, place)
    detects = of_detector(mapped.tensors, file.metadata)
    if detects and DETECT not in file.metadata.values():
        notes.append(f"taken to be an action detector: its {AVA_CLASSES} classes are of tokens that have a norm each")
    if "input_size" not in told or "num_frames" not in told:
        said = f"{sizes['num_frames']} frames of {sizes['input_size']} x {sizes['input_size']} pixels"
        notes.append(f"taken to be trained on {said}, which the file does not tell")
    try:
        missing, unknown = _compared(mapped.tensors, sizes)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    if missing := [name for name in missing if not name.startswith(mapped.absent)]:
        more = f" and {len(missing) - 4} others" if len(missing) > 4 else ""
        raise ValueError(f"{place} ({layout}) lacks {', '.join(missing[:4])}{more}")
    for name in unknown:
        if name.startswith(PAIRED) and file.metadata.get("stage") == RETRIEVE:
            continue  # another run of that stage may begin with it, and it is evaluated
        mapped.left[name] = "has no place in the network"
        mapped.differs.append(f"it has {name} {tuple(mapped.tensors.pop(name).shape)}")
    for name, tensor in mapped.tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{place}: {name} has values that are not finite; take an earlier checkpoint")
    return Weights(
        place=place,
        layout=layout,
        tensors=mapped.tensors,
        sizes=sizes,
        left=left | mapped.left,
        differs=tuple(dict.fromkeys(mapped.differs)),
        notes=tuple(notes),
        labels=_labels(file, len(mapped.tensors.get("head.weight", ()))),
        metadata={name: value for name, value in file.metadata.items() if name not in (MODEL, LABELS, "format")},
        detects=detects,
    )


def _mapped(tensors: dict[str, Tensor], file: WeightFile, hints: Mapping[str, Any]) -> tuple[str, Mapped, Mapping[str, Any]]:
    """Layout, tensors under official names, and the sizes that something beside them, or the hints, tell."""
    config = file.config
    if is_hf(tensors):
        if config.get("model_type", "videomae") != "videomae":
            raise ValueError(f"its config.json is of {config['model_type']!r}, not of 'videomae'")
        if (act := config.get("hidden_act", "gelu")) != "gelu":
            raise ValueError(f"hidden_act {act!r} must be 'gelu'")
        mapped = from_hf(tensors, bool(config.get("qv_bias", config.get("qkv_bias", True))))
        named = {
            "input_size": config.get("image_size"),
            "num_frames": config.get("num_frames"),
            "encoder_heads": config.get("num_attention_heads"),
            "decoder_heads": config.get("decoder_num_attention_heads"),
            "layer_norm_eps": config.get("layer_norm_eps", 1e-12),
            "last_norm_eps": HF_FINAL_EPS,
        }
        return f"Hugging Face {(config.get('architectures') or ['VideoMAE'])[0]}", mapped, {**_known(named), **hints}
    told: dict[str, Any] = {}
    if ours := _own_sizes(file.metadata):
        told = ours
    elif isinstance(nested := config.get("model_config"), dict):  # V2's encoders on the hub
        told = _known({ours: nested.get(theirs) for ours, theirs in (("input_size", "img_size"), ("num_frames", "num_frames"))})
        told |= _known({"encoder_heads": nested.get("num_heads"), "layer_norm_eps": nested.get("layer_norm_eps")})
    elif file.arguments:
        told = _known({name: file.arguments.get(name) for name in ("input_size", "num_frames")})
    told |= hints
    if is_timm(tensors):
        kernel = tensors.get("patch_embed.proj.weight")
        if kernel is None:
            raise ValueError("it has no patch_embed.proj.weight")
        images = kernel.dim() == 4
        grid = _grid(told, 2 if images else kernel.shape[2], kernel.shape[-1])
        positions = sinusoids(grid, kernel.shape[0])
        return "timm ViT of images" if images else "timm ViT", from_timm(tensors, positions), told
    if not any(name.endswith("patch_embed.proj.weight") for name in tensors):
        raise ValueError(
            f"it has {', '.join(list(tensors)[:4])} ...: no VideoMAE (official, Hugging Face), no timm ViT, no tubecell weights"
        )
    mapped = Mapped()
    for name, tensor in tensors.items():
        if name.endswith("k_bias"):
            mapped.left[name] = "a key's bias has no effect: softmax cancels it"
        elif re.search(r"(^|\.)(pos_embed|cls_token|gamma_[12]|attn\.scale)$", name):
            mapped.left[name] = "has no place in the network"
            mapped.differs.append(f"it has {name}")
        else:
            mapped.tensors[name] = tensor
    layout = "official names"
    if ours:
        layout = "tubecell"
    elif config.get("model_config"):
        layout = "VideoMAE V2's encoder on the Hugging Face hub"
    return layout, mapped, told


def _own_sizes(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """What a file of ours says of its model; None for those of others, whose `model` may be anything."""
    try:
        values = json.loads(metadata.get(MODEL, ""))
    except ValueError:
        return None
    if not isinstance(values, dict) or "encoder_dim" not in values:
        return None
    if strange := sorted(values.keys() - {f.name for f in fields(ModelConfig)}):
        raise ValueError(f"its model has {', '.join(strange)}, which this tubecell does not know: update it")
    if wrong := [name for name, value in values.items() if not isinstance(value, int | float | None)]:
        raise ValueError(f"its model's {wrong[0]} is {values[wrong[0]]!r}, which is no number")
    return values


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        if isinstance(value, list | tuple):
            if not value or value.count(value[0]) < len(value):
                raise ValueError(f"{name} {value} must be one number: views are square")
            value = value[0]
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = int(value) if value == value // 1 else value
    return found


def _grid(told: Mapping[str, Any], tubelet_size: int, patch_size: int) -> int:
    return told.get("num_frames", 16) // tubelet_size * (told.get("input_size", 224) // patch_size) ** 2


def _sizes(tensors: Mapping[str, Tensor], told: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Fields of a ModelConfig; a number of heads that nothing tells is None."""
    trunk = "encoder." if any(name.startswith("encoder.") for name in tensors) else ""
    kernel = tensors.get(f"{trunk}patch_embed.proj.weight")
    if kernel is None or kernel.dim() != 5 or kernel.shape[1] != 3 or kernel.shape[3] != kernel.shape[4]:
        shape = None if kernel is None else tuple(kernel.shape)
        raise ValueError(f"{place}: patch_embed.proj.weight is {shape}, and must be (width, 3, frames, patch, patch)")
    dim, _, tubelet_size, patch_size, _ = kernel.shape
    depth, mlp_dim = _stack(tensors, f"{trunk}blocks", place)
    sizes: dict[str, Any] = {
        "input_size": 224 // patch_size * patch_size,
        "num_frames": 16,
        "patch_size": patch_size,
        "tubelet_size": tubelet_size,
        "encoder_dim": dim,
        "encoder_depth": depth,
        "encoder_heads": _heads("encoder", dim),
        "mlp_ratio": ratio_of(dim, mlp_dim),
    }
    if "mask_token" in tensors:
        width = tensors["mask_token"].shape[-1]
        depth, mlp_dim = _stack(tensors, "decoder.blocks", place)
        sizes |= {"decoder_dim": width, "decoder_depth": depth, "decoder_heads": _heads("decoder", width)}
        if int(width * sizes["mlp_ratio"]) != mlp_dim:
            sizes["decoder_mlp_ratio"] = ratio_of(width, mlp_dim)
    else:  # which the encoder's model would have
        like = next((config for config in MODELS.values() if config.encoder_dim == dim), ModelConfig())
        decoder = ("decoder_dim", "decoder_depth", "decoder_heads")
        sizes |= {name: getattr(like, name) for name in decoder}
        told = {name: value for name, value in told.items() if name not in decoder}  # of what is not there
    of_tensors = {name: sizes[name] for name in ("patch_size", "tubelet_size", "encoder_dim", "encoder_depth")}
    for name, value in of_tensors.items():
        if told.get(name, value) != value:
            raise ValueError(f"{place}: its {name} is {value} by its tensors, and {told[name]} by what is said of it")
    return sizes | {name: value for name, value in told.items() if name not in of_tensors}


def _heads(stack: str, width: int) -> int | None:
    """That of the named model whose encoder or decoder is so wide, or the usual number."""
    for config in MODELS.values():
        if getattr(config, f"{stack}_dim") == width:
            return int(getattr(config, f"{stack}_heads"))
    return width // HEAD_DIM if width % HEAD_DIM == 0 else None


def _stack(tensors: Mapping[str, Tensor], blocks: str, place: str) -> tuple[int, int]:
    """Number of blocks, and the hidden width of their MLPs."""
    numbers = {int(m[1]) for name in tensors if (m := re.match(rf"{re.escape(blocks)}\.(\d+)\.", name))}
    if not numbers or numbers != set(range(len(numbers))):
        lost = sorted(set(range(max(numbers, default=0))) - numbers)
        raise ValueError(f"{place} {f'lacks {blocks}.{lost[0]}, of {max(numbers) + 1}' if lost else f'has no {blocks}'}")
    if (hidden := tensors.get(f"{blocks}.0.mlp.fc1.weight")) is None:
        raise ValueError(f"{place} lacks {blocks}.0.mlp.fc1.weight")
    return len(numbers), len(hidden)


def ratio_of(width: int, mlp_dim: int) -> float:
    """The ratio r of which int(width * r) is `mlp_dim`."""
    ratio = mlp_dim / width
    return ratio if int(width * ratio) == mlp_dim else (mlp_dim + 0.5) / width


def _network(config: ModelConfig, kind: Kind, tensors: Mapping[str, Tensor], how: Implementation | None = None) -> Any:
    if kind == "autoencoder":
        return VideoMAE(config, how or Implementation(), len(tensors["decoder.head.weight"]))
    if kind == "detector":
        return ActionDetector(config, len(tensors["head.weight"]), how=how or Implementation())
    norm = "head.weight" in tensors and "norm.weight" in tensors  # of every token: a probe's
    num_classes = len(tensors["head.weight"]) if "head.weight" in tensors else 1
    depth = pooler_depth_of(tensors)
    fc_norm = not (norm or depth) or "fc_norm.weight" in tensors
    return VideoClassifier(config, num_classes, norm=norm, fc_norm=fc_norm, pooler_depth=depth)


def pooler_depth_of(tensors: Mapping[str, Tensor]) -> int:
    """Of an attentive probe's, by the names; 0 without one."""
    blocks = {name.split(".")[2] for name in tensors if name.startswith("pooler.blocks.")}
    return 1 + len(blocks) if "pooler.query_tokens" in tensors else 0


def _compared(tensors: Mapping[str, Tensor], sizes: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Names that the network needs and that are missing, and names that it does not have. Another shape is a missing tensor."""
    kind = kind_of(tensors)
    bare = kind != "autoencoder" and not any(name.startswith("encoder.") for name in tensors)
    optional: tuple[str, ...] = ()
    config = ModelConfig(**dict(sizes) | {"encoder_heads": 1, "decoder_heads": 1})  # heads are in no shape
    with torch.device("meta"):
        if kind == "autoencoder" and "decoder.head.weight" not in tensors:
            return ["decoder.head.weight"], []
        network = _network(config, kind, tensors) if kind == "autoencoder" or bare else VideoMAE(config)
    want = {name: parameter.shape for name, parameter in network.named_parameters()}
    if kind == "encoder":
        want = {n: s for n, s in want.items() if not n.startswith(("decoder", "encoder_to", "mask", "head."))}
        want |= {f"norm.{leaf}": torch.Size([config.encoder_dim]) for leaf in ("weight", "bias")} if bare else {}
        optional = ("norm.", "fc_norm.", "encoder.norm.")
    missing = [name for name in want if name not in tensors and not (optional and name.startswith(optional))]
    for name, shape in want.items():
        if name in tensors and (its := tensors[name].shape) != shape:
            missing.append(f"{name} of shape {tuple(shape)} (it has {tuple(its)})")
    return missing, [name for name in tensors if name not in want]


def _labels(file: WeightFile, num_classes: int) -> list[str] | None:
    if not num_classes:
        return None
    if LABELS in file.metadata and _own_sizes(file.metadata):
        names = json.loads(file.metadata[LABELS])
        return list(names) if len(names) == num_classes else None
    named = file.config.get("id2label")
    if isinstance(named, dict) and len(named) == num_classes:
        names = [str(named.get(str(number), f"LABEL_{number}")) for number in range(num_classes)]
        return names if any(name != f"LABEL_{number}" for number, name in enumerate(names)) else None
    return None


def metadata_of(
    config: ModelConfig | LocalizerConfig, labels: Sequence[str] | None = None, /, **facts: str | int | None
) -> dict[str, str]:
    """What is written into a safetensors file of ours, so that `read_weights` need not guess."""
    said = {name: str(value) for name, value in facts.items() if value is not None}
    known = {MODEL: json.dumps(asdict(config))} | ({LABELS: json.dumps(list(labels))} if labels else {})
    return {"format": "pt"} | known | said


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a model takes of weights."""

    taken: Mapping[str, Tensor]
    """By the model's names."""
    fresh: Sequence[str]
    """Names of the model's parameters that keep their initial values."""
    unused: Mapping[str, str]
    """Official names of tensors that found no place, and why."""
    weights: Weights
    """That they are of."""
    notes: Sequence[str] = ()
    """What else was chosen."""

    def lines(self) -> list[str]:
        """For people."""
        said = [f"  {len(self.taken)} tensors taken"] if self.taken else []
        said += [f"  {note}" for note in self.notes]
        said += listed("initial values", dict.fromkeys(self.fresh, "the weights have none that fit"))
        return said + listed("not taken", self.unused)

    def without(self, prefix: str, why: str) -> "Transfer":
        """The same, but what is called so begins anew."""
        left = [name for name in self.taken if name.startswith(prefix)]
        taken = {name: tensor for name, tensor in self.taken.items() if name not in left}
        return replace(self, taken=taken, fresh=[*self.fresh, *left], unused={**self.unused, **dict.fromkeys(left, why)})


def transfer(weights: Weights, shapes: Mapping[str, torch.Size], classes: Sequence[int] | None = None) -> Transfer:
    """What a model, whose parameters have these names and shapes, begins with. `classes`: of each class of the model, the place
    of its row in the weights' head (official: of K710's 710, those of Kinetics-400, -600 or -700).

    Official behaviour: an encoder goes into a classifier without its last norm, and fc_norm and head begin anew; a head of
    other classes does. So does a decoder of other sizes, as a whole, mask token and projection included. Raises ValueError for
    an encoder of other sizes."""
    place, source = weights.place, dict(weights.tensors)
    to_bare = not any(name.startswith("encoder.") for name in shapes)
    names = {name: name.removeprefix("encoder.") if to_bare else name for name in source}
    if not to_bare and not any(name.startswith("encoder.") for name in source):
        names = {n: f"encoder.{n}" if n.startswith(("patch_embed.", "blocks.", "norm.")) else n for n in source}
    if classes is not None and "head.weight" in source:
        most = len(source["head.weight"])
        if bad := [number for number in classes if not 0 <= number < most]:
            raise ValueError(f"{place} has a head of {most} classes; there is no class {bad[0]}")
        index = torch.tensor(list(classes))
        source |= {name: source[name][index] for name in ("head.weight", "head.bias")}
    taken: dict[str, Tensor] = {}
    unused: dict[str, str] = {}
    wrong: dict[str, str] = {}
    for name, tensor in source.items():
        ours = names[name]
        if ours not in shapes:
            unused[name] = "the model has none"
        elif tensor.shape == shapes[ours]:
            taken[ours] = tensor
        elif ours.startswith("head."):
            unused[name] = f"it has {len(tensor)} classes, the model {shapes[ours][0]}"
        else:
            wrong[name] = f"it is {tuple(tensor.shape)}, the model's {tuple(shapes[ours])}"
    decoder = ("decoder.", "encoder_to_decoder.", "mask_token")
    theirs = _blocks([names[name] for name in source], decoder)
    ours_too = _blocks(shapes, decoder)
    if ours_too and (_blocks(wrong, decoder) or theirs != ours_too):
        other = next((wrong[name] for name in wrong if name in _blocks(wrong, decoder)), "it has another number of blocks")
        for name in [name for name in source if names[name].startswith(decoder)]:
            taken.pop(names[name], None)
            wrong.pop(name, None)
            unused[name] = f"the decoder is another: {other}"
    encoder = re.compile(r"(encoder\.)?(patch_embed|blocks)\.")
    missing = [name for name in shapes if encoder.match(name) and name not in taken]
    surplus = [name for name in unused if encoder.match(name)]
    if missing or surplus:
        name = next((theirs for theirs, ours in names.items() if missing and ours == missing[0]), (missing or surplus)[0])
        why = wrong.get(name, "it has none" if missing else "the model has none")
        raise ValueError(f"{place} does not fit the model: {name}: {why}; it is {weights.name}: train a model of that size")
    return Transfer(taken, [name for name in shapes if name not in taken], unused | wrong, weights)


def _blocks(names: Iterable[str], decoder: tuple[str, ...]) -> set[str]:
    """Of a decoder all names but its head's."""
    return {name for name in names if name.startswith(decoder) and not name.startswith("decoder.head.")}


def with_views(weights: Weights, input_size: int, num_frames: int) -> Weights:
    """The same, for other views: of the grid that they have, positions are re-indexed."""
    return replace(weights, sizes=dict(weights.sizes) | {"input_size": input_size, "num_frames": num_frames})
