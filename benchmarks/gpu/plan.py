"""What `gpu_suite.py` measures, in the order in which it is wanted: two sets of parts, one for a slot on a card each."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """A function, called with a `Bench` and the words."""

    name: str
    title: str
    seconds: float  # at full size, about; with much less left it is not begun
    function: str  # module.function; a module's plain name is one beside this one
    words: tuple[str, ...] = ()
    process: int = 0  # parts in a row of the same number share one, until one of them takes it down

    def patience(self, dry: bool) -> float:
        """Seconds after which it is killed: the first imports torch from a cold disk, and a dry walk may run on a machine
        that is busy with other things."""
        return max(300 if dry else 60, 2 * self.seconds + 20)


TRAIN = (
    Part("facts", "The machine", 0, "machine.facts"),
    Part("ceilings", "Ceilings", 6, "machine.ceilings"),
    Part("vit-g-none", "ViT-g's step, nothing recomputed", 60, "steps.step", ("vit-g", "none", "flash")),
    Part("vit-g-cudnn", "ViT-g's step with cuDNN's attention", 35, "steps.step", ("vit-g", "none", "cudnn")),
    Part("vit-g-full", "ViT-g's step, everything recomputed", 30, "steps.step", ("vit-g", "full", "flash")),
    Part("vit-g-libav", "ViT-g end to end, libav", 50, "end_to_end.training", ("vit-g", "libav")),
    Part("vit-b-libav", "ViT-B end to end, libav", 35, "end_to_end.training", ("vit-b", "libav")),
    Part("vit-b", "ViT-B's step", 25, "steps.step", ("vit-b", "none", "flash")),
    Part("tokens", "uint8 views to tokens", 12, "kernels.tokens"),
    Part("attention", "ViT-g's attention", 8, "kernels.attention"),
    Part("widths", "The width of ViT-g's decoder MLP", 4, "kernels.widths"),
    Part("resume", "A run that is resumed", 25, "sameness.resume", process=1),
    Part("gradients", "The same gradients twice", 12, "sameness.gradients", process=1),
)
DALI = (
    Part("facts", "The machine", 0, "machine.facts"),
    Part("nvdec", "NVDEC's rate", 30, "nvdec.rates"),
    Part("matrices", "Colour matrices", 12, "colours.matrices"),
    Part("decoders", "DALI's pixels beside libav's", 20, "colours.decoders"),
    Part("vit-g-dali", "ViT-g end to end, DALI", 65, "end_to_end.training", ("vit-g", "dali")),
    Part("vit-b-dali", "ViT-B end to end, DALI", 40, "end_to_end.training", ("vit-b", "dali")),
    Part("memory", "DALI's memory", 30, "nvdec.memory", process=1),
    Part("contexts", "CUDA contexts of a loader", 20, "nvdec.contexts", process=2),
)
SETS = {"train": TRAIN, "dali": DALI}


def chosen(names: list[str]) -> list[Part]:
    """Parts of these names, and of the sets of these names, each once, in the sets' order; by default the first set."""
    parts = [part for name, parts in SETS.items() for part in parts if {name, part.name} & set(names or ["train"])]
    return list(dict.fromkeys(parts))
