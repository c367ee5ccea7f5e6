"""tubecell under the names that the second parity suite calls: what comes after pre-training.

    python ../shared/parity/stages/compare_stages.py --adapter tests/stages_adapter.py

The interface is described at the head of compare_stages.py. A function returns None for what is not supported.
"""

import json
import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
if sys.path[0] != str(ROOT):
    sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from einops import rearrange

from dataset_builders.detection.proposals import fractions_of_xywh
from dataset_builders.sources.lists import OFFICIAL, SAMPLING
from model import segment_losses
from model import segments as segments_of_time
from model.action_detector import ActionDetector, Regions
from model.attentive_heads import AttentiveHeads
from model.classifier import VideoClassifier
from model.config import MODELS, ModelConfig
from model.localizer import filled
from model.localizer_config import LocalizerConfig
from model.localizer_weights import built
from model.pixels import normalise, pasted, patches_of
from model.segment_nms import Suppression, fused, suppressed
from model.weight_files import tensors_of
from model.weights import Weights, read_weights, transfer, understand
from pipeline import keyed, official_views
from pipeline.decoding.augment import Augmentation, AugmentedResizer
from pipeline.sampling import SamplingRecipe, crops, frames, randaugment, view_boxes
from pipeline.sampling.draws import Draws
from pipeline.sampling.mixing import Mixing, cut_boxes, kinds_and_shares
from pipeline.sampling.randaugment import RandAugment
from pipeline.storage.action_list import parse_actions
from tests.parity_adapter import finetune_config, to_uint8
from train import augmentation
from train.accuracy.neighbours import votes
from train.accuracy.predictions import Predictions
from train.accuracy.retrieval import belonging, text_to_video, video_to_text
from train.accuracy.scores import ClipScores, Merged
from train.augmentation import mixed, mixed_labels
from train.classes import read_places
from train.compute.ema import RunningMean
from train.compute.optimizer import build_optimizer, lr_at, parameter_groups, set_lr
from train.convert import predicted
from train.detection.box_files import numbered, parse_boxes, parse_excluded
from train.detection.mean_precision import mean_precision as precision_of_boxes
from train.detection.multi_label import action_scores, box_loss
from train.features.windows import PRESETS, FrameView, Windows
from train.localization.feature_files import FeatureFile
from train.localization.feature_set import FeatureVideo
from train.localization.mean_precision import Predicted, mean_precision
from train.localization.sequences import SequenceConfig, timing
from train.recipes import finetuning, pretraining
from train.recipes.book import SCRIPTS, as_in_script
from train.soft_labels import distillation_loss as kl_of_logits
from train.soft_labels import soft_cross_entropy, soft_labels

SHARED = Path(os.environ.get("TUBECELL_SHARED", ROOT.parent / "shared"))


# -------------------------------------------------------------------------------------------------------- checkpoints


def load_checkpoint(path):
    weights = read_weights(path)
    return {"layout": weights.layout, "params": weights.tensors}


def hf_forward(folder, pixel_values, mask, dtype):
    model, clips = read_weights(folder).build().to(dtype), pixel_values.permute(0, 1, 3, 4, 2)
    if mask is None:
        with torch.no_grad():
            return {"logits": model(clips)}
    found = predicted(model, clips, mask)
    return {"logits": found["predictions"], "loss": found["loss"]}


def official_forward(path, clip, dtype):
    model = read_weights(path, **told(path)).build().to(dtype)
    with torch.no_grad():
        return model(clip.permute(0, 2, 3, 4, 1))


def told(path):
    """What the suite says of a file that does not tell."""
    folder = next(folder for folder in Path(path).parents if folder.name == "checkpoints")
    cases = json.loads((folder.parent / "checkpoints.json").read_text())["forward"]
    cfg = next(case["cfg"] for case in cases if folder / case["file"] == Path(path))
    return {"encoder_heads": cfg["num_heads"], "input_size": cfg["img_size"], "num_frames": cfg["all_frames"]}


def load_for_finetune(cfg, checkpoint, dataset):
    config = ModelConfig(
        input_size=cfg["img_size"],
        num_frames=cfg["all_frames"],
        patch_size=cfg["patch_size"],
        encoder_dim=cfg["embed_dim"],
        encoder_depth=cfg["depth"],
        encoder_heads=cfg["num_heads"],
        mlp_ratio=cfg["mlp_ratio"],
    )
    with torch.device("meta"):
        model = VideoClassifier(config, cfg["num_classes"])
    weights = understand(tensors_of(checkpoint, "the checkpoint"))
    classes = None
    if weights.num_classes == 710 != cfg["num_classes"] and dataset.startswith("Kinetics-"):
        maps = SHARED / "annotations" / "kinetics710"
        classes = json.loads((maps / f"label_710to{dataset.removeprefix('Kinetics-')}.json").read_text())
    found = transfer(weights, {name: parameter.shape for name, parameter in model.named_parameters()}, classes)
    # a head of other classes is removed there before names are compared
    unused = [name.removeprefix("encoder.") for name in found.unused if name not in found.fresh]
    return {"params": found.taken, "kept": found.fresh, "unused": unused}


# -------------------------------------------------------------------------------------------------------- fine-tuning


def convert_head(weight, bias, dataset):
    number = int(dataset.removeprefix("Kinetics-"))
    rows = read_places(str(SHARED / "annotations" / "kinetics710" / f"label_710to{number}.json"), number)
    weights = Weights("official", "official", {"head.weight": weight, "head.bias": bias}, {})
    shapes = {"head.weight": torch.Size([number, weight.shape[1]]), "head.bias": torch.Size([number])}
    found = transfer(weights, shapes, rows).taken
    return found["head.weight"], found["head.bias"]


def randaugment_args(op, magnitude):
    return sorted({argument.item() for argument in randaugment.arguments(op, magnitude)})


def randaugment_plans(n, seed):
    found = randaugment.plans(keyed.mix(seed, np.arange(n)), RandAugment.parse("rand-m7-n4-mstd0.5-inc1"))
    without = [op for op in randaugment.OPERATIONS if not randaugment.arguments(op, 7.0)]
    named = [[(randaugment.OPERATIONS[int(op)], argument) for op, argument in plan if op >= 0] for plan in found.tolist()]
    return [[(op, None if op in without else argument) for op, argument in plan] for plan in named]


def randaugment_op(frames, op, arg):
    height, width = frames.shape[1:3]
    view = Augmentation(operations_of([(op, arg)]), (0, 0, width, height), width, height)
    rows = (view.frame(frame.reshape(height, -1)) if view else frame.reshape(height, -1) for frame in frames)
    return np.stack([each[:, : 3 * width].reshape(height, width, 3).copy() for each in rows])  # its memory is used again


def operations_of(plan):
    return np.array([(randaugment.OPERATIONS.index(op), arg or 0) for op, arg in plan], float).reshape(-1, 2)


def train_view(frames, plan, box, flip, size):
    (top, left, high, wide), (num_frames, height, width, _) = box, frames.shape
    views = np.zeros((1, num_frames, size, size, 3), np.int16)
    boxes, places = np.array([[left, top, wide, high]]), np.arange(num_frames)
    resizer = AugmentedResizer(operations_of(plan)[None], (width, height), places, boxes, views)
    resizer.begin(None)
    for number, frame in enumerate(frames):
        resizer.frame(number, frame.reshape(height, -1))
    resizer.finish()
    return augmentation.normalised(torch.from_numpy(views), np.array([flip]))[0].permute(3, 0, 1, 2)


def erasing_boxes(height, width, n, seed):
    recipe = SamplingRecipe(views_per_step=n, views_per_clip=1, seed=seed, masks=None, input_size=(height, width))
    boxes = Draws(recipe, 0, np.arange(n)).erasing(0.25).tolist()
    return [(y, x, high, wide) if wide else None for x, y, wide, high in boxes]


def erase(clip, box, seed):
    view, (y, x, high, wide) = clip.permute(1, 2, 3, 0).contiguous(), box
    augmentation.erase(view, (x, y, wide, high), torch.Generator().manual_seed(seed))
    return view.permute(3, 0, 1, 2)


def mixup(x, y, lam, box, num_classes, smoothing):
    n, (height, width) = len(x), x.shape[3:]
    y0, y1, x0, x1 = box or (0, height, 0, width)
    boxes, inside = np.tile([x0, y0, x1 - x0, y1 - y0], (n, 1)), np.full(n, 0.0 if box else lam)
    mixing = Mixing(np.arange(n)[::-1].copy(), boxes, inside, np.full(n, lam))
    targets = mixed_labels(soft_labels(y, num_classes, smoothing), mixing)
    return mixed(x.permute(0, 2, 3, 4, 1), mixing).permute(0, 4, 1, 2, 3), targets


def cutmix_box(height, width, lam, cy, cx):
    ((x, y, wide, high),), (remaining,) = cut_boxes(np.array([lam]), np.array([[cy, cx]]), height, width)
    return (y, y + high, x, x + wide), remaining


def mixup_draws(n, seed):
    cut, lam = kinds_and_shares(keyed.mix(seed, np.arange(n)), 0.8, 1.0, 0.5)
    return list(zip(np.where(cut, "cutmix", "mixup").tolist(), lam.tolist(), strict=True))


def soft_target_loss(logits, targets):
    return soft_cross_entropy(logits, targets)


def label_smoothing_loss(logits, labels, smoothing):
    return soft_cross_entropy(logits, soft_labels(labels, logits.shape[1], smoothing))


def distillation_loss(student, teacher, temperature, squared):
    return kl_of_logits(student, teacher, temperature, squared)


def finetune_trajectory(cfg, sd, batches, opt, dtype):
    model = VideoClassifier(finetune_config(cfg), cfg["num_classes"])
    model.load_state_dict(sd)
    model.to(dtype)
    groups = parameter_groups(model.named_parameters(), opt["weight_decay"], opt["layer_decay"], cfg["depth"])
    optimizer = build_optimizer(groups, tuple(opt["betas"]), opt["eps"])
    mean = RunningMean(model, opt["ema_decay"]) if opt["ema_decay"] else None
    passes, niter = opt["update_freq"], opt["steps_per_epoch"]
    total, warmup = opt["epochs"] * niter, opt["warmup_epochs"] * niter
    found = {"loss": [], "grad_norm": [], "lr": []}
    for step in range(total):
        set_lr(optimizer, lr_at(step, peak=opt["lr"], final=opt["min_lr"], total_steps=total, warmup_steps=warmup))
        optimizer.zero_grad()
        for number in range(passes):
            clip, targets = batches[(step * passes + number) % len(batches)]
            loss = soft_cross_entropy(model(clip.to(dtype).permute(0, 2, 3, 4, 1)), targets.to(dtype))
            (loss / passes).backward()
            found["loss"].append(loss.item())
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), opt["max_norm"] or float("inf"))
        optimizer.step()
        if mean:
            mean.update(torch.ones((), dtype=dtype))
        found["grad_norm"].append(norm.item())
        found["lr"].append(sorted({group["lr"] for group in optimizer.param_groups}))
    return found | ({"ema": mean.state} if mean else {}) | {"final": model.state_dict()}


# --------------------------------------------------------------------------------------------------- frames and views


FORMS = {"frames": "tsn", "video": "tsn_video"}


def finetune_train_ids(num_frames, clip_len, step, start):
    return frames.linspace_frames(num_frames, clip_len, step, start + clip_len * step)


def finetune_train_start_range(num_frames, clip_len, step):
    return span_of(frames.linspace_starts(np.array([num_frames]), clip_len, np.array([float(step)])))


def finetune_val_ids(num_frames, clip_len, step):
    return middle_frames(num_frames, clip_len, step, "linspace")


def finetune_test_clips(num_frames, clip_len, step, segments):
    return frames.segment_frames(num_frames, clip_len, step, segments)


def sparse_val_ids(num_frames, segments, layout):
    return middle_frames(num_frames, segments, 4, FORMS[layout])


def sparse_train_ids(num_frames, segments, layout, offset):
    return frames.tsn_at(np.array([[offset]]), np.array([num_frames]), segments)[0]


def sparse_train_offsets(num_frames, segments, layout):
    return span_of(frames.tsn_choices(np.array([num_frames]), segments, FORMS[layout]))


def sparse_test_clips(num_frames, segments, test_segments):
    return frames.tsn_test_frames(num_frames, segments, test_segments)


def rrc_boxes(height, width, n, seed):
    boxes = crops.random_resized_crop(keyed.mix(seed, np.arange(n)), np.full(n, width), np.full(n, height))
    return boxes[:, [1, 0, 3, 2]]


def crop_resize(clip, box, size):
    return official_views.crop_resize(clip, box, (size, size))


def test_views(width, height, short, crops):
    resized, places = official_views.resized_views(width, height, short, (short, short), crops)
    return resized[::-1], [(x, y, short, short) for x, y in places.tolist()]


def val_box(width, height, short, crop):
    resized, places = official_views.resized_views(width, height, short, (crop, crop))
    return resized[::-1], places[0]


def val_view(frames, short, crop):
    return normalise(torch.from_numpy(official_views.cut_views(frames, short, (crop, crop))))[0].permute(3, 0, 1, 2)


def merge_views(ranks):
    scores = ClipScores()
    for name, logits, label, chunk, crop in (view for views in ranks for view in views):
        scores.add(name, label, [(chunk, crop)], torch.tensor([logits], dtype=torch.float64).softmax(-1).numpy())
    merged = scores.merged()
    found = accuracy_of(merged)
    return {
        "top1": 100 * found.top1,
        "top5": 100 * found.top5,
        "num_videos": found.num_clips,
        "pred": dict(zip(merged.keys, merged.probabilities.argmax(1), strict=True)),
        "prob": dict(zip(merged.keys, merged.probabilities, strict=True)),
    }


def mean_class_accuracy(scores, labels):
    every = np.arange(len(labels))
    return accuracy_of(Merged([*map(str, every)], np.array(labels), scores, np.ones_like(every))).mean_class


def accuracy_of(merged):
    with TemporaryDirectory() as folder:
        predictions = Predictions(Path(folder), {}, [*map(str, range(merged.probabilities.shape[1]))])
        predictions.add(np.arange(len(merged.keys)), merged)
        return predictions.accuracy(predictions.whole())


def middle_frames(num_frames, clip_len, step, temporal):
    return frames.training_frames(None, np.array([num_frames]), clip_len, np.array([float(step)]), temporal)[0]


def span_of(choices):
    return (0, int(choices[0]) - 1) if choices[0] else None


# ------------------------------------------------------------------------------------------------- temporal detection


def tad_points(max_seq_len, strides, ranges):
    return torch.cat(segments_of_time.points_of(max_seq_len, strides, ranges))


def tad_assign(points, segments, labels, num_classes, radius):
    return segments_of_time.assign(points, segments, labels, num_classes, radius)


def tad_focal_loss(logits, targets):
    return segment_losses.focal_loss(logits, targets)


def tad_diou_loss(pred, target):
    return segment_losses.distance_iou_loss(pred, target)


def tad_losses(mask, cls_logits, offsets, gt_cls, gt_offsets, norm, smoothing, weight):
    positives = int(((gt_cls.sum(-1) > 0) & mask.bool()).sum())
    norm = segment_losses.running_mean(norm, positives)
    how = {"normaliser": norm, "smoothing": smoothing, "weight": weight}
    found = segment_losses.segment_losses(mask.bool(), cls_logits, offsets, gt_cls, gt_offsets, **how)
    return {"cls": found.classes, "reg": found.distances, "final": found.whole, "norm": norm}


def localizer_config(cfg):
    embed, stem, branch = cfg["backbone_arch"]
    window = cfg["n_mha_win_size"]
    return LocalizerConfig(
        input_dim=cfg["input_dim"],
        num_steps=cfg["max_seq_len"],
        dim=cfg["embd_dim"],
        head_dim=cfg["head_dim"],
        num_heads=cfg["n_head"],
        embed_depth=embed,
        stem_depth=stem,
        num_levels=1 + branch,
        head_depth=cfg["head_num_layers"],
        windows=tuple(window) if isinstance(window, list) else (window,),
        positions=cfg["use_abs_pe"],
        drop_path=cfg["train_cfg"]["droppath"],
        prior=cfg["train_cfg"]["cls_prior_prob"],
    )


def tad_forward(cfg, sd, feats, training, dtype):
    config = localizer_config(cfg)
    model = built(config, cfg["num_classes"], sd).to(dtype)
    with torch.no_grad():
        features_BTC, mask_BT = filled([x.T.to(dtype) for x in feats], config)
        found = model(features_BTC, mask_BT)
    return {"cls": found.logits, "reg": found.offsets, "mask": found.masks}


def tad_decode(points, mask, cls_logits, offsets, test_cfg):
    how = {
        "least_score": test_cfg["pre_nms_thresh"],
        "most": test_cfg["pre_nms_topk"],
        "least_steps": test_cfg["duration_thresh"],
    }
    return segments_of_time.decode(points, mask, cls_logits, offsets, **how)


def tad_nms(segments, scores, labels, cfg):
    how = Suppression(
        method=cfg["method"],
        overlap=cfg["iou_threshold"],
        sigma=cfg["sigma"],
        least_score=cfg["min_score"],
        most=cfg["max_seg_num"],
        per_class=cfg["multiclass"],
        voting=cfg["voting"],
    )
    return suppressed(segments, scores, labels, how)


def tad_seconds(segments, stride, num_frames, fps, duration):
    return segments_of_time.to_seconds(segments, stride, num_frames, fps, duration)


def tad_truncate(feats_len, segments, labels, start, max_seq_len, thresh, offset):
    return segments_of_time.inside_window(segments, labels, start, max_seq_len, thresh, offset)


def tad_fuse(scores, segments, video_scores, topk, num_pred):
    values = (torch.from_numpy(np.asarray(each)) for each in (scores, segments, video_scores))
    scores, segments, labels = fused(*values, classes=topk, most=num_pred)
    return segments, scores, labels


def tad_item(kind, feats, segments, fps, duration, stride, num_frames, downsample, max_seq_len, upsample):
    config = SequenceConfig(stride=stride, frames=num_frames, downsample=downsample, resample=upsample)
    with TemporaryDirectory() as folder:
        np.save(Path(folder, "video.npy"), feats)
        file = FeatureFile.of(Path(folder, "video.npy"), feats.shape[1])
        at = timing(file.steps, config, config.stride, fps, duration, max_seq_len)
        found = FeatureVideo("video", "", file, at, duration, ()).read(config, feats.shape[1])
    steps = segments_of_time.to_steps(torch.tensor(segments), at.stride, at.frames, at.fps)
    return {"feats": found.T, "segments": steps, "stride": at.stride, "num_frames": at.frames}


def tad_map(ground_truth, predictions, tious, top_k):
    videos, begins, ends, labels, scores = zip(*predictions, strict=True)
    found = Predicted(np.array(videos), np.array([begins, ends]).T, np.array(labels), np.array(scores))
    result = mean_precision(ground_truth, found, tious, top_k)
    return {"map": result.per_tiou, "average": result.average, "recall": result.recall.mean(0)}


def tad_lr(base, warmup_steps, max_steps):
    final = 1e-8
    return [lr_at(n, peak=base, final=final, total_steps=max_steps, warmup_steps=warmup_steps) for n in range(max_steps)]


# ----------------------------------------------------------------------------------------------------------- features


def tad_feature_starts(num_frames, preset):
    chosen = PRESETS[preset.lower()]
    return Windows(chosen["window"], chosen["step"], chosen["stride"]).starts(num_frames).tolist()


def tad_feature_input(frames):
    chosen = PRESETS["thumos14"]
    view = FrameView(224, chosen["resize"], chosen["normalise"])
    views = torch.stack([*map(view.of(None), frames)])
    return view.normalised(views[None])[0].permute(3, 0, 1, 2)


# ---------------------------------------------------------------------------------------------------------------- AVA

STYLES = {"videomae": "key_frame_videomae", "slowfast": "key_frame", "mmaction2": "key_frame"}


def ava_clip_ids(num_frames, key_frame, style):
    around = np.array([key_frame]), np.array([num_frames]), 16, np.array([4.0]), frames.AT_KEY_FRAMES[STYLES[style]]
    return frames.key_frame_window(*around)[0]


def ava_boxes(xywh, width, height, short, crop, flip):
    (high, wide), _ = official_views.resized_views(width, height, short, (short, short))
    x, y, *size = crop or (0, 0, wide, high)
    boxes = view_boxes.inclusive(fractions_of_xywh(xywh, width, height), width, height)
    scale = np.array([wide / width, high / height])
    return view_boxes.placed(boxes, scale, np.array([x, y]), size[0], size[-1], np.full(len(boxes), flip)), (size[0], size[-1])


def ava_enlarge(boxes, width, height):
    return view_boxes.enlarged(boxes, width, height)


def ava_jitter(boxes, u, width, height):
    return view_boxes.jittered(boxes, u, width, height)


def ava_result_boxes(boxes, network_size, width, height):
    return view_boxes.as_fractions(boxes, network_size, width, height)


def ava_forward(cfg, sd, clip, boxes, enlarge, dtype):
    config = ModelConfig(
        input_size=cfg["img_size"],
        num_frames=cfg["all_frames"],
        patch_size=cfg["patch_size"],
        encoder_dim=cfg["embed_dim"],
        encoder_depth=cfg["depth"],
        encoder_heads=cfg["num_heads"],
        mlp_ratio=cfg["mlp_ratio"],
    )
    model = ActionDetector(config, cfg["num_classes"])
    model.load_state_dict(sd)
    height, width = clip.shape[3:]
    corners = [view_boxes.enlarged(each, width, height) if enlarge else each for each in boxes]
    views = torch.repeat_interleave(torch.arange(len(boxes)), torch.tensor([*map(len, boxes)]))
    return model.to(dtype)(clip.permute(0, 2, 3, 4, 1), Regions(torch.from_numpy(np.concatenate(corners)), views))


def ava_loss(logits, labels):
    return box_loss(logits, labels)


def ava_scores(logits, person_scores):
    return action_scores(logits, person_scores)


def ava_map(gt_csv, pred_csv, labelmap, excluded_csv, style):
    style = "activitynet" if style == "official" else style
    files = parse_boxes(gt_csv.encode(), "truth", False), parse_boxes(pred_csv.encode(), "detections", True)
    excluded = parse_excluded((excluded_csv or "").encode(), "excluded")
    (truth, found, left_out), _ = numbered([*files, excluded])
    result = precision_of_boxes(truth, found, parse_actions(labelmap, "the list"), style, left_out.images)
    return {"map": result.mean, "per_class": result.classes}


# ------------------------------------------------------------------------------------------------------------- probes


def attentive_probe(cfg, sd, tokens, dtype):
    model = AttentiveHeads(cfg["embed_dim"], cfg["num_heads"], cfg["depth"], cfg["num_classes"], 1)
    model.load_state_dict({f"heads.0.{name.replace('linear.', 'head.')}": value for name, value in sd.items()})
    return model.to(dtype)(tokens)


def knn(train, train_labels, test, test_labels, ks, temperature, num_classes):
    found = votes(train, train_labels, test, test_labels, ks, temperature, num_classes)
    return {vote.k: (100 * vote.top1, 100 * vote.top5) for vote in found}


def retrieval(sims, text_video):
    return of_published(text_to_video(sims, belonging(text_video, sims.shape[1])))


def retrieval_video_to_text(sims, text_video):
    return of_published(video_to_text(sims, belonging(text_video, sims.shape[1]), text_video))


def of_published(found):
    shares = {f"R{k}": 100 * share for k, share in found.recall.items()}
    return shares | {"MdR": found.median_rank, "MnR": found.mean_rank}


# -------------------------------------------------------------------------------------------------------------- demos


def reconstruct(clip, mask, pred, patch):
    views = to_uint8(clip)
    both = pasted(patches_of(views, patch, 2), mask.nonzero()[:, 1][None], pred)
    as_clip = "1 (t r c) (s p q k) -> k (t s) (r p) (c q)"
    sizes = {"r": views.shape[2] // patch, "c": views.shape[3] // patch, "s": 2, "p": patch, "q": patch}
    return dict(zip(("reconstruction", "masked"), (rearrange(each, as_clip, **sizes) for each in both), strict=True))


# ------------------------------------------------------------------------------------------------------------ recipes

SIZES = {"vit-s": "small", "vit-b": "base", "vit-l": "large", "vit-h": "huge", "vit-g": "giant"}
DATASETS = {"k400": "Kinetics-400", "k600": "Kinetics-600", "k710": "Kinetics-710"}
DATASETS |= {"ssv2": "SSV2", "ucf101": "UCF101", "hmdb51": "HMDB51"}


def official_recipe(script):
    """Numbers of GPUs and test views are not the configuration's: they stand in the recipe's docstring, which --help prints."""
    books = finetuning.RECIPES, pretraining.RECIPES
    make = {SCRIPTS[make].name: make for book in books for make in book.values() if make in SCRIPTS}[script]
    config, labelled = as_in_script(make), make in finetuning.RECIPES.values()
    size = next(name for name, model in MODELS.items() if model.encoder_dim == config.model.encoder_dim)
    name = f"{SIZES[size]}_patch{config.model.patch_size}_{config.model.input_size}"
    clip = config.views.views_per_clip
    found = {
        "gpus": int(re.search(r"(\d+) GPU", make.__doc__)[1]),
        "batch_videos": config.sampling.clips_per_step,
        "views_per_video": clip,
        "lr_flag": config.optim.base_lr * clip,
        "lr_peak": config.peak_lr,
        "min_lr": config.final_lr,
        "weight_decay": config.optim.weight_decay,
        "betas": list(config.optim.betas),
        "epochs": config.epochs,
        "warmup_epochs": config.optim.warmup_share * config.epochs,
        "clip_grad": config.optim.clip_grad,
        "num_frames": config.model.num_frames,
        "input_size": config.model.input_size,
    }
    data = next((word for word in reversed(make.__name__.split("_")) if word in DATASETS), None)
    if not labelled or config.frames != "tsn":  # whose scripts have a stride that nothing reads
        sampling = config.views.sampling
        if sampling == "manifest":  # as an official list becomes a dataset
            sampling = OFFICIAL[b"SomethingV2"][1] if data == "ssv2" else SAMPLING
        found["frame_stride"] = int(sampling.removeprefix("stride:"))
    if not labelled:
        return found | {
            "drop_path": 0.0,
            "model": f"pretrain_videomae_{name}",
            "mask_ratio": config.views.mask_ratio,
            "decoder_depth": config.model.decoder_depth,
            "decoder_mask_ratio": config.views.decoder_mask_ratio,
        }
    segments, crops = re.search(r"Test:\s+(\d)x(\d)", make.__doc__).groups()
    return found | {
        "model": f"vit_{name}",
        "dataset": DATASETS[data],
        "classes": config.expected_classes,
        "drop_path": config.drop_path,
        "head_dropout": config.head_dropout,
        "layer_decay": config.layer_decay,
        "init_scale": config.head_scale,
        "label_smoothing": config.augment.smoothing,
        "mixup": config.augment.mixup,
        "cutmix": config.augment.cutmix,
        "rand_augment": config.augment.randaugment,
        "random_erasing": config.augment.erasing,
        "test_segments": int(segments),
        "test_crops": int(crops),
        "short_side": config.model.input_size,
    }
