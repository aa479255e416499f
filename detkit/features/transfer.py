"""Transfer learning as a named policy: which part of the backbone learns.

``frozen``: a fixed feature extractor, only what stands on it learns. ``partial``: the last stages learn (Fast R-CNN
trains VGG16 from conv3_1 on, section 4.5; torchvision trains ResNet's last three). ``full``: everything learns.
"""

from __future__ import annotations

from torch import nn

from detkit.errors import ConfigError
from detkit.features.architectures import architecture
from detkit.features.backbones import Backbone, freeze_batch_norms

POLICIES = ("frozen", "partial", "full")


def apply_transfer(backbone: Backbone, name: str, policy: str, trainable_stages: int | None = None) -> None:
    """Set ``requires_grad`` of the backbone's body by the policy, in place; a pyramid always learns.

    Batch norms of a frozen stage are frozen with it: their running statistics would drift otherwise.

    Args:
        backbone: as built by `build_backbone`.
        name: its architecture.
        policy: one of `POLICIES`.
        trainable_stages: for ``partial``: how many of the body's last stages learn, 1 to the number of stages.

    Raises:
        ConfigError: for an unknown policy, or a number of stages that does not fit.
    """
    if policy not in POLICIES:
        raise ConfigError(f"unknown transfer policy {policy!r}; the known ones are {', '.join(POLICIES)}")
    stages = [[s for s in stage if s in backbone.body] for stage in architecture(name).stages]
    stages = [stage for stage in stages if stage]
    if policy == "partial" and (trainable_stages is None or not 1 <= trainable_stages <= len(stages)):
        raise ConfigError(
            f"transfer: partial needs trainable_stages between 1 and {len(stages)} for {name}, not {trainable_stages}"
        )
    if policy != "partial" and trainable_stages is not None:
        raise ConfigError(
            f"trainable_stages goes with transfer: partial, not with transfer: {policy}; set trainable_stages: null"
        )
    trained = {"frozen": 0, "partial": trainable_stages or 0, "full": len(stages)}[policy]
    for stage in stages[: len(stages) - trained]:
        for layer in stage:
            backbone.body[layer].requires_grad_(False)
            if isinstance(backbone.body[layer], nn.BatchNorm2d):  # ResNet's bn1 is a layer of its own
                holder = nn.ModuleDict({layer: backbone.body[layer]})
                freeze_batch_norms(holder)
                backbone.body[layer] = holder[layer]
            else:
                freeze_batch_norms(backbone.body[layer])
