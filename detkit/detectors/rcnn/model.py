"""R-CNN (Girshick et al. 2014): every proposal warped to one size and put through the network by itself.

A fit has stages: the network learns to classify warped proposals (softmax), as any LightningModule learns; then
`detkit.detectors.rcnn.stages` trains a linear SVM and a box regressor for each class on its features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor

from detkit.detectors.base import Detector
from detkit.detectors.proposals import GivenProposals, ProposalSettings
from detkit.detectors.rcnn.ablation import Ablation
from detkit.detectors.rcnn.features import FeatureFileSettings
from detkit.detectors.rcnn.stages import RCNNStages
from detkit.engine.optimization import OptimSettings, parameter_groups
from detkit.errors import CheckpointError
from detkit.features import FeatureSettings, ImageBatch, Preprocessing, build_crop_network
from detkit.features.crop_reader import CropReader, CropSettings
from detkit.features.preprocessing import ImageSettings
from detkit.heads import BoxRegressorSettings, CropClassifier, SetLimit, SVMSettings, Variant
from detkit.heads.crop_classifier import Classified
from detkit.heads.detection import DetectionSettings
from detkit.settings import check_range
from detkit.training import cross_entropy, sample_batch
from detkit.types import Batch, Detections


@dataclass(frozen=True)
class CropSamplingSettings:
    """Which proposals a step of fine-tuning learns from.

    Args:
        batch_size: warped proposals of a step, drawn from all its images together.
        positive_fraction: at most this share of them foreground.
        foreground_iou: proposals from this IoU are foreground, the others background.
    """

    batch_size: int = 128
    positive_fraction: float = 0.25
    foreground_iou: float = 0.5

    def __post_init__(self) -> None:
        check_range("sampling.batch_size", self.batch_size, 1)
        check_range("sampling.positive_fraction", self.positive_fraction, 0, 1, open_low=True)
        check_range("sampling.foreground_iou", self.foreground_iou, 0, 1, open_low=True)


class RCNN(Detector):
    """R-CNN; the defaults are those of the paper, except for the backbone (``configs/rcnn`` has its AlexNet).

    Args:
        class_names: the classes, without background. Given by the data set on the command line.
        backbone: a name (alexnet, vgg16, resnet50, lenet5, ...: see `detkit.features.backbone_names`), timm/NAME, or a
            class of your own: {class_path: my_package.MyBackbone, init_args: {...}}.
        weights: the backbone's: null (from scratch), DEFAULT, a torchvision weight name, or a local file.
        features: how the backbone begins and which part of it learns.
        image: size of the image from which the boxes are cropped, as it is by default, and normalisation; the mean is
            also what lies outside of the image.
        proposals: which proposals, and how many of them.
        crop: how a proposal becomes a crop.
        sampling: which proposals a step of fine-tuning learns from.
        optim: SGD of the fine-tuning; from an lr of about 0.005 pre-trained features are soon destroyed.
        head_lr_factor: learning rate of the new layer relative to ``optim.lr``.
        classifier: svm, or softmax (faster: no SVMs are trained).
        box_regression: train and use box regressors.
        svm: how the SVMs learn.
        box: how the box regressors learn.
        feature_files: the features on disk while these learn.
        detection: which proposals become detections; an SVM's score is its margin through a sigmoid, so that 0.5 is the
            separating plane.
        max_per_set: in a test, so many times the number of images is kept of each class over the whole set, before
            suppression; 40 in the paper; null: all. What is beyond it still counts for
            ``detection.max_detections``.
        shared: arguments of `Detector`.

    Raises:
        ConfigError: for an unknown name, or numbers that do not fit together.
        WeightsError: for weights that do not fit the backbone.
    """

    progress_unit = "stage or epoch"
    has_stages = True

    def __init__(
        self,
        class_names: list[str],
        *,
        backbone: str | dict[str, Any] = "resnet50",
        weights: str | None = None,
        features: FeatureSettings = FeatureSettings(),
        image: ImageSettings = ImageSettings(min_size=None, max_size=1000, divisor=1),
        proposals: ProposalSettings = ProposalSettings(),
        crop: CropSettings = CropSettings(),
        sampling: CropSamplingSettings = CropSamplingSettings(),
        optim: OptimSettings = OptimSettings(lr=1e-3),
        head_lr_factor: float = 10.0,
        classifier: str = "svm",
        box_regression: bool = True,
        svm: SVMSettings = SVMSettings(),
        box: BoxRegressorSettings = BoxRegressorSettings(),
        feature_files: FeatureFileSettings = FeatureFileSettings(),
        detection: DetectionSettings = DetectionSettings(score_threshold=0.0, max_candidates=100, nms_threshold=0.3),
        max_per_set: int | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(class_names, Preprocessing(image), optim=optim, **shared)
        check_range("head_lr_factor", head_lr_factor, 0, open_low=True)
        check_range("max_per_set", max_per_set, 1)
        self.given = GivenProposals(proposals)
        self.network = build_crop_network(backbone, crop.size, weights, features)
        if features.channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.reader = CropReader(self.network, crop, features.channels_last)
        sizes = (self.network.pool5_features, self.network.fc7_features)
        self.roi_heads = CropClassifier(*sizes, self.num_classes, classifier, box_regression, detection)
        self.sampling = sampling
        self.head_lr_factor = head_lr_factor
        self.max_per_set = max_per_set
        self.stages = RCNNStages(self.reader, self.roi_heads, self.given, self.detect_variants, svm, box, feature_files)
        self._variant_requested = False

    def fit_notes(self) -> list[str]:
        """A warning where the size of the crops does not suit the network."""
        line = self.network.size_line()
        return [line] if line else []

    def encode(self, batch: Batch) -> ImageBatch:
        """The normalised images: nothing of the network is shared between the boxes of an image."""
        return self.prepare(batch)

    def losses(self, batch: Batch, encoded: ImageBatch | None = None) -> dict[str, Tensor]:
        """``loss_classifier`` over a sample of the batch's proposals, ground truth joined to them (section 2.3)."""
        images = encoded or self.encode(batch)
        rois, labels = self._sample(batch, images)
        crops = [self.reader.crops(images[i], boxes) for i, boxes in enumerate(rois)]
        logits = self.roi_heads(self.network(torch.cat(crops)).fc7)
        self.sampler_stats = {
            "roi_foreground": (labels > 0).sum().float(),
            "roi_background": (labels == 0).sum().float(),
        }
        return {"loss_classifier": cross_entropy(logits, labels, torch.ones_like(labels, dtype=torch.bool))}

    def _sample(self, batch: Batch, images: ImageBatch) -> tuple[list[Tensor], Tensor]:
        return sample_batch(self._proposals(batch, images), *self.targets(batch, images), **asdict(self.sampling))

    def _proposals(self, batch: Batch, images: ImageBatch) -> list[Tensor]:
        """The proposals (P, 4) of each image, in the batch's pixels and on its device."""
        proposals = self.given.of_batch(batch, self.training)
        device = images.tensor.device
        return [images.to_batch(boxes, i).to(device, non_blocking=True) for i, boxes in enumerate(proposals)]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimizer is given; the new layer learns ``head_lr_factor`` times as fast (section 2.3)."""
        groups = []
        for part, factor in ((self.network, self.optim.backbone_lr_factor), (self.roi_heads, self.head_lr_factor)):
            if any(p.requires_grad for p in part.parameters()):
                groups += parameter_groups(part, self.optim, factor)
        return groups

    def detect(self, batch: Batch, encoded: ImageBatch | None = None) -> list[Detections]:
        return self.detect_variants(batch, [self.roi_heads.variant], encoded)[0]

    def detect_variants(
        self,
        batch: Batch,
        variants: list[Variant],
        encoded: ImageBatch | None = None,
        limits: Mapping[Variant, SetLimit] | None = None,
    ) -> list[list[Detections]]:
        """The detections by each variant, from features that are computed once; ``limits`` are updated."""
        images = encoded or self.encode(batch)
        classified: dict[Variant, list[Classified]] = {variant: [] for variant in variants}
        for i, boxes in enumerate(self._proposals(batch, images)):
            features = self.reader.read(images[i], boxes)
            for variant, regions in classified.items():
                regions.append(self.roi_heads.classify(variant, features, boxes))
        limits = limits or {}
        return [self.roi_heads.detect(regions, images, limits.get(v)) for v, regions in classified.items()]

    def configure_callbacks(self) -> list[Callback]:
        return [*super().configure_callbacks(), self.stages]

    def restore_parts(self, checkpoint: dict[str, Any]) -> None:
        self.given.restore(checkpoint)

    def apply_overrides(self, changed: Mapping[str, Any], fit: bool) -> None:
        """Run stages again whose options are changed; require the variant that is requested for a test."""
        super().apply_overrides(changed, fit)
        if fit:
            self.stages.apply_overrides(changed)
        self._variant_requested = not fit and bool({"classifier", "box_regression"} & set(changed))

    def finished_stage(self, checkpoint: dict[str, Any]) -> str:
        return self.stages.finished_stage(checkpoint)

    def prepare_data(self) -> None:
        self.given.prepare_data(self.trainer)

    def setup(self, stage: str) -> None:
        self.given.setup(self.trainer, stage)

    def teardown(self, stage: str) -> None:
        self.given.teardown(self.trainer)

    def on_validation_start(self) -> None:
        if self.trainer.state.fn == "validate":
            self._check_variant()

    def on_predict_start(self) -> None:
        self._check_variant()

    def on_test_start(self) -> None:
        """Compare all variants, which takes little time beside the features."""
        self._check_variant()
        heads = self.roi_heads
        self.ablation = Ablation(heads.variants, heads.variant, self.metric, self.max_per_set)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        ablation = self.ablation
        ablation.update(batch, self.detect_variants(batch, ablation.variants, limits=ablation.limits))

    def on_test_epoch_end(self) -> None:
        """Log the metric, and keep the comparison with the other variants."""
        rows = self.ablation.finish()
        super().on_test_epoch_end()
        if len(rows) > 1:
            self.last_metrics["ablation"] = rows

    def _check_variant(self) -> None:
        requested, used = self.roi_heads.requested, self.roi_heads.variant
        if requested == used:
            return
        if self._variant_requested:
            svm = requested.classifier != used.classifier
            option, parts = ("classifier svm", "SVMs") if svm else ("box_regression true", "box regressors")
            raise CheckpointError(
                f"this checkpoint has no {parts}; train them: detkit fit --ckpt_path RUN --model.{option}"
            )
        self.print(f"{requested} was requested; used is what is trained: {used}")
