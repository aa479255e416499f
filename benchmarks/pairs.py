"""detkit's Faster R-CNN and torchvision's with the same weights, and the same images for both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

import detkit
from tests.parity.torchvision_pair import calibrate

NAMES = [f"class {label}" for label in range(1, 21)]
#: Stages of the backbone that learn, as where torchvision starts from ImageNet's weights.
LEARNING_STAGES = 3


class Side(NamedTuple):
    """A detector, and what it does with a batch.

    losses: of a training step.
    detect: boxes, scores and labels of each image.
    """

    model: nn.Module
    losses: Callable[[], dict[str, Tensor]]
    detect: Callable[[], list[Any]]


def build_pair(arch: str, regions: int = 512, **sizes: int) -> tuple[detkit.FasterRCNN, nn.Module]:
    """Ours and torchvision's detector of that name with the same random weights, of which the same learn.

    The batch norms have the statistics of random images and are frozen, and scores differ from place to place, so that
    activations, proposals and detections are neither all zero nor infinite. ``regions`` of an image
    are sampled in training, ``sizes`` are min_size and max_size. Ours is in channels_last, as our configs have it;
    theirs as torchvision makes it.
    """
    torch.manual_seed(0)
    factory = getattr(torchvision.models.detection, arch)
    options = {"num_classes": len(NAMES) + 1, "box_batch_size_per_image": regions}
    theirs = factory(weights=None, weights_backbone=None, **options, **sizes)
    _settle(theirs)
    ours = detkit.FasterRCNN.from_torchvision(
        arch,
        theirs.state_dict(),
        NAMES,
        features__transfer="partial",
        features__trainable_stages=LEARNING_STAGES,
        features__freeze_batch_norm=True,
        features__channels_last=True,
        roi__batch_size=regions,
        **{f"image__{name}": size for name, size in sizes.items()},
    )
    _freeze_batch_norms(theirs)
    learns = {name: parameter.requires_grad for name, parameter in ours.named_parameters()}
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_(learns.pop(name))
    if learns:
        raise SystemExit(f"torchvision's {arch} has no {', '.join(learns)}")
    return ours, theirs


@torch.no_grad()
def _settle(model: nn.Module) -> None:
    """Give the batch norms statistics, and the layers of scores weights."""
    generator = torch.Generator().manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the mean of all batches: the only one
    model.backbone.train()(torch.randn(2, 3, 128, 128, generator=generator))
    model.eval()
    calibrate(model, model.rpn.head.cls_logits, 2.0, generator)
    calibrate(model, model.roi_heads.box_predictor.cls_score, 1.0, generator)


def _freeze_batch_norms(module: nn.Module) -> None:
    """In place: torchvision's frozen batch norms for those that learn."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            _freeze_batch_norms(child)


def images(count: int, height: int, width: int, objects: int = 8) -> list[dict[str, Any]]:
    """Samples with structure in them, on the CPU: noise alone looks the same everywhere."""
    generator = torch.Generator().manual_seed(2)
    corner = torch.rand(count, objects, 2, generator=generator) * 0.7
    extent = 0.05 + 0.25 * torch.rand(count, objects, 2, generator=generator)
    boxes = torch.cat([corner, corner + extent], dim=2) * torch.tensor([width, height, width, height])
    coarse = torch.rand(count, 3, 12, 16, generator=generator)
    pixels = nn.functional.interpolate(coarse, (height, width), mode="bilinear").mul(255).round().to(torch.uint8)
    none = torch.zeros(objects, dtype=torch.bool)
    return [
        {
            "image": pixels[i],
            "boxes": boxes[i],
            "labels": torch.randint(1, len(NAMES) + 1, (objects,), generator=generator),
            "difficult": none,
            "crowd": none,
            "image_id": i,
        }
        for i in range(count)
    ]


def sides_of(
    ours: detkit.FasterRCNN, theirs: nn.Module, batch: list[dict[str, Any]], device: torch.device
) -> dict[str, Side]:
    """Both detectors on the device with the batch.

    Ours takes uint8 and makes floats of them itself; torchvision's is given floats, as its data loading makes them.
    """
    ours, theirs = ours.to(device), theirs.to(device)
    own = ours.transfer_batch_to_device(batch, device, 0)
    floats = [sample["image"].to(device).float() / 255 for sample in batch]
    targets = [{name: sample[name].to(device) for name in ("boxes", "labels")} for sample in batch]
    return {
        "detkit": Side(ours, lambda: ours.losses(own), lambda: ours.detect(own)),
        "torchvision": Side(theirs, lambda: theirs(floats, targets), lambda: theirs(floats)),
    }


class Step:
    """A training step of a side: losses, backward, SGD; in bfloat16 by autocast, or in float32."""

    def __init__(self, side: Side, bf16: bool) -> None:
        self.side = side
        self.bf16 = bf16
        side.model.train()
        learning = [parameter for parameter in side.model.parameters() if parameter.requires_grad]
        self.device = learning[0].device
        # So small a learning rate that the last step has as much to do as the first.
        self.optimizer = torch.optim.SGD(learning, lr=1e-6, momentum=0.9)

    def __call__(self) -> Tensor:
        """The loss, on the device."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss = torch.stack(list(self.side.losses().values())).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()
