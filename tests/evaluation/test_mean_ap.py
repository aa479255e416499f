"""The metric itself: what it takes, what it refuses, what it keeps."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys

import lightning as L
import pytest
import torch

from detkit.errors import ConfigError, DataError
from detkit.evaluation import MeanAveragePrecision, grouping

PROTOCOLS = ["coco", "voc07", "voc10"]
BOX = [10.0, 10.0, 60.0, 60.0]


def found(*labels: int, dtype: torch.dtype = torch.float32) -> dict:
    return {
        "boxes": torch.tensor([BOX] * len(labels)).reshape(-1, 4).to(dtype),
        "scores": torch.linspace(1, 0.5, len(labels)).to(dtype),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


def target(*labels: int, **fields: object) -> dict:
    boxes = torch.tensor([BOX] * len(labels)).reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64), **fields}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_perfect_detector_and_a_blind_one(protocol: str) -> None:
    for detections, expected in ((found(1), 1.0), (found(), 0.0), (found(1, dtype=torch.bfloat16), 1.0)):
        metric = MeanAveragePrecision(protocol, ["cat"])
        metric.update([detections], [target(1, image_id="a")])
        result = metric.compute()
        assert result["map"].item() == pytest.approx(expected)
        assert result["map_50"].item() == pytest.approx(expected)
        assert (result["map"].shape, result["map_per_class"].shape) == ((), (1,))
        assert {value.dtype for value in result.values() if isinstance(value, torch.Tensor)} - {torch.int64} == {
            torch.float64
        }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("images", [[], [(found(1), target())], [(found(), target())]])
def test_nothing_to_count_is_nan(protocol: str, images: list) -> None:
    metric = MeanAveragePrecision(protocol, ["cat", "dog"])
    metric.update([detections for detections, _ in images], [sample for _, sample in images])
    result = metric.compute()
    assert result["classes"].tolist() == [1, 2]
    tensors = {key: value for key, value in result.items() if isinstance(value, torch.Tensor) and key != "classes"}
    assert len(tensors) > 2
    assert all(value.isnan().all() for value in tensors.values())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_class_without_objects_is_nan_and_not_part_of_the_mean(protocol: str) -> None:
    metric = MeanAveragePrecision(protocol, ["cat", "dog", "cow"])
    metric.update([found(1, 2)], [target(1, 3)])
    result = metric.compute()
    assert result["map_per_class"].tolist() == pytest.approx([1, math.nan, 0], nan_ok=True)
    assert result["map"].item() == pytest.approx(0.5)


def test_without_names_the_labels_that_came_are_the_classes() -> None:
    metric = MeanAveragePrecision()
    metric.update([found(7, 2)], [target(2, 5)])
    for result in (metric.compute(), metric.compute()):  # the second changes nothing
        assert result["classes"].tolist() == [2, 5, 7]
    assert MeanAveragePrecision().compute()["classes"].tolist() == []


def test_an_image_counts_once_by_its_id_and_always_without() -> None:
    metric = MeanAveragePrecision("voc10", ["cat"])
    for image_id in (1, "1", torch.tensor(1), 1):
        metric.update([found(1)], [target(1, image_id=image_id)])
        metric.update([found()], [target(1)])
    # The ids 1 and "1" differ; the four images without id are all counted, and all missed.
    with pytest.warns(UserWarning, match="2 images came again"):
        result = metric.compute()
    assert (result["map"].item(), result["num_images"]) == (pytest.approx(2 / 6), 6)


def test_the_order_of_the_images_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    images = []
    for image_id in [3, "b", 1, "a", 10, 2]:
        detections = found(1, 1, 1)
        detections["boxes"] = detections["boxes"] + torch.randint(0, 12, (3, 4), generator=generator)
        detections["scores"] = torch.tensor([0.5, 0.5, 0.25])
        images.append((detections, target(1, image_id=image_id)))
    results = []
    for order in (images, images[::-1]):
        metric = MeanAveragePrecision("coco", ["cat"])
        for detections, sample in order:
            metric.update([detections], [sample])
        results.append(metric.compute()["map"].item())
    assert results[0] == results[1]
    assert 0 < results[0] < 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("owner", "field"), [("detections", "boxes"), ("detections", "scores"), ("target", "boxes")])
def test_what_is_not_finite_is_refused_by_the_images_id(owner: str, field: str, value: float) -> None:
    detections, sample = found(1), target(1, image_id="007.jpg")
    {"detections": detections, "target": sample}[owner][field][0] = value
    metric = MeanAveragePrecision()
    with pytest.raises(DataError, match=rf"007\.jpg.*{owner}.*{field}.*not finite"):
        metric.update([found(1), detections], [target(1), sample])
    assert metric.parts == []  # nothing of a refused batch is kept


@pytest.mark.parametrize(
    ("detections", "sample", "told"),
    [
        ({"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}, target(image_id=5), r"image 5.*'scores'"),
        (found(1), {"boxes": torch.zeros(1, 4)}, r"without image_id.*target.*'labels'"),
        (found(1), {"labels": torch.ones(1)}, r"target.*'boxes'"),
        (found(1) | {"scores": torch.ones(2)}, target(1), r"1 boxes.*'scores'.*\(2,\)"),
        (found(1), target(1, difficult=torch.zeros(3).bool()), r"1 boxes.*'difficult'.*\(3,\)"),
        (found(1) | {"boxes": torch.zeros(0)}, target(1), r"\(N, 4\)"),
        (found(0), target(1), r"label 0.*1\.\.2"),
        (found(1), target(3), r"label 3.*1\.\.2"),
    ],
)
def test_what_does_not_fit_is_told(detections: dict, sample: dict, told: str) -> None:
    with pytest.raises(DataError, match=told):
        MeanAveragePrecision(class_names=["cat", "dog"]).update([detections], [sample])


def test_the_refused_image_is_named_wherever_it_stands_in_the_batch() -> None:
    batch = [found(1, 1), found(), found(2)], [target(), target(1), target(image_id="third.jpg")]
    batch[0][2]["scores"][0] = math.nan
    with pytest.raises(DataError, match=r"third\.jpg"):
        MeanAveragePrecision().update(*batch)
    batch[0][2]["scores"][0] = 1
    with pytest.raises(DataError, match=r"third\.jpg.*label 2.*1\.\.1"):
        MeanAveragePrecision(class_names=["cat"]).update(*batch)


def test_labels_far_apart_take_no_room() -> None:
    metric = MeanAveragePrecision()
    metric.update([found(5_000_000, 3)], [target(5_000_000)])
    result = metric.compute()
    assert result["classes"].tolist() == [3, 5_000_000]
    assert result["map_by_class"] == {"3": pytest.approx(math.nan, nan_ok=True), "5000000": pytest.approx(1)}


def test_unequally_many_are_told() -> None:
    with pytest.raises(DataError, match="1 detections for 2 targets"):
        MeanAveragePrecision().update([found(1)], [target(1), target(1)])


@pytest.mark.parametrize(
    ("protocol", "options", "told"),
    [
        ("voc12", {}, r"voc12.*coco, voc07, voc10"),
        ("coco", {"hit_rule": ">"}, r"hit_rule is for the protocols voc07 and voc10, not for coco"),
        ("voc07", {"max_detections": [1]}, r"max_detections is for the protocol coco, not for voc07"),
        ("voc10", {"hit_rule": "="}, r"hit_rule must be '>' or '>=', not '='"),
        ("voc10", {"iou_thresholds": [0.5, 1.5]}, r"iou_thresholds must be .* from 0 to 1, not \[0.5, 1.5\]"),
        ("coco", {"iou_thresholds": []}, r"iou_thresholds must be one or more"),
        ("coco", {"iou_thresholds": 0.5}, r"iou_thresholds must be a list of numbers, not 0.5"),
        ("coco", {"max_detections": [0, 10]}, r"max_detections must be .* at least 1"),
        ("coco", {"max_detections": [1.5]}, r"max_detections must be whole numbers"),
        ("coco", {"area_ranges": {}}, r"area_ranges must be names with"),
        ("coco", {"area_ranges": {"all": [10, 5]}}, r"area_ranges must be names with"),
        ("coco", {"area_ranges": [[0, 1]]}, r"area_ranges must be names with"),
        ("coco", {"area_ranges": {"all": [0, 1], "50": [0, 1]}}, r"area_ranges: '50' is no name"),
        ("coco", {"max_detections": [math.inf]}, r"max_detections must be"),
        ("voc07", {"difficult": "drop"}, r"difficult must be 'ignore' or 'count'"),
        ("coco", {"class_names": "cat"}, r"class_names must be a list of different names, not 'cat'"),
        ("coco", {"class_names": ["cat", "cat"]}, r"class_names must be a list of different names"),
    ],
)
def test_settings_that_the_protocol_cannot_have_are_told(protocol: str, options: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        MeanAveragePrecision(protocol, **options)


def test_thresholds_name_what_they_are() -> None:
    def described(protocol: str, *ious: float) -> str:
        return MeanAveragePrecision(protocol, iou_thresholds=ious or None).protocol.description

    assert "IoU 0.50:0.95," in described("coco")
    assert "IoU 0.30, 0.50," in described("coco", 0.5, 0.3)
    assert "IoU > 0.50," in described("voc07")
    assert "IoU > 0.30," in described("voc07", 0.3)
    assert "IoU > 0.50:0.70," in described("voc10", 0.5, 0.55, 0.6, 0.65, 0.7)
    assert "IoU > 0.501," in described("voc10", 0.501)
    other = {"recall_thresholds": [0.0, 0.5], "area_ranges": {"some": [0, 100]}, "difficult": "count"}
    told = MeanAveragePrecision("coco", **other).protocol.description
    assert "recalls 0.00, 0.50, areas from 0 to 100, " in told
    assert "crowd ignored, difficult counted" in told
    for protocol in PROTOCOLS:
        told = MeanAveragePrecision(protocol).compute()["protocol"]
        assert told.startswith(f"{protocol.upper()} (AP at IoU") and "; crowd and difficult ignored)" in told


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_difficult_objects_can_be_counted(protocol: str) -> None:
    sample = target(1, 1, difficult=torch.tensor([False, True]))
    sample["boxes"][1] += 100
    for difficult, expected in (("ignore", 1.0), ("count", 0.5)):
        metric = MeanAveragePrecision(protocol, ["cat"], difficult=difficult)
        metric.update([found(1)], [sample])
        assert metric.compute()["mar_100" if protocol == "coco" else "map"].item() == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("image_id", [True, 1.0, math.nan, ("a", 1), torch.zeros(2)])
def test_ids_are_whole_numbers_or_texts(image_id: object) -> None:
    with pytest.raises(DataError, match="image_id must be a whole number or a text"):
        MeanAveragePrecision().update([found(1)], [target(1, image_id=image_id)])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_any_number_of_threads_finds_the_same(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    metric = MeanAveragePrecision(protocol, [str(k) for k in range(1, 8)])
    for image_id in range(40):
        labels = torch.randint(1, 8, (12,), generator=generator).tolist()
        detections, sample = found(*labels), target(*labels[:6], image_id=image_id)
        detections["boxes"] = detections["boxes"] + torch.randint(0, 30, (12, 4), generator=generator)
        detections["scores"] = torch.randint(0, 5, (12,), generator=generator) / 4
        metric.update([detections], [sample])
    results, used = [], set()
    for threads, rows in ((1, 20_000), (3, 1)):
        monkeypatch.setattr(grouping, "available_cores", lambda threads=threads: threads)
        monkeypatch.setattr(grouping, "ROWS_A_THREAD", rows)
        grouping.for_classes(lambda share, *_: used.add(len(share)), grouping.group_by_class(metric.gathered(), 7))
        results.append(metric.compute()["map_per_class"].tolist())
    assert results[0] == results[1]
    assert used >= {7} and len(used) > 1  # once all seven at once, then shared out


def test_reset_copy_and_pickle() -> None:
    metric = MeanAveragePrecision("coco", ["cat"])
    detections, sample = found(1), target(1, image_id=1)
    metric.update([detections], [sample])
    detections["boxes"].zero_()  # what was taken in is the metric's own
    for same in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), metric):
        assert same.compute()["map"].item() == pytest.approx(1)
        assert same.compute()["map_per_class"].shape == (1,)
    metric.reset()
    assert metric.parts == []
    metric.update([found()], [target(1, image_id=1)])
    assert metric.compute()["map"].item() == 0


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    metric = MeanAveragePrecision("coco", ["cat"])
    metric.update([found(1)], [target(1)])
    metric.compute()
    assert capfd.readouterr().out == ""


def test_lightning_logs_the_scalars() -> None:
    class Judge(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.metric = MeanAveragePrecision("coco", ["cat"])

        def validation_step(self, batch: list, index: int) -> None:
            self.metric.update([found(1)], [target(1, image_id=index)])

        def on_validation_epoch_end(self) -> None:
            self.log_dict(
                {k: v for k, v in self.metric.compute().items() if torch.is_tensor(v) and v.ndim == 0}, prog_bar=True
            )

    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    (logged,) = trainer.validate(Judge(), torch.utils.data.DataLoader([0, 1]), verbose=False)
    assert logged["map"] == pytest.approx(1)
    assert logged["map_50"] == pytest.approx(1)


def test_the_room_does_not_import_what_is_slow() -> None:
    code = "import sys, detkit.evaluation as e; slow = {'torchmetrics', 'pycocotools', 'numba'} & set(sys.modules)"
    code += "; assert not slow, slow; assert 'MeanAveragePrecision' in dir(e); e.MeanAveragePrecision"
    code += "; assert 'pycocotools' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
