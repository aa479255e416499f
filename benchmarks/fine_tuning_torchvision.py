"""torchvision's side of `benchmarks.fine_tuning`: its detectors trained for a given CPU time.

Three kinds, all with MobileNetV2 and the same ImageNet weights, on the config's data set:

- ``tutorial``: as torchvision's "Object Detection Finetuning Tutorial" does it: its example of another backbone, the
  library's defaults (800 px, batch norms that learn, 512 regions an image), 2 images a step, SGD with a rate of 0.005.
- ``same-sgd``: the config's own detector, sizes and batch, built from torchvision's parts, with the tutorial's SGD.
- ``same-adamw``: the same with the optimizer and the schedule of detkit's recipe.

The tutorial trains for 10 epochs, in the first of which the rate rises, and it drops to a tenth every three. Here that
is scaled to the time: a warm-up of a tenth of the run, and drops at 0.3, 0.6 and 0.9 of it.

    python -m benchmarks.fine_tuning_torchvision --config FILE --kind tutorial --cpu_seconds 400 --output theirs.json
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from itertools import count
from typing import Any

import torch
from torchvision.models import mobilenet_v2
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from benchmarks.side import StepClock, data_module, evaluate, finish, model_settings, pin, read_config
from benchmarks.torchvision_faster_rcnn import build, images, train_step

KINDS = ("tutorial", "same-sgd", "same-adamw")
TUTORIAL_BATCH = 2


def tutorial_model(weights: str, num_classes: int) -> FasterRCNN:
    """The tutorial's detector with another backbone; the background is a class."""
    network = mobilenet_v2()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    backbone = network.features
    backbone.out_channels = 1280
    anchors = AnchorGenerator(sizes=((32, 64, 128, 256, 512),), aspect_ratios=((0.5, 1.0, 2.0),))
    pooler = MultiScaleRoIAlign(featmap_names=["0"], output_size=7, sampling_ratio=2)
    return FasterRCNN(backbone, num_classes + 1, rpn_anchor_generator=anchors, box_roi_pool=pooler)


def step_factor(used: float) -> float:
    """The tutorial's schedule, as a function of the share of the run that is over."""
    return max(min(1.0, used / 0.1), 0.001) * 0.1 ** sum(used >= drop for drop in (0.3, 0.6, 0.9))


def cosine_factor(used: float) -> float:
    """A warm-up of 5 % of the run, and half a cosine."""
    return max(min(1.0, used / 0.05), 0.001) * 0.5 * (1 + math.cos(math.pi * used))


def train(
    model: FasterRCNN,
    loader: Any,
    kind: str,
    seconds: float,
    clip: float | None,
    adamw: dict[str, float] | None,
    backbone_lr_factor: float = 1.0,
) -> StepClock:
    """Train until so many seconds of CPU time, of loading and steps, are used."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if adamw is None:
        optimizer: torch.optim.Optimizer = torch.optim.SGD(learning, lr=0.005, momentum=0.9, weight_decay=0.0005)
    else:
        pretrained = {id(p) for part in (model.backbone, model.roi_heads.box_head) for p in part.parameters()}
        slow = [parameter for parameter in learning if id(parameter) in pretrained]
        new = [parameter for parameter in learning if id(parameter) not in pretrained]
        groups = [{"params": new}, {"params": slow, "lr": adamw["lr"] * backbone_lr_factor}]
        optimizer = torch.optim.AdamW(groups, **adamw)
    initial = [group["lr"] for group in optimizer.param_groups]
    clock, began = StepClock(), time.process_time()
    model.train()
    for epoch in count():
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            used = (time.process_time() - began) / seconds
            if used >= 1:
                return clock
            factor = step_factor(used) if adamw is None else cosine_factor(used)
            for group, rate in zip(optimizer.param_groups, initial, strict=True):
                group["lr"] = rate * factor
            train_step(model, batch, optimizer, learning, clip, clock)
            clock.progress(kind)
    raise AssertionError("count() ends never")


def main(argv: Sequence[str] | None = None) -> None:
    """Train, evaluate, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="a config of `detkit fit` with FasterRCNN, MobileNetV2 and VOC")
    parser.add_argument("--output", required=True, help="JSON file for the results")
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--cpu_seconds", type=float, required=True, help="CPU time of the training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--val_images", type=int, help="evaluate on the first so many; all without it")
    parser.add_argument("--core", type=int, help="the CPU core this process stays on; all cores without it")
    parser.add_argument("--lr", type=float, default=1e-3, help="of AdamW")
    parser.add_argument("--weight_decay", type=float, default=0.05, help="of AdamW")
    parser.add_argument("--backbone_lr_factor", type=float, default=0.3, help="of AdamW, for what is pre-trained")
    options = parser.parse_args(argv)
    pin(options.core)
    torch.set_num_threads(1)
    config = read_config(options.config)
    settings = model_settings(config)
    torch.manual_seed(options.seed)
    arguments = config["data"]["init_args"]
    arguments["seed"] = options.seed
    if options.kind == "tutorial":
        arguments["batch_size"] = TUTORIAL_BATCH
    data = data_module(config)
    data.setup("fit")
    if options.kind == "tutorial":
        model = tutorial_model(settings["weights"], data.num_classes)
    else:
        model = build(settings, data.num_classes)
    adamw = {"lr": options.lr, "weight_decay": options.weight_decay} if options.kind == "same-adamw" else None
    factor = options.backbone_lr_factor
    clip = None if options.kind == "tutorial" else config["trainer"].get("gradient_clip_val")
    clock = train(model, data.train_dataloader(), options.kind, options.cpu_seconds, clip, adamw, factor)
    model.eval()
    evaluation = evaluate(lambda batch: model(images(batch)), data, options.val_images)
    more = {"kind": options.kind, "seed": options.seed, "cpu_seconds": options.cpu_seconds}
    finish(options.output, "torchvision", clock, evaluation, **more)


if __name__ == "__main__":
    main()
