"""A classification network that is trained to be a detector's backbone."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from detkit.classification.datamodule import ClassificationDataModule, collate_labels
from detkit.classification.pixels import PIXEL_NETWORKS
from detkit.engine.module import TrainableModule
from detkit.errors import ConfigError
from detkit.features.architectures import backbone_names, classification_network
from detkit.features.layers import initialize
from detkit.features.preprocessing import IMAGENET_MEAN, IMAGENET_STD, check_image
from detkit.features.weights import load_classification_weights
from detkit.settings import check_choice
from detkit.types import Batch


class ImageClassifier(TrainableModule):
    """Pre-trains any of the backbones on images with one class each.

    Who has no ImageNet weights begins here, as R-CNN began with a network for ImageNet (section 2.3). Its checkpoint
    is what a detector with the same backbone takes as ``weights``.

    Args:
        class_names: two or more classes. Given by the data set on the command line.
        backbone: alexnet, lenet5, vgg16, resnet18, resnet34, resnet50, resnet101, mobilenet_v2, mobilenet_v3_large,
            squeezenet1_0, tiny, or any other of a detector's; or, for teaching, linear (pixels to class scores) or
            mlp (one hidden layer), which no detector can have and which have no initial weights.
        weights: the initial ones: null (from scratch), DEFAULT, a torchvision weight name, or a local file; a last
            layer of other classes is left out.
        initialization: he or xavier, where it begins from scratch.
        crop_size: pixels a side that every image is stretched to, without antialiasing, as a detector does it; 227
            for AlexNet and 224 for the others in the literature.
        image_mean: per RGB channel, for values from 0 to 1.
        image_std: likewise.
        label_smoothing: share of each label that goes to all classes alike, 0 to 1.
        channels_last: memory format of images and features; quicker for most networks.
        shared: arguments of `TrainableModule`.

    Raises:
        ConfigError: for a single class, an unknown backbone, crops that are too small for it, or weights for
            linear or mlp.
        WeightsError: for weights that do not fit the backbone.
    """

    best_by = ("val/accuracy", "max")

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "lenet5",
        weights: str | None = None,
        initialization: str = "he",
        crop_size: int = 32,
        image_mean: list[float] = list(IMAGENET_MEAN),  # noqa: B006 - never changed
        image_std: list[float] = list(IMAGENET_STD),  # noqa: B006
        label_smoothing: float = 0.0,
        channels_last: bool = False,
        **shared: Any,
    ) -> None:
        super().__init__(class_names, **shared)
        if self.num_classes < 2:
            raise ConfigError(f"a classifier needs two classes or more to tell apart, not only {class_names}")
        if crop_size < 1 or not 0 <= label_smoothing < 1:
            raise ConfigError(
                f"crop_size {crop_size} must be at least 1, label_smoothing {label_smoothing} within 0 and below 1"
            )
        if len(image_mean) != 3 or len(image_std) != 3 or min(image_std) <= 0:
            raise ConfigError(f"image_mean {image_mean} and image_std {image_std} need three values each, std above 0")
        self.crop_size, self.label_smoothing = crop_size, label_smoothing
        check_choice("backbone", backbone, sorted([*backbone_names(), *PIXEL_NETWORKS]))
        if backbone in PIXEL_NETWORKS:
            if weights is not None:
                raise ConfigError(
                    f"backbone {backbone} has no initial weights, got weights {weights!r}: leave them out"
                )
            self.network = PIXEL_NETWORKS[backbone](self.num_classes, crop_size)
        else:
            self.network = classification_network(backbone, self.num_classes)
        if weights is not None:
            loaded: Any = load_classification_weights(self.network, backbone, weights, classify=True)
            self.network.loaded = loaded
        else:
            initialize([self.network], initialization)
        self._check_size(backbone)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)
        self.register_buffer("mean", torch.tensor(image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(image_std).view(3, 1, 1), persistent=False)
        self.confusion = MulticlassConfusionMatrix(self.num_classes)

    def _check_size(self, backbone: str) -> None:
        try:
            with torch.no_grad():
                self.network.eval()(torch.zeros(1, 3, self.crop_size, self.crop_size))
        except RuntimeError as error:
            text = f"crop_size {self.crop_size} is too small for {backbone}, whose maps end up empty"
            raise ConfigError(text) from error
        self.network.train()

    def forward(self, images: list[Tensor]) -> Tensor:
        """Logits (N, K) of uint8 images (3, H_i, W_i); ImageTypeError for anything else."""
        for image in images:
            check_image(image)
        if len({image.shape for image in images}) == 1:
            crops = self._crops(torch.stack(images))
        else:
            crops = torch.cat([self._crops(image[None]) for image in images])
        return self.network(crops.contiguous(memory_format=self.memory_format)).float()

    def _crops(self, images: Tensor) -> Tensor:
        """Normalised and stretched (N, 3, S, S) of uint8 (N, 3, H, W)."""
        pixels = images.to(self.mean.device, non_blocking=True).to(self.mean.dtype)
        pixels = pixels.div_(255).sub_(self.mean).div_(self.std)
        if pixels.shape[2:] != (self.crop_size, self.crop_size):
            pixels = F.interpolate(pixels, size=(self.crop_size,) * 2, mode="bilinear", align_corners=False)
        return pixels

    # -- Lightning -----------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Refuse a data set that has no class for each image by a ConfigError that names those that have."""
        data = getattr(self.trainer, "datamodule", None)
        if data is not None and not isinstance(data, ClassificationDataModule):
            raise ConfigError(
                f"ImageClassifier learns from images with one class each, not from {type(data).__name__}: give --data "
                "ClassFolder or CIFAR10, or --data ObjectCrops for the objects of a detection data set"
            )
        if stage == "predict":
            raise ConfigError("detkit predict is for detectors; ImageClassifier gives them their backbone's weights")

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Leave the batch alone: `forward` moves its images all at once."""
        return batch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The cross-entropy of one batch."""
        loss = self._loss(batch, self.label_smoothing)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and confusions."""
        self.log("val/loss", self._loss(batch), batch_size=len(batch), sync_dist=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and confusions."""
        self._loss(batch)

    def _loss(self, batch: Batch, smoothing: float = 0.0) -> Tensor:
        logits = self([sample["image"] for sample in batch])
        labels = collate_labels(batch).to(logits.device, non_blocking=True)
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        self.loss_guard.watch({"loss": loss}, batch)
        if not self.trainer.training:
            self.confusion.update(logits.argmax(1), labels)
        return loss

    def on_validation_epoch_end(self) -> None:
        """Log the accuracy."""
        self.loss_guard.check()
        self._log_accuracy("val")

    def on_test_epoch_end(self) -> None:
        """Log the accuracy."""
        self._log_accuracy("test")

    def _log_accuracy(self, stage: str) -> None:
        counts = self.confusion.compute().double().cpu()  # (K, K): what it is, what it was taken for
        self.confusion.reset()
        right, total = counts.diagonal(), counts.sum(1)
        per_class = (right / total).tolist()  # NaN for a class without images
        accuracy = float(right.sum() / total.sum())
        self.last_metrics = {
            "accuracy": accuracy,
            "accuracy_per_class": dict(zip(self.class_names, per_class, strict=True)),
            "num_images": int(total.sum()),
            "protocol": "accuracy: the share of images whose class has the highest score",
        }
        # Every rank has computed the same number from all images.
        self.log(f"{stage}/accuracy", accuracy, prog_bar=stage == "val", rank_zero_only=False, sync_dist=False)
