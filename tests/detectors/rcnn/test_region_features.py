"""Features on disk: what fits the budget, what a stop leaves, and the same SVMs whether they are there or not."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from detkit.data import Shapes
from detkit.data.dataset import DetectionDataset
from detkit.data.loaders import make_own_loader
from detkit.detectors.rcnn import region_features, region_learning
from detkit.detectors.rcnn.region_features import RegionFeatures, digest
from detkit.detectors.rcnn.region_learning import learn_boxes, learn_svms
from detkit.detectors.rcnn.training_regions import TrainingRegions
from detkit.errors import ConfigError, DataError
from detkit.features import CropFeatures
from detkit.heads import BoxRegressors, HardNegativeMiner, LinearSVMs

from .rcnn_parts import STAGE_SETTINGS, proposals_for

POOL5, FC7 = 40, 24
SETTINGS = replace(STAGE_SETTINGS, svm_c=0.002, svm_passes=2)


class Network:
    """Features by a fixed rule of pixels and boxes, and how many regions were read."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.matrix = torch.randn(4 + 27, POOL5 + FC7, generator=generator)
        self.read: list[int] = []

    def __call__(self, sample: dict[str, Any], boxes: Tensor) -> CropFeatures:
        self.read.append(len(boxes))
        pixels = torch.nn.functional.adaptive_avg_pool2d(sample["image"].float() / 255, 3).flatten()
        x = torch.cat((boxes / 64, pixels.expand(len(boxes), -1)), dim=1) @ self.matrix
        return CropFeatures(*x.relu().split([POOL5, FC7], dim=1))


@pytest.fixture(scope="module")
def regions(shapes: Callable[..., Shapes]) -> TrainingRegions:
    annotations = shapes().annotations("train")
    return TrainingRegions(annotations, proposals_for(annotations), 5, None, False, 0.6)


@pytest.fixture
def make(regions: TrainingRegions, tmp_path: Path) -> Callable[..., RegionFeatures]:
    """`make(budget, filled=True)` -> the features in one folder, with `.network` that says what was computed."""

    def build(budget: float = 1.0, filled: bool = True, network: Any = None) -> RegionFeatures:
        network, dataset = network or Network(), DetectionDataset(regions.annotations)
        found = RegionFeatures(regions, dataset, network, (POOL5, FC7), tmp_path / "deep/features", budget)
        found.network = network
        if filled:
            found.fill(lambda part: make_own_loader(part, 0), show=False)
        return found

    return build


def bytes_of(regions: TrainingRegions) -> tuple[int, int]:
    """What ground truth and examples take, and what everything takes, in half precision."""
    least = most = 0
    for i in range(len(regions)):
        found = regions[i]
        least += 2 * (len(found.labels) * FC7 + len(found.examples) * POOL5)
        most += 2 * (len(found.boxes) * FC7 + len(found.examples) * POOL5)
    return least, most


def images_of(regions: TrainingRegions) -> Dataset:
    return DetectionDataset(regions.annotations)


def test_everything_where_the_budget_holds_it(regions: TrainingRegions, make: Callable[..., RegionFeatures]) -> None:
    least, most = bytes_of(regions)
    features = make(most / 1e9)
    assert features.complete and features.bytes == most
    known = RegionFeatures(regions, None, None, (POOL5, FC7), features.folder, most / 1e9, counts=features.counts)
    assert known.complete and known.bytes == most
    assert features.network.read == [len(regions[i].boxes) for i in range(8)]
    exact = Network()
    for i in range(8):
        found = exact(images_of(regions)[i], regions[i].boxes)
        assert features.fc7(i).dtype == features.pool5(i).dtype == torch.float16
        assert torch.equal(features.fc7(i), found.fc7.half())
        assert torch.equal(features.truth(i), found.fc7[: len(regions[i].labels)].half())
        assert torch.equal(features.pool5(i), found.pool5[regions[i].examples].half())
    assert len(features.network.read) == 8  # all of that came from the disk
    written = sum(path.stat().st_size for path in features.folder.iterdir())
    assert most <= written <= most + 8 * 3 * 128  # and npy's headers
    assert least < most


def test_otherwise_ground_truth_and_the_regressors_examples(
    regions: TrainingRegions, make: Callable[..., RegionFeatures]
) -> None:
    least, most = bytes_of(regions)
    features = make((most - 1) / 1e9)
    assert not features.complete and features.bytes == least
    assert features.network.read == [len(regions[i].labels) + len(regions[i].examples) for i in range(8)]
    exact = Network()
    for i in range(8):
        found = exact(images_of(regions)[i], regions[i].boxes)
        torch.testing.assert_close(features.truth(i), found.fc7[: len(regions[i].labels)].half())
        torch.testing.assert_close(features.pool5(i), found.pool5[regions[i].examples].half())
        torch.testing.assert_close(features.fc7(i), found.fc7.half())
    assert features.network.read[8:] == [len(regions[i].boxes) for i in range(8)]  # computed again
    assert sum(path.stat().st_size for path in features.folder.iterdir()) <= least + 8 * 3 * 128


def test_a_budget_that_holds_nothing_useful(regions: TrainingRegions, make: Callable[..., RegionFeatures]) -> None:
    least, _ = bytes_of(regions)
    assert not make(least / 1e9, filled=False).complete
    told = rf"feature_budget .* GB: the box regressors' examples alone take {re.escape(f'{least / 1e9:.3g}')} GB"
    with pytest.raises(ConfigError, match=told):
        make((least - 1) / 1e9, filled=False)


def test_a_disk_that_is_too_small(make: Callable[..., RegionFeatures], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(ConfigError, match=r"deep/features: the features take .* larger disk, or lower feature_budget"):
        make()


@pytest.mark.parametrize("budget", ["all", "least"])
def test_what_is_there_is_not_computed_again(
    regions: TrainingRegions, make: Callable[..., RegionFeatures], budget: str
) -> None:
    size = bytes_of(regions)[budget == "all"] / 1e9
    stopped = Network()

    def killed(sample: dict[str, Any], boxes: Tensor) -> CropFeatures:
        if len(stopped.read) == 3:
            raise InterruptedError("killed")
        return stopped(sample, boxes)

    with pytest.raises(InterruptedError):
        make(size, network=killed)
    again = make(size, filled=False)
    (again.folder / "000003.part").write_bytes(b"half a file")
    assert again.todo == [3, 4, 5, 6, 7]
    again.fill(lambda part: make_own_loader(part, 0), show=False)
    assert len(again.network.read) == 5
    files = {path.name: path.read_bytes() for path in again.folder.iterdir()}
    shutil.rmtree(again.folder)
    whole = make(size)
    assert files == {path.name: path.read_bytes() for path in whole.folder.iterdir()} and len(files) == 8


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "archive", "gone"])
def test_a_damaged_file_is_named(make: Callable[..., RegionFeatures], damage: str) -> None:
    features = make()
    path = features.folder / "000002.features"
    content = path.read_bytes()
    new = {"cut": content[:300], "empty": b"", "garbage": b"x" * 500, "archive": b"PK\x03\x04" + content}
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(new[damage])
    with pytest.raises(DataError, match=r"000002\.features: cannot be read .* delete it and go on with the fit"):
        features.pool5(2)
    path.unlink(missing_ok=True)
    make(network=features.network)
    assert path.read_bytes() == content and len(features.network.read) == 9


def test_the_same_svms_and_regressors_with_fc7_on_disk_and_without(
    regions: TrainingRegions, make: Callable[..., RegionFeatures]
) -> None:
    least, most = bytes_of(regions)
    learnt = []
    for size, complete in ((most, True), (least, False)):
        features = make(size / 1e9)
        assert features.complete == complete
        svms, boxes = LinearSVMs(FC7, 5), BoxRegressors(POOL5, 5)
        miner = learn_svms(features, svms, SETTINGS)
        counts = learn_boxes(features, boxes, SETTINGS.box_lambda)
        learnt.append((svms.state_dict(), boxes.state_dict(), len(miner.rows), counts.tolist()))
        shutil.rmtree(features.folder)
    (svms, boxes, negatives, counts), others = learnt
    present = torch.bincount(torch.cat([regions[i].labels for i in range(8)]) - 1, minlength=5) > 0
    assert torch.equal(svms["trained"], present) and torch.equal(boxes["trained"], present) and present.sum() > 1
    assert negatives == others[2] > 0 and counts == others[3]
    assert svms["weight"][present].abs().amax(1).min() > 0 and boxes["weight"][present].abs().amax((1, 2)).min() > 0
    for ours, theirs in ((svms, others[0]), (boxes, others[1])):
        for name, value in ours.items():
            torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-6)


def test_positives_are_ground_truth_and_negatives_what_lies_apart(
    regions: TrainingRegions, make: Callable[..., RegionFeatures]
) -> None:
    """Beside scikit-learn's SVM on all examples at once."""
    from sklearn.svm import LinearSVC

    features, svms = make(), LinearSVMs(FC7, 5)
    learn_svms(features, svms, replace(SETTINGS, svm_passes=20))  # until no negative is hard
    every = torch.cat([features.fc7(i).float() for i in range(8)])
    # No image has more than 200 regions: all of them count for the mean norm.
    assert float(svms.scale * every.norm(dim=1).mean()) == pytest.approx(20, rel=1e-4)
    found = [regions[i] for i in range(8)]
    for k in torch.where(svms.trained)[0].tolist():
        is_truth = torch.cat([torch.arange(len(r.boxes)) < len(r.labels) for r in found])
        own = torch.cat([torch.nn.functional.pad(r.labels == k + 1, (0, len(r.boxes) - len(r.labels))) for r in found])
        apart = torch.cat([r.overlaps[:, k] for r in found]) < 0.3
        assert (is_truth & apart).any()  # other classes' ground truth are negatives too
        x = (every * svms.scale)[own | apart].double().numpy()
        y = own[own | apart].numpy()
        svc = LinearSVC(
            loss="hinge", C=SETTINGS.svm_c, class_weight={1: 2.0}, intercept_scaling=10, tol=1e-5, max_iter=1_000_000
        ).fit(x, y)

        def cost(w: np.ndarray, b: float, x: np.ndarray = x, y: np.ndarray = y) -> float:
            hinge = np.maximum(0, 1 - np.where(y, 1, -1) * (x @ w + b)) * np.where(y, 2, 1)
            return float(SETTINGS.svm_c * hinge.sum() + w @ w / 2 + (b / 10) ** 2 / 2)

        ours, best = cost(svms.weight[k].numpy(), float(svms.bias[k])), cost(svc.coef_[0], float(svc.intercept_[0]))
        assert ours <= 1.01 * best


def test_a_folder_is_of_one_network_and_one_set_of_regions() -> None:
    first, second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    same = torch.nn.Linear(3, 2)
    same.load_state_dict(first.state_dict())
    assert digest(first, {"a": 1}) == digest(same, {"a": 1})
    assert len({digest(first, {"a": 1}), digest(second, {"a": 1}), digest(first, {"a": 2})}) == 3
    half = torch.nn.Linear(3, 2).bfloat16()
    assert len(digest(half, {})) == 16


@pytest.mark.parametrize("image", [2, 5])
def test_a_kill_while_mining_costs_what_came_since_the_last_writing(
    image: int, make: Callable[..., RegionFeatures], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, seen = replace(SETTINGS, svm_passes=3), []
    features, whole, gone_on = make(), LinearSVMs(FC7, 5), LinearSVMs(FC7, 5)
    log = learn_svms(features, whole, settings).log
    assert not (features.folder / "mining.state").exists()  # it took no minutes

    monkeypatch.setattr(region_learning, "SAVE_EVERY", 0.0)
    see = HardNegativeMiner.see

    def killed(self: HardNegativeMiner, number: int, *args: Any) -> int:
        seen.append(number)
        if len(seen) == 8 + image + 1:  # in the second pass
            raise InterruptedError
        return see(self, number, *args)

    monkeypatch.setattr(HardNegativeMiner, "see", killed)
    with pytest.raises(InterruptedError):
        learn_svms(features, LinearSVMs(FC7, 5), settings)
    assert seen[-1] == image
    again = learn_svms(features, gone_on, settings).log
    assert seen[8 + image + 1] == image  # the first that it looked at
    assert [line._replace(seconds=0.0) for line in again] == [line._replace(seconds=0.0) for line in log]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, gone_on.state_dict()[name])


def test_what_was_mined_with_other_numbers_or_is_damaged_is_not_gone_on_with(
    make: Callable[..., RegionFeatures], monkeypatch: pytest.MonkeyPatch
) -> None:
    features = make()
    monkeypatch.setattr(region_learning, "SAVE_EVERY", 0.0)
    learn_svms(features, LinearSVMs(FC7, 5), SETTINGS)
    state = features.folder / "mining.state"
    assert state.is_file()
    for content in (state.read_bytes(), b"PK damaged"):
        state.write_bytes(content)
        fresh, plain = LinearSVMs(FC7, 5), LinearSVMs(FC7, 5)
        other = replace(SETTINGS, svm_c=0.5)
        learn_svms(features, fresh, other)
        state.unlink()
        learn_svms(features, plain, other)
        assert torch.equal(fresh.weight, plain.weight)


# -- two fits in one folder --------------------------------------------------------------------


def test_a_folder_is_of_one_fit_until_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fcntl")
    folder = tmp_path / "features/of one network"
    region_features.hold(folder, "the fit in runs/small").close()
    (folder / "000000.features").touch()
    program = "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, 2); print('held', flush=True); input()"
    command = [sys.executable, "-c", program, str(folder / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"held\n"
            with monkeypatch.context() as patch:
                patch.setattr(region_features, "PATIENCE", 0.0)
                with pytest.raises(ConfigError, match=r"of one network: the fit in runs/small goes on from the same"):
                    region_features.hold(folder, "another")
            region_features.delete(folder)
            assert (folder / "000000.features").is_file()
        finally:
            other.kill()
    with region_features.hold(folder, "another"):
        assert (folder / "lock").read_text() == "another"
    region_features.delete(folder)
    assert not folder.exists()


def test_a_folder_that_is_deleted_just_now_is_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "features"
    held = region_features.hold(folder, "one that is about to delete it")

    def end() -> None:
        shutil.rmtree(folder)
        held.close()

    timer = threading.Timer(0.5, end)
    timer.start()
    with region_features.hold(folder, "another"):
        assert held.closed and (folder / "lock").read_text() == "another"
    timer.join()


class LooksAtLocks(Dataset):
    """In a worker: is the file open there?"""

    def __init__(self, lock: Any) -> None:
        self.lock = lock

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> bool:
        return self.lock.closed


def test_a_loaders_workers_do_not_hold_the_folder_on_when_their_fit_is_killed(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with region_features.hold(tmp_path, "a fit") as lock:
        loader = DataLoader(LooksAtLocks(lock), num_workers=1, multiprocessing_context="fork")
        assert [bool(closed) for closed in loader] == [True] and not lock.closed


def test_without_locks_a_folder_is_used_and_deleted_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    folder = tmp_path / "features"
    with region_features.hold(folder, "one"), region_features.hold(folder, "two"):
        assert (folder / "lock").read_text() == "two"
    region_features.delete(folder)
    assert not folder.exists()


def test_ground_truth_and_examples_are_read_without_the_rest(make: Callable[..., RegionFeatures]) -> None:
    features = make()
    expected = features.truth(0), features.pool5(0)
    file = features.folder / "000000.features"
    file.write_bytes(file.read_bytes()[:-10])
    assert torch.equal(features.truth(0), expected[0]) and torch.equal(features.pool5(0), expected[1])
    with pytest.raises(DataError, match=r"000000\.features: cannot be read"):
        features.fc7(0)
