"""torchvision's detectors with random weights that detect something, and images for them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn

import detkit

NAMES = ["a", "b", "c", "d", "e"]
SIZES: dict[str, dict[str, int]] = {
    "fasterrcnn_resnet50_fpn": {"min_size": 96, "max_size": 160},
    "fasterrcnn_resnet50_fpn_v2": {"min_size": 96, "max_size": 160},
    "fasterrcnn_mobilenet_v3_large_fpn": {"min_size": 256, "max_size": 320},
    "fasterrcnn_mobilenet_v3_large_320_fpn": {},
}
# So few candidates of each level in training and proposals of an image otherwise, for the head takes most of the time.
FEW = 50
EXACT = {"fasterrcnn_mobilenet_v3_large_320_fpn": 150}  # as torchvision has it


class Pair(NamedTuple):
    """One of torchvision's detectors, and its name."""

    arch: str
    theirs: nn.Module

    def ours(self, **overrides: Any) -> detkit.FasterRCNN:
        few = EXACT.get(self.arch)
        numbers = {"rpn__pre_nms": (FEW, few or 1000), "rpn__post_nms": (2000, few or FEW)}
        sizes = {f"image__{name}": value for name, value in SIZES[self.arch].items()}
        arguments = sizes | numbers | overrides
        return detkit.FasterRCNN.from_torchvision(self.arch, self.theirs.state_dict(), NAMES, **arguments)


def randomise(model: nn.Module) -> nn.Module:
    """Weights and batch-norm statistics of a detector that detects something: scores from 0.2 to 0.95."""
    generator = torch.Generator().manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d | torchvision.ops.FrozenBatchNorm2d):
            layer.running_mean.normal_(0, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
            layer.weight.data.uniform_(0.5, 1.2, generator=generator)
            layer.bias.data.normal_(0, 0.1, generator=generator)
    model.eval()
    calibrate(model, model.rpn.head.cls_logits, 2.0, generator)
    calibrate(model, model.roi_heads.box_predictor.cls_score, 1.0, generator)
    model.roi_heads.box_predictor.bbox_pred.weight.data.normal_(0, 0.02, generator=generator)
    return model


@torch.no_grad()
def calibrate(model: nn.Module, layer: nn.Conv2d | nn.Linear, deviation: float, generator: torch.Generator) -> None:
    """Random weights for a layer of scores, such that these differ from place to place and from class to class."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda module, given: seen.append(given[0].movedim(1, -1).flatten(0, -2)))
    model([image / 255 for image in images()[:2]])
    hook.remove()
    features = torch.cat(seen)
    weight = torch.randn(
        layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features,
        features.shape[1],
        generator=generator,
    )
    centred = (features - features.mean(0)) @ weight.T
    weight *= deviation / centred.std(0)[:, None]
    layer.weight.copy_(weight.reshape(layer.weight.shape))
    layer.bias.copy_(-weight @ features.mean(0))


def build(arch: str) -> Pair:
    torch.manual_seed(0)
    factory = getattr(torchvision.models.detection, arch)
    arguments = SIZES[arch] | {"rpn_pre_nms_top_n_train": FEW}
    if arch not in EXACT:
        arguments["rpn_post_nms_top_n_test"] = FEW
    model = factory(weights=None, weights_backbone=None, num_classes=len(NAMES) + 1, **arguments)
    return Pair(arch, randomise(model))


def images() -> list[Tensor]:
    """Three images of different sizes with structure in them: noise alone looks the same everywhere."""
    generator = torch.Generator().manual_seed(2)
    coarse = [torch.rand(1, 3, 8, 8, generator=generator) for _ in range(3)]
    sizes = [(120, 160), (150, 100), (128, 128)]
    grown = [nn.functional.interpolate(c, size, mode="bilinear")[0] for c, size in zip(coarse, sizes, strict=True)]
    return [(g * 255).round().to(torch.uint8) for g in grown]


def targets() -> list[dict[str, Tensor]]:
    """Objects of each image; the last has none."""
    boxes = [[[10.0, 20, 70, 90], [60, 15, 150, 110]], [[5.0, 5, 80, 140], [40, 60, 60, 90], [42, 10, 95, 60]], []]
    labels = [[1, 5], [2, 2, 4], []]
    return [
        {"boxes": torch.tensor(b).reshape(-1, 4), "labels": torch.tensor(one, dtype=torch.int64)}
        for b, one in zip(boxes, labels, strict=True)
    ]


def batch() -> list[dict[str, Any]]:
    """The same as samples of ours."""
    return [
        {
            "image": image,
            **target,
            "difficult": torch.zeros(len(target["labels"]), dtype=torch.bool),
            "crowd": torch.zeros(len(target["labels"]), dtype=torch.bool),
            "image_id": i,
        }
        for i, (image, target) in enumerate(zip(images(), targets(), strict=True))
    ]
