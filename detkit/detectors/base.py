"""What the generations share: losses, detections and the metric; and what Fast and Faster R-CNN share besides."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from detkit.data.image_io import as_image
from detkit.detections import Selection
from detkit.detectors.pretrained import Transfer, transfer
from detkit.detectors.sources import Source, read_source, settings_for
from detkit.detectors.tiles import TileSettings, detect_by_tiles
from detkit.detectors.torchvision_files import read_detector
from detkit.engine.checkpoints import find_checkpoint, restore
from detkit.engine.module import TrainableModule
from detkit.engine.summary import field_lines
from detkit.engine.torchvision_detectors import name_in
from detkit.errors import CheckpointError, ConfigError
from detkit.evaluation import MeanAveragePrecision
from detkit.features.backbones import MapSettings, build_backbone
from detkit.features.preprocessing import ImageBatch, ImageSettings, Preprocessing
from detkit.features.roi_pooling import RoIPooler
from detkit.heads.detection import DetectionSettings, Found
from detkit.heads.roi_heads import BoxPredictor, RoIHeads, RoISettings, build_box_head
from detkit.proposals import ProposalBatch, Proposals
from detkit.settings import check_range, construct, nested, to_plain
from detkit.system import keep_freed_memory
from detkit.types import Batch, Detections, Sample, Targets

if TYPE_CHECKING:
    from detkit.data.image_io import ImageLike


class Detector(TrainableModule):
    """Base of R-CNN, Fast R-CNN and Faster R-CNN.

    A generation implements `encode` (one pass over the features), `losses` and `detect`, which take its result and do
    not change whether the module is in training or evaluation mode.

    Args:
        class_names: the classes, without background. Given by the data set on the command line.
        preprocessing: what becomes of the images.
        train_on_difficult: learn difficult objects too; otherwise they are neither object nor background.
        protocol: of the mAP in validation and test: coco, voc07 or voc10.
        init_from: on the command line, the source of the initial weights: a run or checkpoint of ours, a file of
            weights, or torchvision:NAME. Architecture and preprocessing come from it unless they are given, and the
            backbone's ``weights`` are not read. In Python use `from_pretrained`.
        shared: arguments of `TrainableModule`.

    Attributes:
        sampler_stats: what the samplers of the last call of `losses` drew, such as foreground boxes an image; logged.
        tiles: how Lightning's test and predict cut large images; None: they do not.
        pretrained: what was copied from the source, see `from_pretrained`; None: there was no source.
    """

    def __init__(
        self,
        class_names: list[str],
        preprocessing: Preprocessing,
        train_on_difficult: bool = False,
        protocol: str = "coco",
        init_from: str | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(class_names, **shared)
        self.preprocessing = preprocessing
        self.metric = MeanAveragePrecision(protocol=protocol, class_names=self.class_names)
        self.train_on_difficult = train_on_difficult
        self.sampler_stats: dict[str, Tensor] = {}
        self.tiles: TileSettings | None = None
        self.pretrained: Transfer | None = None
        self._unread = init_from

    @classmethod
    def from_pretrained(
        cls, source: str | PathLike[str] | Mapping[str, Tensor], class_names: list[str], **settings: Any
    ) -> Self:
        """A detector that is initialised from another network, to be trained for these classes.

        Every tensor that fits is copied; a table of them is printed, and kept as ``pretrained``. Of the last layers the
        rows of classes with the same names are copied, the others are new.

        Args:
            source: a run's folder or checkpoint of ours, of any generation; ``torchvision:NAME`` of a Faster R-CNN,
                downloaded once; the file of its state dict, or of a classification network's; a checkpoint of
                `ImageClassifier`; or a state dict.
            class_names: without background, in the order of the labels.
            settings: arguments of the constructor; single settings as ``detection__score_threshold=0.5``. Backbone,
                features, preprocessing, anchors, RPN and regions come from the source where they are not given.

        Raises:
            CheckpointError: the source cannot be read or downloaded, or is none of these.
            WeightsError: less than 90 % of the backbone is in it.
            ConfigError: an argument that there is not.
        """
        given = nested(to_plain(settings))
        if given.get("weights") is not None:
            raise ConfigError("weights are the backbone's; from_pretrained copies them from the source: leave them out")
        found = read_source(source, given)
        model = construct(cls, {**settings_for(cls, found, given), "class_names": class_names})
        model.load_source(found)
        return model

    def load_source(self, source: Source) -> None:
        """Copy every tensor of a source that fits, and print the table; see `transfer`."""
        self.pretrained = transfer(self, source)
        rank_zero_only(print)(self.pretrained)
        self.hparams["init_from"], self._unread = self._unread or source.name, None

    # -- what a generation implements ------------------------------------------------------------

    def encode(self, batch: Batch) -> Any:
        """One pass over the features of a batch, to be given to `losses` and `detect`."""
        raise NotImplementedError(f"{type(self).__name__} must implement encode")

    def losses(self, batch: Batch, encoded: Any = None) -> dict[str, Tensor]:
        """Losses by name; their sum is minimised."""
        raise NotImplementedError(f"{type(self).__name__} must implement losses")

    def detect(self, batch: Batch, encoded: Any = None) -> list[Detections]:
        """Detections of each image, in its own pixels, best first."""
        raise NotImplementedError(f"{type(self).__name__} must implement detect")

    def fit_notes(self) -> list[str]:
        """What the user should know of the network, printed at the start of a fit."""
        return []

    # -- shared parts ----------------------------------------------------------------------------

    def forward(self, images: list[Tensor]) -> list[Detections]:
        """Detections of uint8 images (3, H_i, W_i)."""
        return self._named(self.detect([{"image": image} for image in images]))

    @torch.no_grad()
    def predict(
        self,
        images: ImageLike | list[ImageLike],
        score_threshold: float = 0.0,
        batch_size: int = 1,
        classes: Sequence[str] | None = None,
        agnostic_nms: bool = False,
        tiles: int | None = None,
        overlap: float = 0.2,
    ) -> Detections | list[Detections]:
        """Detect objects. On a CPU with glibc the process keeps freed memory from then on, see `keep_freed_memory`.

        Args:
            images: a path, PIL image, uint8 RGB array (H, W, 3) or uint8 tensor (3, H, W), or a list of them.
            score_threshold: leave out detections with a lower score (0-1); the model's own threshold holds besides.
            batch_size: images that go through the network together.
            classes, agnostic_nms: see `Selection`.
            tiles, overlap: see `TileSettings`; without ``tiles`` images are not cut.

        Returns:
            Of each image ``boxes`` (N, 4) in its own pixels, ``scores`` (N,) and ``labels`` (N,) from 1, best first.

        Raises:
            ImageTypeError, DataError: for an image that is none, or cannot be read.
            ConfigError: a class that there is not, or a number out of its range.
        """
        selection = Selection(score_threshold, classes, agnostic_nms)
        selection.labels(self.class_names)
        settings = None if tiles is None else TileSettings(tiles, overlap)
        if self.device.type == "cpu":
            keep_freed_memory()
        check_range("batch_size", batch_size, 1)
        many = isinstance(images, list | tuple)
        inputs = list(images) if many else [images]
        modes = [(module, module.training) for module in self.modules()]
        results = []
        self.eval()
        try:
            for start in range(0, len(inputs), batch_size):
                batch: Batch = [{"image": as_image(image)} for image in inputs[start : start + batch_size]]
                for found in self.detect(batch) if settings is None else detect_by_tiles(self.detect, batch, settings):
                    kept = selection(found, self.class_names)
                    fields = {name: values.cpu() for name, values in kept.items()}
                    results.append(Detections(fields, self.class_names, self.category_ids))
        finally:
            for module, training in modes:  # one by one: parts may be fixed while others learn
                module.training = training
        return results if many else results[0]

    def prepare(self, batch: Batch) -> ImageBatch:
        """Resize, normalise and batch the images, on the module's device."""
        return self.preprocessing([sample["image"] for sample in batch])

    def targets(self, batch: Batch, images: ImageBatch) -> Targets:
        """What is to be found; crowds, and difficult objects unless ``train_on_difficult``, are ignore boxes."""
        device = images.tensor.device
        targets = Targets([], [], [])
        for i, sample in enumerate(batch):
            ignored = sample["crowd"] if self.train_on_difficult else sample["crowd"] | sample["difficult"]
            boxes = images.to_batch(sample["boxes"], i)
            targets.boxes.append(boxes[~ignored].to(device, non_blocking=True))
            targets.labels.append(sample["labels"][~ignored].to(device, non_blocking=True))
            targets.ignore_boxes.append(boxes[ignored].to(device, non_blocking=True))
        return targets

    def network_view(self, batch: Batch) -> list[Sample]:
        """The images of a batch, resized and with the values that the network can tell apart, and their boxes."""
        images = self.prepare(batch)
        mean, std = (values.float() for values in (self.preprocessing.mean, self.preprocessing.std))
        return [
            {
                **sample,
                "image": ((images[i].float() * std + mean) * 255).round().clamp(0, 255).byte().cpu(),
                "boxes": images.to_batch(sample["boxes"], i).cpu(),
            }
            for i, sample in enumerate(batch)
        ]

    @property
    def protocol_description(self) -> str:
        """The protocol of the mAP, in a few words."""
        return str(self.metric.protocol)

    # -- Lightning -------------------------------------------------------------------------------

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move the images only: annotations are small, and sorting them on the host spares waits for the device."""
        return [
            {**sample, "image": sample["image"].to(device, non_blocking=True)} if "image" in sample else sample
            for sample in batch
        ]

    def on_fit_start(self) -> None:
        if self._unread is not None and self.trainer.ckpt_path is None:
            raise ConfigError(f"init_from {self._unread!r} was not read: use {type(self).__name__}.from_pretrained")
        super().on_fit_start()
        for line in self.fit_notes():
            self.print(line)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = self.losses(batch, self.encode(batch))
        self.loss_guard.watch(losses, batch)
        # Losses of parts that are fixed for now (alternating training) are only logged.
        total = torch.stack([loss for loss in losses.values() if loss.requires_grad]).sum()
        if self.logs_this_step:
            values = {f"train/{name}": value.detach() for name, value in (losses | self.sampler_stats).items()}
            self.log_dict(values, batch_size=len(batch))
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=len(batch))
        return total

    def validation_step(self, batch: Batch, batch_idx: int) -> list[Detections]:
        """Log the losses and count the detections, which callbacks are given."""
        encoded = self.encode(batch)
        losses = self.losses(batch, encoded)
        self.loss_guard.watch(losses, batch)
        values = {f"val/{name}": value for name, value in losses.items()}
        values["val/loss"] = torch.stack(list(losses.values())).sum()
        self.log_dict(values, batch_size=len(batch), sync_dist=True)
        found = self.detect(batch, encoded)
        self.metric.update(found, batch)
        return found

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.metric.update(self._detect(batch), batch)

    def _detect(self, batch: Batch) -> list[Detections]:
        """`detect`, by `tiles` if there are."""
        return self.detect(batch) if self.tiles is None else detect_by_tiles(self.detect, batch, self.tiles)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Detections | None]:
        """Detections of each image; None for one that cannot be read."""
        readable = [sample for sample in batch if "image" in sample]
        found = iter(self._named(self._detect(readable)) if readable else [])
        return [next(found) if "image" in sample else None for sample in batch]

    def _named(self, found: list[Detections]) -> list[Detections]:
        """Detections that know the names and ids of their classes."""
        return [Detections(each, self.class_names, self.category_ids) for each in found]

    def on_validation_epoch_end(self) -> None:
        self.loss_guard.check()
        self._log_metric("val")

    def on_test_epoch_end(self) -> None:
        self._log_metric("test")

    def _log_metric(self, stage: str) -> None:
        result = self.metric.compute()
        # For the report of a test; validation only wants the numbers.
        self.last_evaluated = self.metric.evaluated if stage == "test" else None
        self.metric.reset()
        scalars = {k: v for k, v in result.items() if isinstance(v, Tensor) and v.ndim == 0}
        limits = self.metric.protocol.max_detections
        self.last_metrics = {
            **{k: v.item() for k, v in scalars.items()},
            "map_per_class": result["map_by_class"],
            **{k: result[k] for k in ("num_images", "num_over_limit", "protocol")},
            "max_detections": limits[-1] if limits else None,
        }
        values = {f"{stage}/{k}": v.float() for k, v in scalars.items()}
        if stage == "val":
            names = log_names(self.class_names)
            per_class = zip(names, result["map_by_class"].values(), strict=True)
            values |= {f"val/map_class/{name}": torch.tensor(float(ap)) for name, ap in per_class}
        # Every rank has computed the same numbers from all images.
        self.log_dict(values, prog_bar=False, rank_zero_only=False, sync_dist=False)


def log_names(class_names: Sequence[str]) -> list[str]:
    """The classes' names as a log can hold them: letters, digits, "-", "_" and "."; different ones stay different."""
    names: list[str] = []
    for label, name in enumerate(class_names, start=1):
        safe = re.sub(r"[^\w.-]+", "_", name)
        names.append(f"{safe}_{label}" if safe in names or safe in class_names[label:] else safe)
    return names


class Encoded(NamedTuple):
    """One pass over a batch: the images as the network sees them, and its feature maps."""

    images: ImageBatch
    features: list[Tensor]


class RegionDetector(Detector):
    """Base of Fast and Faster R-CNN, which say where proposals come from (`propose`).

    Features are computed once for an image; every proposal is pooled from them, classified and refined. The defaults
    are torchvision's (the ``modern`` preset); ``configs`` holds those of the papers.

    Args:
        class_names: the classes, without background. Given by the data set on the command line.
        backbone: a name (resnet50, vgg16, mobilenet_v2, ...: see `detkit.features.backbone_names`), timm/NAME, or a
            class of your own: {class_path: my_package.MyBackbone, init_args: {...}}.
        weights: the backbone's: null (from scratch), DEFAULT, a torchvision weight name, or a local file. `init_from`
            initialises the whole detector.
        features: how the backbone is read, and which part of it learns.
        image: size and normalisation of the images.
        roi: pooling, head, sampling and losses of the regions.
        detection: which regions become detections.
        shared: arguments of `Detector`.

    Raises:
        ConfigError: for an unknown name, or numbers that do not fit together.
        WeightsError: for weights that do not fit the backbone.
    """

    def __init__(
        self,
        class_names: list[str],
        *,
        backbone: str | dict[str, Any] = "resnet50",
        weights: str | None = None,
        features: MapSettings = MapSettings(),
        image: ImageSettings = ImageSettings(),
        roi: RoISettings = RoISettings(),
        detection: DetectionSettings = DetectionSettings(),
        **shared: Any,
    ) -> None:
        super().__init__(class_names, Preprocessing(image, features.channels_last), **shared)
        self.backbone, top = build_backbone(backbone, weights, features)
        self.build_rpn()
        head, head_features = build_box_head(roi, self.backbone.channels[0], top, features.initialization)
        # The pyramid's last level is a subsampled copy for large anchors; regions are not read from it.
        strides = self.backbone.strides[: len(self.backbone.levels)]
        pooler = RoIPooler(roi.pooling, roi.pool_size, strides, roi.sampling_ratio)
        predictor = BoxPredictor(head_features, self.num_classes)
        self.roi_heads = RoIHeads(pooler, head, predictor, roi, detection)
        if features.channels_last:
            self.to(memory_format=torch.channels_last)

    # -- what a generation implements ------------------------------------------------------------

    def build_rpn(self) -> None:
        """Build the network that proposes, if there is one: between backbone and second stage, in their order."""

    def propose(self, batch: Batch, encoded: Any) -> Sequence[Proposals]:
        """Where the objects of each image may be, in the batch's pixels."""
        raise NotImplementedError(f"{type(self).__name__} must implement propose")

    def proposal_losses(self, encoded: Any, targets: Targets) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses of what proposes, if it learns, and its sampler's statistics."""
        return {}, {}

    # -- shared parts ----------------------------------------------------------------------------

    def backbone_parts(self) -> list[nn.Module]:
        """The backbone's body, and its last layers where they are the head."""
        return [self.backbone.body, *([self.roi_heads.box_head] if self.roi_heads.settings.head == "top" else [])]

    def encode(self, batch: Batch) -> Encoded:
        return self.encode_images(self.prepare(batch))

    def encode_images(self, images: ImageBatch) -> Encoded:
        """One pass over the features of prepared images."""
        return Encoded(images, self.backbone(images.tensor))

    def losses(self, batch: Batch, encoded: Any = None) -> dict[str, Tensor]:
        """``loss_classifier`` and ``loss_box_reg`` of a batch of samples, after the losses of what proposes."""
        encoded = encoded or self.encode(batch)
        targets = self.targets(batch, encoded.images)
        losses, stats = self.proposal_losses(encoded, targets)
        proposals = self.propose(batch, encoded)
        roi_losses, roi_stats = self.roi_heads.losses(encoded.features, proposals, targets)
        self.sampler_stats = stats | roi_stats
        return losses | roi_losses

    def detect(self, batch: Batch, encoded: Any = None) -> list[Detections]:
        return self.find(batch, encoded or self.encode(batch)).per_image()

    def find(self, batch: Batch, encoded: Any) -> Found:
        """As `detect`, of all images together."""
        regions = ProposalBatch.of(self.propose(batch, encoded)).regions()
        return self.roi_heads.detect(encoded.features, regions, encoded.images)

    def feature_lines(self) -> list[str]:
        """A line for each feature map: stride and receptive field."""
        return field_lines(self.backbone)


def load(path: str | PathLike[str], device: str = "cpu") -> Detector:
    """The detector, in eval mode, of a run's folder (its best checkpoint, else its last) or of a file.

    Args:
        path: such as ``runs/demo`` or ``runs/demo/version_0/checkpoints/best.ckpt``; one of torchvision's Faster R-CNNs
            for COCO, as ``torchvision:NAME`` (downloaded once) or as the file of its state dict.
        device: where to put it.

    Raises:
        CheckpointError: if there is no checkpoint, it cannot be read, or it is not one of a detector.
        ConfigError: torchvision has no detector of that name.
    """
    file = path if name_in(path) is not None else find_checkpoint(path).path
    model = restore(read_detector(file), source=str(file))
    if not isinstance(model, Detector):
        raise CheckpointError(f"{file}: holds a {type(model).__name__}, which is no detector")
    return model.to(device).eval()
