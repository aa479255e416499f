"""What bounds the learning on features: memory, disk, and what an earlier fit has left."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detkit.detectors.rcnn import learning
from detkit.detectors.rcnn.learning import learn_boxes, learn_svms
from detkit.detectors.rcnn.training_regions import ImageRegions
from detkit.heads import BoxRegressors, LinearSVMs, SVMSettings, fit_ridge
from detkit.heads.linear_svm import MEAN_NORM

SETTINGS, RIDGE = SVMSettings(), 10.0
SIZE, CLASSES, OBJECTS = 6, 3, 2


@dataclass
class Given:
    """Features as `RegionFeatures` gives them, of images with two objects and 40 regions that overlap none."""

    folder: Path
    regions: list[ImageRegions]
    features: list[Tensor]

    def fc7(self, index: int) -> Tensor:
        return self.features[index]

    def truth(self, index: int) -> Tensor:
        return self.features[index][:OBJECTS]

    def pool5(self, index: int) -> Tensor:
        return self.features[index][:OBJECTS]

    def pool5_rows(self, rows: Tensor) -> Tensor:
        return torch.cat([self.pool5(i) for i in range(len(self.regions))])[rows]


@pytest.fixture
def features(tmp_path: Path) -> Given:
    generator = torch.Generator().manual_seed(0)
    regions = []
    for i in range(10):
        labels = torch.tensor([1 + i % 2, 3])
        overlaps = torch.zeros(OBJECTS + 40, CLASSES)
        overlaps[torch.arange(OBJECTS), labels - 1] = 1.0
        targets = torch.randn(OBJECTS, 4, generator=generator)
        boxes = torch.zeros(OBJECTS + 40, 4)
        regions.append(ImageRegions(boxes, labels, overlaps, torch.arange(OBJECTS), targets, labels))
    return Given(tmp_path, regions, [torch.randn(OBJECTS + 40, SIZE, generator=generator) for _ in regions])


def test_the_memory_of_an_svm_is_a_number_of_negatives(features: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random features: nearly every negative is hard."""
    whole = learn_svms(features, svms := LinearSVMs(SIZE, CLASSES), SETTINGS)
    mean = torch.cat(features.features).norm(dim=1).mean()
    assert float(svms.scale * mean) == pytest.approx(MEAN_NORM, rel=1e-5)
    monkeypatch.setattr(learning, "SVM_MEMORY", 90 * 24 * SIZE / 1e9)
    few = learn_svms(features, LinearSVMs(SIZE, CLASSES), SETTINGS)
    # Five objects of the first two classes, ten of the third; for each of them eight negatives are kept in any case.
    assert max(line.kept for line in few.log if line.label < 3) == 90
    assert max(line.kept for line in whole.log) > 90
    assert few.capped.any() and not whole.capped.any()


def test_a_disk_on_which_the_mined_cannot_be_written_costs_nothing_else(
    features: Given, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = learn_svms(features, svms := LinearSVMs(SIZE, CLASSES), SETTINGS)
    monkeypatch.setattr(learning, "SAVE_EVERY", 0.0)
    (features.folder / "mining.state" / "in the way").mkdir(parents=True)
    again = learn_svms(features, others := LinearSVMs(SIZE, CLASSES), SETTINGS)
    assert torch.equal(svms.weight, others.weight) and len(again.log) == len(whole.log)
    assert "mining.state cannot be written" in capsys.readouterr().out
    assert not list(features.folder.glob("*.part"))


def test_the_regressor_of_a_class_learns_from_its_examples(features: Given) -> None:
    regressors = BoxRegressors(SIZE, CLASSES)
    assert learn_boxes(features, regressors, RIDGE).tolist() == [5, 5, 10] and regressors.trained.all()
    x = torch.cat([features.pool5(i) for i in range(10)]) * regressors.scale
    targets, classes = (torch.cat([getattr(r, name) for r in features.regions]) for name in ("targets", "classes"))
    for label in (1, 2, 3):
        of_class = classes == label
        expected = fit_ridge(lambda start, end: x[of_class][start:end], targets[of_class], SIZE, RIDGE)  # noqa: B023
        torch.testing.assert_close(regressors.weight[label - 1], expected.weight.float())
        torch.testing.assert_close(regressors.bias[label - 1], expected.bias.float())


def test_a_class_that_has_no_examples_any_more_loses_its_regressor(features: Given) -> None:
    regressors = BoxRegressors(SIZE, CLASSES)
    learn_boxes(features, regressors, RIDGE)
    without = [r._replace(classes=torch.full_like(r.classes, 3)) for r in features.regions]
    learn_boxes(replace(features, regions=without), regressors, RIDGE)
    assert regressors.trained.tolist() == [False, False, True]
