"""torchvision's side of the comparison: its own FasterRCNN in a plain PyTorch loop.

Backbone, weights, anchors, sizes, counts, thresholds, optimizer, schedule and seed are read from the config that
`detkit fit` takes; samples come from the same data module in the same order. Only the detector and the loop differ.

    python -m benchmarks.torchvision_faster_rcnn --config benchmarks/bccd_mobilenet_v2.yaml --output theirs.json
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from operator import getitem
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from benchmarks.side import StepClock, arguments, data_module, evaluate, finish, model_settings, pin, read_config
from detkit.engine.optimization import OptimSettings, schedule
from detkit.settings import to_plain

STAGES = ((0, 2), (2, 4), (4, 7), (7, 14))
"""MobileNetV2's stages up to stride 16, as `features.transfer: partial` counts them; layers 14 to 17 are the head."""
FIXED = {
    "backbone": "mobilenet_v2",
    "features.fpn": False,
    "features.freeze_batch_norm": True,
    "image.divisor": 32,
    "anchors.convention": "torchvision",
    "rpn.beta": 1 / 9,
    "roi.head": "top",
    "roi.pooling": "align",
    "roi.beta": 1 / 9,
    "optim.schedule": "multistep",
    "optim.decay_biases": True,
    "optim.bias_lr_factor": 1.0,
}
"""Settings that torchvision has no option for, or that this script assumes: a config with other values is refused."""


def build(s: dict[str, Any], num_classes: int) -> FasterRCNN:
    """torchvision's Faster R-CNN with the arguments `s` of ours, from `model_settings`."""
    features, image, anchors, rpn, roi = (s[name] for name in ("features", "image", "anchors", "rpn", "roi"))
    detection = s["detection"]
    plain = to_plain(s)
    used = {name: reduce(getitem, name.split("."), plain) for name in FIXED}
    different = {name: value for name, value in used.items() if value != FIXED[name]}
    if different:
        raise SystemExit(f"not comparable with torchvision's FasterRCNN: {different}")
    network = mobilenet_v2(norm_layer=FrozenBatchNorm2d)
    state = torch.load(s["weights"], map_location="cpu", weights_only=True)
    network.load_state_dict({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")})
    trunk, top = network.features[:14], network.features[14:]
    learning = {"frozen": 0, "partial": features.trainable_stages, "full": len(STAGES)}[features.transfer]
    for first, last in STAGES[: len(STAGES) - learning]:
        trunk[first:last].requires_grad_(False)
    trunk.out_channels = 96
    top = nn.Sequential(top[:4], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return FasterRCNN(
        trunk,
        min_size=image.min_size,
        max_size=image.max_size,
        image_mean=list(image.mean),
        image_std=list(image.std),
        rpn_anchor_generator=AnchorGenerator(tuple(map(tuple, anchors.sizes)), (tuple(anchors.ratios),)),
        rpn_pre_nms_top_n_train=rpn.pre_nms[0],
        rpn_pre_nms_top_n_test=rpn.pre_nms[1],
        rpn_post_nms_top_n_train=rpn.post_nms[0],
        rpn_post_nms_top_n_test=rpn.post_nms[1],
        rpn_nms_thresh=rpn.nms_threshold,
        rpn_fg_iou_thresh=rpn.foreground_iou,
        rpn_bg_iou_thresh=rpn.background_iou,
        rpn_batch_size_per_image=rpn.batch_size,
        rpn_positive_fraction=rpn.positive_fraction,
        rpn_score_thresh=rpn.score_threshold,
        box_roi_pool=MultiScaleRoIAlign(["0"], roi.pool_size, roi.sampling_ratio),
        box_head=top,
        box_predictor=FastRCNNPredictor(320, num_classes + 1),
        box_score_thresh=detection.score_threshold,
        box_nms_thresh=detection.nms_threshold,
        box_detections_per_img=detection.max_detections,
        box_fg_iou_thresh=roi.foreground_iou,
        box_bg_iou_thresh=roi.background_iou[1],
        box_batch_size_per_image=roi.batch_size,
        box_positive_fraction=roi.positive_fraction,
        bbox_reg_weights=tuple(roi.box_weights),
    )


def images(batch: list[dict[str, Any]]) -> list[Tensor]:
    """The images as torchvision takes them: float, 0 to 1."""
    return [sample["image"].float() / 255 for sample in batch]


def targets(batch: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
    """Boxes and labels; torchvision has neither difficult objects nor crowds, so they are removed."""
    result = []
    for sample in batch:
        kept = ~(sample["difficult"] | sample["crowd"])
        result.append({"boxes": sample["boxes"][kept], "labels": sample["labels"][kept]})
    return result


def batches(loader: Any, steps: int) -> Iterator[list[dict[str, Any]]]:
    """The loader's batches, epoch after epoch, `steps` of them."""
    done = epoch = 0
    while done < steps:
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            if done == steps:
                return
            yield batch
            done += 1
        epoch += 1


def train_step(
    model: FasterRCNN,
    batch: list[dict[str, Any]],
    optimizer: torch.optim.Optimizer,
    learning: list[nn.Parameter],
    clip: float | None,
    clock: StepClock,
) -> None:
    """One step on the clock; gradients are clipped to a norm of `clip`, if there is one."""
    inputs, wanted = images(batch), targets(batch)
    clock.start()
    loss = sum(model(inputs, wanted).values())
    optimizer.zero_grad()
    loss.backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(learning, clip)
    optimizer.step()
    clock.stop(loss.detach())


def train(model: FasterRCNN, optim: OptimSettings, loader: Any, steps: int, clip: float | None) -> StepClock:
    """SGD with the config's schedule, gradients clipped to a norm of `clip`."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(optim, steps))
    clock = StepClock()
    model.train()
    for batch in batches(loader, steps):
        train_step(model, batch, optimizer, learning, clip, clock)
        scheduler.step()
        clock.progress("torchvision")
    return clock


def main(argv: Sequence[str] | None = None) -> None:
    """Train, evaluate, print and write."""
    options = arguments(__doc__, argv)
    pin(options.core)
    config = read_config(options.config)
    settings = model_settings(config)
    torch.manual_seed(config["seed_everything"])
    data = data_module(config)
    data.setup("fit")
    model = build(settings, data.num_classes)
    loader = data.train_dataloader()
    steps = options.max_steps or config["trainer"]["max_epochs"] * len(loader)
    clock = train(model, settings["optim"], loader, steps, config["trainer"].get("gradient_clip_val"))
    model.eval()
    evaluation = evaluate(lambda batch: model(images(batch)), data)
    finish(options.output, "torchvision", clock, evaluation, seed=config["seed_everything"])


if __name__ == "__main__":
    main()
