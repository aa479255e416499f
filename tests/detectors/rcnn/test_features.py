"""Features on disk: what fits the budget, what a stop leaves, and the same SVMs whether they are there or not."""

from __future__ import annotations

import os
import re
import shutil
import signal
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

from detkit.data import Shapes
from detkit.data.dataset import DetectionDataset
from detkit.data.loaders import make_own_loader
from detkit.detectors.rcnn import features as rcnn_features
from detkit.detectors.rcnn import learning
from detkit.detectors.rcnn.features import FeatureLayout, RegionFeatures, acquire_lock, delete_folder, digest
from detkit.detectors.rcnn.learning import learn_boxes, learn_svms
from detkit.detectors.rcnn.training_regions import TrainingRegions
from detkit.errors import ConfigError
from detkit.features import CropFeatures
from detkit.heads import BoxRegressors, HardNegativeMiner, LinearSVMs, SVMSettings

from .rcnn_parts import proposals_for

POOL5, FC7 = 40, 24
SETTINGS, RIDGE = SVMSettings(c=0.002, passes=2), 10.0


class Network:
    """Features by a fixed rule of pixels and boxes, and how many regions were read."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.matrix = torch.randn(4 + 27, POOL5 + FC7, generator=generator)
        self.calls: list[int] = []

    def __call__(self, sample: dict[str, Any], boxes: Tensor) -> CropFeatures:
        self.calls.append(len(boxes))
        pixels = torch.nn.functional.adaptive_avg_pool2d(sample["image"].float() / 255, 3).flatten()
        x = torch.cat((boxes / 64, pixels.expand(len(boxes), -1)), dim=1) @ self.matrix
        return CropFeatures(*x.relu().split([POOL5, FC7], dim=1))


@pytest.fixture(scope="module")
def regions(shapes: Callable[..., Shapes]) -> TrainingRegions:
    annotations = shapes().annotations("train")
    return TrainingRegions(annotations, proposals_for(annotations), 5, None, False, 0.6)


@pytest.fixture
def make(regions: TrainingRegions, tmp_path: Path) -> Callable[..., RegionFeatures]:
    """`make(budget, filled=True)` -> the features in one folder; their `.read` counts what was computed."""

    def build(budget: float = 1.0, filled: bool = True, network: Any = None) -> RegionFeatures:
        layout = FeatureLayout(regions, (POOL5, FC7), budget)
        dataset = DetectionDataset(regions.annotations)
        features = RegionFeatures(regions, layout, dataset, network or Network(), tmp_path / "deep/features")
        features.create()
        if filled:
            fill(features)
        return features

    return build


def fill(features: RegionFeatures) -> None:
    features.fill(features.missing(), lambda part: make_own_loader(part, 0), show=False)


def bytes_of(regions: TrainingRegions) -> tuple[int, int]:
    """What ground truth and examples take, and what everything takes, in half precision."""
    least = most = 0
    for i in range(len(regions)):
        found = regions[i]
        least += 2 * (len(found.labels) * FC7 + len(found.examples) * POOL5)
        most += 2 * (len(found.boxes) * FC7 + len(found.examples) * POOL5)
    return least, most


def test_all_fc7_if_it_fits_the_budget(regions: TrainingRegions, make: Callable[..., RegionFeatures]) -> None:
    least, most = bytes_of(regions)
    features = make(most / 1e9)
    assert features.layout.complete and features.layout.bytes == most > least
    assert features.read.calls == [len(regions[i].boxes) for i in range(8)]
    exact = Network()
    for i in range(8):
        found = exact(features.dataset[i], regions[i].boxes)
        assert features.fc7(i).dtype == features.pool5(i).dtype == torch.float16
        assert torch.equal(features.fc7(i), found.fc7.half())
        assert torch.equal(features.truth(i), found.fc7[: len(regions[i].labels)].half())
        assert torch.equal(features.pool5(i), found.pool5[regions[i].examples].half())
    assert len(features.read.calls) == 8  # all of that came from the disk
    written = sum(path.stat().st_size for path in features.folder.iterdir())
    assert written == most + 8 + 2 * 128  # a byte of each image, and the arrays' headers


def test_otherwise_ground_truth_and_the_regressors_examples(
    regions: TrainingRegions, make: Callable[..., RegionFeatures]
) -> None:
    least, most = bytes_of(regions)
    features = make((most - 1) / 1e9)
    assert not features.layout.complete and features.layout.bytes == least
    assert features.read.calls == [len(regions[i].labels) + len(regions[i].examples) for i in range(8)]
    exact = Network()
    for i in range(8):
        found = exact(features.dataset[i], regions[i].boxes)
        torch.testing.assert_close(features.truth(i), found.fc7[: len(regions[i].labels)].half())
        torch.testing.assert_close(features.pool5(i), found.pool5[regions[i].examples].half())
        torch.testing.assert_close(features.fc7(i), found.fc7.half())
    assert features.read.calls[8:] == [len(regions[i].boxes) for i in range(8)]  # computed again
    assert sum(path.stat().st_size for path in features.folder.iterdir()) == least + 8 + 2 * 128


def test_a_budget_that_is_too_small(regions: TrainingRegions) -> None:
    least, _ = bytes_of(regions)
    assert not FeatureLayout(regions, (POOL5, FC7), least / 1e9).complete
    told = rf"feature_files.budget: .* GB is too little, .* alone take {re.escape(f'{least / 1e9:.3g}')} GB"
    with pytest.raises(ConfigError, match=told):
        FeatureLayout(regions, (POOL5, FC7), (least - 1) / 1e9)


def test_a_disk_that_is_too_small(make: Callable[..., RegionFeatures], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    told = r"deep/features: the features take .* larger disk, or lower feature_files.budget"
    with pytest.raises(ConfigError, match=told):
        make()


@pytest.mark.parametrize("budget", ["all", "least"])
def test_what_is_there_is_not_computed_again(
    regions: TrainingRegions, make: Callable[..., RegionFeatures], budget: str
) -> None:
    size = bytes_of(regions)[budget == "all"] / 1e9
    stopped = Network()

    def killed(sample: dict[str, Any], boxes: Tensor) -> CropFeatures:
        if len(stopped.calls) == 3:
            raise InterruptedError("killed")
        return stopped(sample, boxes)

    with pytest.raises(InterruptedError):
        make(size, network=killed)
    again = make(size, filled=False)
    assert again.missing() == [3, 4, 5, 6, 7]
    fill(again)
    assert len(again.read.calls) == 5 and not again.missing()
    files = {path.name: path.read_bytes() for path in again.folder.iterdir()}
    shutil.rmtree(again.folder)
    whole = make(size)
    assert files == {path.name: path.read_bytes() for path in whole.folder.iterdir()} and len(files) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
@pytest.mark.parametrize(("flush_every", "done"), [(0.0, 3), (100.0, 0)])
def test_after_sigkill_only_images_whose_rows_are_on_the_disk_are_done(
    make: Callable[..., RegionFeatures], monkeypatch: pytest.MonkeyPatch, flush_every: float, done: int
) -> None:
    monkeypatch.setattr(rcnn_features, "FLUSH_EVERY", flush_every)
    network = Network()

    def killed(sample: dict[str, Any], boxes: Tensor) -> CropFeatures:
        if len(network.calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return network(sample, boxes)

    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        make(network=killed)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    again = make(filled=False)
    assert again.missing() == list(range(done, 8))
    fill(again)
    files = {path.name: path.read_bytes() for path in again.folder.iterdir()}
    shutil.rmtree(again.folder)
    assert files == {path.name: path.read_bytes() for path in make().folder.iterdir()}


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "archive", "header", "gone"])
@pytest.mark.parametrize("name", ["fc7.npy", "done"])
def test_damaged_files_are_made_again(make: Callable[..., RegionFeatures], name: str, damage: str) -> None:
    features = make()
    path = features.folder / name
    content = {each.name: each.read_bytes() for each in features.folder.iterdir()}
    whole = content[name]
    new = {"cut": whole[:-1], "empty": b"", "garbage": b"x" * 500, "archive": b"PK\x03\x04" + whole}
    new["header"] = whole.replace(b"}", b"(", 1) if name == "fc7.npy" else b""
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(new[damage])
    again = make()
    assert len(again.read.calls) == 8
    assert content == {each.name: each.read_bytes() for each in again.folder.iterdir()}


def test_the_same_svms_and_regressors_with_fc7_on_disk_and_without(
    regions: TrainingRegions, make: Callable[..., RegionFeatures]
) -> None:
    least, most = bytes_of(regions)
    learnt = []
    for size, complete in ((most, True), (least, False)):
        features = make(size / 1e9)
        assert features.layout.complete == complete
        svms, boxes = LinearSVMs(FC7, 5), BoxRegressors(POOL5, 5)
        miner = learn_svms(features, svms, SETTINGS)
        counts = learn_boxes(features, boxes, RIDGE)
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
    from sklearn.svm import LinearSVC

    features, svms = make(), LinearSVMs(FC7, 5)
    learn_svms(features, svms, replace(SETTINGS, passes=20))  # until no negative is hard
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
            loss="hinge", C=SETTINGS.c, class_weight={1: 2.0}, intercept_scaling=10, tol=1e-5, max_iter=1_000_000
        ).fit(x, y)

        def cost(w: np.ndarray, b: float, x: np.ndarray = x, y: np.ndarray = y) -> float:
            hinge = np.maximum(0, 1 - np.where(y, 1, -1) * (x @ w + b)) * np.where(y, 2, 1)
            return float(SETTINGS.c * hinge.sum() + w @ w / 2 + (b / 10) ** 2 / 2)

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
    settings, seen = replace(SETTINGS, passes=3), []
    features, whole, gone_on = make(), LinearSVMs(FC7, 5), LinearSVMs(FC7, 5)
    log = learn_svms(features, whole, settings).log
    assert not (features.folder / "mining.state").exists()  # it took no minutes

    monkeypatch.setattr(learning, "SAVE_EVERY", 0.0)
    update = HardNegativeMiner.update

    def killed(self: HardNegativeMiner, number: int, *args: Any) -> int:
        seen.append(number)
        if len(seen) == 8 + image + 1:  # in the second pass
            raise InterruptedError
        return update(self, number, *args)

    monkeypatch.setattr(HardNegativeMiner, "update", killed)
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
    monkeypatch.setattr(learning, "SAVE_EVERY", 0.0)
    learn_svms(features, LinearSVMs(FC7, 5), SETTINGS)
    state = features.folder / "mining.state"
    assert state.is_file()
    for content in (state.read_bytes(), b"PK damaged"):
        state.write_bytes(content)
        fresh, plain = LinearSVMs(FC7, 5), LinearSVMs(FC7, 5)
        other = replace(SETTINGS, c=0.5)
        learn_svms(features, fresh, other)
        state.unlink()
        learn_svms(features, plain, other)
        assert torch.equal(fresh.weight, plain.weight)


# -- two fits in one folder --------------------------------------------------------------------

HOLDER = """
import sys, pathlib
from detkit.detectors.rcnn.features import acquire_lock
lock = acquire_lock(pathlib.Path(sys.argv[1]), "the fit in runs/small")
print("locked", flush=True)
input()
"""


def test_a_folder_belongs_to_one_fit_until_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rcnn_features, "LOCK_TIMEOUT", 0.0)
    folder = tmp_path / "features/of one network"
    folder.mkdir(parents=True)
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"locked\n"
            with pytest.raises(ConfigError, match=r"of one network: the fit in runs/small continues from the same"):
                acquire_lock(folder, "another")
            delete_folder(folder)
            assert folder.is_dir()
        finally:
            other.kill()
    acquire_lock(folder, "another").release()
    delete_folder(folder)
    assert not list((tmp_path / "features").iterdir())


def test_a_lock_that_is_about_to_be_released_is_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "features"
    lock = acquire_lock(folder, "one")
    timer = threading.Timer(0.5, lock.release)
    timer.start()
    acquire_lock(folder, "another").release()
    timer.join()
