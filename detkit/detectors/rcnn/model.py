"""R-CNN (Girshick et al. 2014): every proposal warped to one size and put through the network by itself.

A fit has stages: the network learns to classify warped proposals (softmax), as any LightningModule learns; then
`detkit.detectors.rcnn.stages` trains a linear SVM and a box regressor for each class on its features.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from detkit.errors import CheckpointError, ConfigError
from detkit.features import FeatureSettings, ImageBatch, Preprocessing, build_crop_network
from detkit.features.crop_reader import CropReader, CropSettings
from detkit.features.preprocessing import ImageSettings
from detkit.heads import BoxRegressorSettings, CropClassifier, SetLimit, SVMSettings, Variant
from detkit.heads.detection import DetectionSettings
from detkit.training import cross_entropy, sample_batch
from detkit.types import Batch, Detections


class RCNN(Detector):
    """R-CNN: fine-tuned network, linear SVMs and box regressors, in one fit.

    The defaults are those of the paper, but for the backbone; ``configs/rcnn`` holds its AlexNet.

    Args:
        class_names: the classes, without background. Given by the data set on the command line.
        backbone: alexnet, vgg16, lenet5, resnet18, resnet34, resnet50, resnet101, mobilenet_v2, mobilenet_v3_large,
            squeezenet1_0 or tiny.
        weights: the backbone's: null (from scratch), DEFAULT, a torchvision weight name, or a local file.
        transfer: which part of the backbone learns: frozen, partial or full.
        trainable_stages: with ``partial``: how many of the last stages.
        freeze_batch_norm: batch norms are a fixed scale and shift.
        initialization: he or xavier, for what is trained from scratch.
        channels_last: memory format of crops and features; quicker for most networks.
        crop_size: pixels a side of a warped proposal; 227 for the paper's AlexNet, 224 for most, 32 for lenet5.
        crop_mode: warp (each axis by itself), square (the smallest square around the box), or square_masked (the same
            square, without the image around the box and its context in it).
        context: pixels of context around the box, in the crop; 16 in the paper, for 227.
        min_size: the shorter side to which an image is resized once, before its boxes are cropped; null: as it is.
        max_size: limit of its longer side, with ``min_size``.
        image_mean: per RGB channel, for values from 0 to 1; also what lies outside of the image.
        image_std: likewise.
        proposals: which proposals, and how many of them.
        batch_regions: warped proposals of a training batch, drawn from all its images together.
        positive_fraction: at most this share of them foreground.
        foreground_iou: in fine-tuning, proposals from this IoU are foreground, the others background.
        lr: learning rate of SGD in fine-tuning; with 0.005 and more, pre-trained features are soon destroyed, since the
            new layer's rate is ``head_lr_factor`` times as large.
        head_lr_factor: learning rate of the new layer relative to ``lr``.
        classifier: svm, or softmax (the quick variant: no SVMs are trained).
        box_regression: train and use box regressors.
        svm_c: weight of the hinge losses.
        svm_positive_weight: of the positives' among them.
        svm_negative_iou: boxes below this IoU with all objects of a class are its negatives.
        svm_passes: over the training images, mining hard negatives; one that finds none is the last.
        box_min_iou: the regressors learn from proposals above this IoU.
        box_lambda: of the ridge regression.
        feature_budget: GB on disk that features may take while the SVMs learn; if those of all proposals do not fit,
            they are computed again in each pass.
        keep_features: leave them there after the fit.
        crop_memory: GB that the crops of one pass through the network, and what it makes of them, may take; null: 1, on
            a CPU 0.05, where larger passes take longer.
        bf16: read features in bfloat16, or in the weights' type, whatever the trainer's precision; null: in bfloat16
            where the device has it.
        score_threshold: detections with a lower score (a softmax's probability, or an SVM's margin through a sigmoid:
            0.5 is the separating plane) are dropped.
        max_candidates: best detections of each class and image that enter suppression; null: all.
        max_per_set: in a test, so many times the number of images is kept of each class over the whole set, before
            suppression; 40 in the paper; null: all. What is beyond it still counts towards ``max_detections``.
        nms_threshold: IoU within a class above which the lower detection is suppressed.
        max_detections: of an image.
        shared: arguments of `Detector`.

    Raises:
        ConfigError: for an unknown name, or numbers that do not fit together.
        WeightsError: for weights that do not fit the backbone.
    """

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet50",
        weights: str | None = None,
        transfer: str = "full",
        trainable_stages: int | None = None,
        freeze_batch_norm: bool = False,
        initialization: str = "he",
        channels_last: bool = False,
        crop_size: int = 224,
        crop_mode: str = "warp",
        context: int = 16,
        image: ImageSettings = ImageSettings(min_size=None, max_size=1000, divisor=1),
        proposals: ProposalSettings = ProposalSettings(),
        batch_regions: int = 128,
        positive_fraction: float = 0.25,
        foreground_iou: float = 0.5,
        optim: OptimSettings = OptimSettings(lr=1e-3),
        head_lr_factor: float = 10.0,
        classifier: str = "svm",
        box_regression: bool = True,
        svm_c: float = 1e-3,
        svm_positive_weight: float = 2.0,
        svm_negative_iou: float = 0.3,
        svm_passes: int = 1,
        box_min_iou: float = 0.6,
        box_lambda: float = 1000.0,
        feature_budget: float = 50.0,
        keep_features: bool = False,
        crop_memory: float | None = None,
        bf16: bool | None = None,
        score_threshold: float = 0.0,
        max_candidates: int | None = 100,
        max_per_set: int | None = None,
        nms_threshold: float = 0.3,
        max_detections: int = 100,
        **shared: Any,
    ) -> None:
        super().__init__(class_names, Preprocessing(image), optim=optim, **shared)
        if batch_regions < 1 or not 0 < positive_fraction <= 1:
            raise ConfigError(f"batch_regions {batch_regions} must be 1 or more, positive_fraction in (0, 1]")
        if not 0 < foreground_iou <= 1 or head_lr_factor <= 0:
            raise ConfigError(f"foreground_iou {foreground_iou} must be in (0, 1], head_lr_factor above 0")
        if max_per_set is not None and max_per_set < 1:
            raise ConfigError(f"max_per_set {max_per_set} must be at least 1")
        self.given = GivenProposals(proposals)
        crop = CropSettings(crop_size, crop_mode, context, crop_memory, bf16)
        features = FeatureSettings(transfer, trainable_stages, freeze_batch_norm, initialization, channels_last)
        self.network = build_crop_network(backbone, crop_size, weights, features)
        if channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.roi_heads = CropClassifier(
            self.network.pool5_features,
            self.network.fc7_features,
            self.num_classes,
            classifier,
            box_regression,
            DetectionSettings(score_threshold, max_candidates, nms_threshold, max_detections),
        )
        self.reader = CropReader(self.network, crop, channels_last)
        self.sampling = {
            "foreground_iou": foreground_iou,
            "batch_size": batch_regions,
            "positive_fraction": positive_fraction,
        }
        self.head_lr_factor, self.max_per_set = head_lr_factor, max_per_set
        self.stages = RCNNStages(
            self.reader,
            self.roi_heads,
            self.detect_variants,
            self.given.of_first,
            proposals.max_boxes[0],
            SVMSettings(svm_c, svm_positive_weight, svm_negative_iou, svm_passes),
            BoxRegressorSettings(box_min_iou, box_lambda),
            FeatureFileSettings(feature_budget, keep_features),
        )
        self._variant_requested = False

    def feature_lines(self) -> list[str]:
        """A warning where the size of the crops does not suit the network."""
        line = self.network.size_line()
        return [line] if line else []

    def prepare_data(self) -> None:
        """Compute the proposals that are missing."""
        self.given.prepare_data(self.trainer)

    def setup(self, stage: str) -> None:
        """Give the data set's samples their proposals."""
        self.given.setup(self.trainer, stage)

    def teardown(self, stage: str) -> None:
        """Take the proposals back."""
        self.given.teardown(self.trainer)

    # -- fine-tuning ---------------------------------------------------------------------------

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
        proposals = self.given.of_batch(batch, self.training)
        proposals = [images.to_batch(boxes, i).to(images.tensor.device) for i, boxes in enumerate(proposals)]
        return sample_batch(proposals, *self.targets(batch, images), **self.sampling)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What SGD is given; the new layer learns ``head_lr_factor`` times as fast (section 2.3)."""
        groups = []
        for part, factor in ((self.network, 1.0), (self.roi_heads, self.head_lr_factor)):
            if any(p.requires_grad for p in part.parameters()):
                groups += parameter_groups(part, self.optim, factor)
        return groups

    # -- detection -----------------------------------------------------------------------------

    def detect(self, batch: Batch, encoded: ImageBatch | None = None) -> list[Detections]:
        """Detections of each image of a batch of samples."""
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
        results: list[list[Detections]] = [[] for _ in variants]
        for i, boxes in enumerate(self.given.of_batch(batch, self.training)):
            boxes = images.to_batch(boxes, i).to(images.tensor.device)
            features = self.reader.read(images[i], boxes)
            for variant, detections in zip(variants, results, strict=True):
                limit = (limits or {}).get(variant)
                detections.append(self.roi_heads.detect(variant, features, boxes, images, i, limit))
        return results

    # -- stages and ablation ---------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """The stages after fine-tuning."""
        return [self.stages]

    def apply_overrides(self, changed: Mapping[str, Any], fit: bool) -> None:
        """Run the stages that depend on changed options again; or insist on the variant that is asked for."""
        super().apply_overrides(changed, fit)
        if fit:
            self.stages.apply_overrides(changed)
        self._variant_requested = not fit and bool({"classifier", "box_regression"} & set(changed))

    def finished_stage(self, checkpoint: dict[str, Any]) -> str:
        """The last stage after fine-tuning that a checkpoint has finished; "" if none."""
        return self.stages.finished_stage(checkpoint)

    def on_validation_start(self) -> None:
        """Report a variant that was requested and is not trained."""
        if self.trainer.state.fn == "validate":
            self._check_variant()

    def on_predict_start(self) -> None:
        """Report a variant that was requested and is not trained."""
        self._check_variant()

    def on_test_start(self) -> None:
        """Compare all variants, which takes little time beside the features."""
        self._check_variant()
        heads = self.roi_heads
        self.ablation = Ablation(heads.variants, heads.variant, self.metric, self.max_per_set)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Detections by each variant for its metric."""
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
