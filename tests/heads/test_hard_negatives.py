"""Hard negative mining: the SVM of all negatives, the authors' bookkeeping, and classes with nothing to learn from."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC
from torch import Tensor

from detkit.errors import CheckpointError, ConfigError, TrainingError
from detkit.heads import (
    HardNegativeMiner,
    SVMSettings,
    Training,
    feature_scale,
    fit_svm,
    hard_negatives,
    objective,
)

FEATURES = 12


def a_set(classes: int = 3, images: int = 12, proposals: int = 60) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
    """Positives of each class, and of each image features and overlaps; features that are hard to tell apart."""
    generator = torch.Generator().manual_seed(classes)
    centres = torch.randn(classes, FEATURES, generator=generator) * 4
    positives = [torch.randn(25, FEATURES, generator=generator) * 3 + centre for centre in centres]
    seen = []
    for _ in range(images):
        x = torch.randn(proposals, FEATURES, generator=generator) * 3
        near = torch.rand(proposals, classes, generator=generator) ** 3
        seen.append(((x + near @ centres).half().float(), near))
    return [p.half().float() for p in positives], seen


def mine(miner: HardNegativeMiner, seen: list[tuple[Tensor, Tensor]], first: int = 0) -> int:
    return sum(miner.update(i, *image) for i, image in enumerate(seen) if i >= first)


def without_times(log: list[Training]) -> list[Training]:
    return [line._replace(seconds=0.0) for line in log]


@pytest.mark.parametrize("C", [1e-3, 0.05])
@pytest.mark.parametrize("retrain_after", [0, 40, 2000])
def test_the_svm_of_all_negatives_is_found(C: float, retrain_after: int) -> None:
    positives, seen = a_set()
    miner = HardNegativeMiner(positives, SVMSettings(c=C), retrain_after=retrain_after)
    passes = 0
    while mine(miner, seen):
        miner.finish()
        passes += 1
    assert 1 <= passes < 20 and [line.image for line in miner.log][-3:] == [hard_negatives.FINAL] * 3
    for k, own in enumerate(positives):
        negatives = torch.cat([x[overlaps[:, k] < 0.3] for x, overlaps in seen])
        whole = torch.cat([own, negatives]).numpy()
        best = objective(*fit_svm(whole, np.arange(len(whole)) < len(own), c=C), own, negatives, C)
        w, b = miner.svms.weight[k].numpy(), float(miner.svms.bias[k])
        found = objective(w, b, own, negatives, C)
        assert found.total == pytest.approx(best.total, rel=1e-3)
        assert miner.rows.used[:, k].sum() < len(negatives)
        last = [line for line in miner.log if line.label == k + 1][-1]
        assert last.objective == pytest.approx(found.total, rel=1e-3)


def like_real_ones(strength: float, seed: int) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
    """As `a_set`, but after a ReLU and scaled: parts that all regions share, and what a class has of its own."""
    generator = torch.Generator().manual_seed(seed)
    parts, own = torch.randn(40, 128, generator=generator), torch.randn(3, 128, generator=generator)

    def draw(near: Tensor) -> Tensor:
        mix = torch.rand(len(near), 40, generator=generator) ** 8
        noise = torch.randn(len(near), 128, generator=generator)
        return (mix @ parts + strength * near @ own + noise - 1).relu()

    overlaps = [torch.rand(150, 3, generator=generator) ** 12 for _ in range(40)]
    features = [draw(near) for near in overlaps]
    fit = 0.5 + 0.5 * torch.rand(3, 40, 1, generator=generator)
    scale = feature_scale(features)
    positives = [(scale * draw(fit[k] * torch.eye(3)[k])).half().float() for k in range(3)]
    return positives, [((scale * x).half().float(), near) for x, near in zip(features, overlaps, strict=True)]


@pytest.mark.parametrize("retrain_after", [0, hard_negatives.RETRAIN_AFTER])
@pytest.mark.parametrize("strength", [1.0, 4.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_one_pass_is_enough_at_the_papers_C(seed: int, strength: float, retrain_after: int) -> None:
    """Beside scikit-learn's SVM on the whole set. (Nearly separable classes with a larger C take more passes.)"""
    positives, seen = like_real_ones(strength, seed)
    every = torch.cat([x for x, _ in seen])
    assert every.min() == 0 and 0.6 < (every == 0).float().mean() < 0.8
    assert float(every.norm(dim=1).mean()) == pytest.approx(20, rel=1e-3)
    miner = HardNegativeMiner(positives, retrain_after=retrain_after)
    mine(miner, seen)
    svms = miner.finish()
    for k, own in enumerate(positives):
        negatives = torch.cat([x[overlaps[:, k] < 0.3] for x, overlaps in seen])
        assert len(negatives) > 100 * len(own) and miner.rows.used[:, k].sum() < len(negatives) / 5
        x = torch.cat([own, negatives]).double().numpy()
        whole = LinearSVC(
            loss="hinge", C=1e-3, class_weight={1: 2.0}, intercept_scaling=10, tol=1e-4, max_iter=100_000
        ).fit(x, np.arange(len(x)) < len(own))
        best = objective(whole.coef_[0], float(whole.intercept_[0]), own, negatives)
        found = objective(svms.weight[k].numpy(), float(svms.bias[k]), own, negatives)
        assert 0.999 * best.total < found.total < 1.01 * best.total


class OneByOne:
    """rcnn_train.m read plainly: each class has its own list of negatives, each vector its key (image, row)."""

    def __init__(self, positives: list[Tensor], c: float, retrain_after: int) -> None:
        self.positives, self.c, self.retrain_after = positives, c, retrain_after
        self.caches: list[dict[tuple[int, int], Tensor]] = [{} for _ in positives]
        self.svms: list[tuple[np.ndarray, float] | None] = [None] * len(positives)
        self.added = [0] * len(positives)
        self.log: list[tuple[int, ...]] = []

    def see(self, image: int, features: Tensor, overlaps: Tensor) -> None:
        for k, cache in enumerate(self.caches):
            for row, x in enumerate(features):
                svm = self.svms[k]
                hard = svm is None or float(x @ torch.from_numpy(svm[0])) + svm[1] > -1.0001
                if hard and overlaps[row, k] < 0.3 and (image, row) not in cache:
                    cache[image, row] = x
                    self.added[k] += 1
            if cache and (self.svms[k] is None or self.added[k] > self.retrain_after):
                self.train(k, image)

    def train(self, k: int, image: int) -> None:
        cache, own = self.caches[k], self.positives[k]
        keys = sorted(cache)
        x = torch.cat([own, torch.stack([cache[key] for key in keys])]).numpy()
        # SVMs that only find the next negatives are trained as roughly as liblinear does by itself.
        accuracy = {} if image == -1 else {"tolerances": (0.1,)}
        w, b = fit_svm(x, np.arange(len(x)) < len(own), c=self.c, **accuracy)
        self.svms[k] = w, b
        easy = [key for key in keys if float(cache[key].numpy() @ w) + b < -1.2]
        for key in easy:
            del cache[key]
        self.log.append((k + 1, image, len(own), self.added[k], len(easy), len(cache)))
        self.added[k] = 0


@pytest.mark.parametrize("retrain_after", [30, 70])
def test_the_authors_bookkeeping(retrain_after: int) -> None:
    positives, seen = a_set()
    miner = HardNegativeMiner(positives, SVMSettings(c=0.01), retrain_after=retrain_after)
    plain = OneByOne(positives, 0.01, retrain_after)
    for number in range(2):
        for i, (x, overlaps) in enumerate(seen):
            miner.update(i, x, overlaps)
            plain.see(i, x, overlaps)
            assert [line[:6] for line in miner.log] == plain.log
        if number == 0:
            between = len(miner.log)
    for k in range(3):
        plain.train(k, -1)
        if k == 0:
            miner.finish()
        places = miner.rows.slots_of(k)
        keys = list(zip(miner.rows.image[places].tolist(), miner.rows.row[places].tolist(), strict=True))
        assert keys == sorted(plain.caches[k])
        held = torch.empty(len(places), FEATURES)
        miner.rows.read(places, held)
        assert torch.equal(held, torch.stack([plain.caches[k][key] for key in keys]))
    assert [line[:6] for line in miner.log] == plain.log
    assert between > 3 and sum(line.evicted for line in miner.log) > 100
    assert len(miner.rows) == len(set().union(*plain.caches)) < sum(len(cache) for cache in plain.caches)


def test_the_first_image_trains_at_once_on_all_its_negatives() -> None:
    positives, seen = a_set()
    miner = HardNegativeMiner(positives)
    miner.update(0, torch.zeros(0, FEATURES), torch.zeros(0, 3))
    assert miner.log == [] and (miner.svms(seen[0][0]) == -torch.inf).all()
    joined = miner.update(1, *seen[0])
    assert [(line.label, line.image) for line in miner.log] == [(1, 1), (2, 1), (3, 1)]
    assert [line.added for line in miner.log] == (seen[0][1] < 0.3).sum(0).tolist()
    assert joined == sum(line.added for line in miner.log)
    assert torch.isfinite(miner.svms(seen[0][0])).all()


def test_an_svm_is_trained_anew_when_more_than_so_many_negatives_joined() -> None:
    positives, seen = a_set(classes=1)
    counting = HardNegativeMiner(positives)
    joined = [counting.update(i, *image) for i, image in enumerate(seen[:2])]
    assert joined[1] > 1 and len(counting.log) == 1
    for retrain_after, trainings in ((joined[1], 1), (joined[1] - 1, 2)):
        miner = HardNegativeMiner(positives, retrain_after=retrain_after)
        mine(miner, seen[:2])
        assert len(miner.log) == trainings
    assert (miner.log[1].image, miner.log[1].added) == (1, joined[1])


def test_a_log_line_tells_the_objective_on_what_the_svm_learned_from() -> None:
    positives, seen = a_set(classes=1)
    miner = HardNegativeMiner(positives, SVMSettings(c=0.01))
    miner.update(0, *seen[0])
    x, overlaps = seen[0]
    w, b = miner.svms.weight[0].numpy(), float(miner.svms.bias[0])
    (line,) = miner.log
    negatives = x[overlaps[:, 0] < 0.3]
    assert (line.positive, line.negative, line.regularization) == pytest.approx(
        objective(w, b, positives[0], negatives, c=0.01), rel=1e-6
    )
    assert line.objective == pytest.approx(objective(w, b, positives[0], negatives, c=0.01).total)
    assert line.evicted == ((negatives @ torch.from_numpy(w) + b) < -1.2).sum() > 0
    assert line.kept == len(negatives) - line.evicted and line.seconds >= 0


def test_a_class_without_positives_never_fires_and_costs_nothing() -> None:
    positives, seen = a_set()
    positives[1] = positives[1][:0]
    miner = HardNegativeMiner(positives)
    mine(miner, seen)
    svms = miner.finish()
    assert svms.trained.tolist() == [True, False, True] and not miner.rows.used[:, 1].any()
    assert (svms(seen[0][0])[:, 1] == -torch.inf).all()
    assert {line.label for line in miner.log} == {1, 3}
    same = HardNegativeMiner([positives[0], positives[2]])
    mine(same, [(x, overlaps[:, [0, 2]]) for x, overlaps in seen])
    assert torch.equal(same.finish().weight, svms.weight[[0, 2]])


def test_only_an_overlap_below_the_threshold_makes_a_negative() -> None:
    positives, seen = a_set(classes=2)
    miner = HardNegativeMiner(positives)
    assert mine(miner, [(x, torch.full_like(overlaps, 0.3)) for x, overlaps in seen]) == 0
    assert not miner.finish().trained.any() and miner.log == [] and len(miner.rows) == 0
    overlaps = torch.tensor([[0.3, 1.0], [0.2999, 0.0], [0.0, 0.31]])
    assert miner.update(4, torch.randn(3, FEATURES), overlaps) == 3
    assert [miner.rows.row[miner.rows.slots_of(k)].tolist() for k in (0, 1)] == [[1, 2], [1]]


def test_vectors_are_held_once_and_their_places_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detkit.heads.negative_rows.BLOCK", 8)
    positives, seen = a_set()
    settings = SVMSettings(c=0.01)
    miner, plenty = (HardNegativeMiner(positives, settings, retrain_after=10) for _ in range(2))
    plenty.rows.block = 10_000
    for i, image in enumerate(seen):
        assert miner.update(i, *image) == plenty.update(i, *image)
        assert len(miner.rows) == miner.rows.used.any(1).sum() == (miner.rows.image >= 0).sum()
        assert len(miner.rows.image) == 8 * len(miner.rows.blocks)
        held = miner.rows.image >= 0
        keys = set(zip(miner.rows.image[held].tolist(), miner.rows.row[held].tolist(), strict=True))
        assert len(keys) == held.sum()
    assert without_times(miner.log) == without_times(plenty.log)
    assert len(miner.rows.image) < sum(len(x) for x, _ in seen) / 2  # places became free and were taken again


def test_half_precision_is_what_is_scored_and_kept() -> None:
    positives, seen = a_set()
    seen = [(x + 0.0123, overlaps) for x, overlaps in seen]
    miners = [HardNegativeMiner(positives, SVMSettings(c=0.01)) for _ in range(2)]
    for miner, images in zip(miners, (seen, [(x.half(), overlaps) for x, overlaps in seen]), strict=True):
        mine(miner, images)
        miner.finish()
    assert without_times(miners[0].log) == without_times(miners[1].log)


def saved(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("stop", [0, 1, 5, 11])
def test_a_killed_pass_goes_on(stop: int) -> None:
    positives, seen = a_set()
    settings = SVMSettings(c=0.01)
    whole, killed = (HardNegativeMiner(positives, settings, 0.5, retrain_after=30) for _ in range(2))
    mine(killed, seen[:stop])
    state = saved(killed.state_dict())
    mine(killed, seen, first=stop)  # what was written does not change with it
    resumed = HardNegativeMiner(positives, settings, retrain_after=30)
    resumed.load_state_dict(state)
    mine(whole, seen)
    mine(resumed, seen, first=stop)
    expected, found = whole.finish().state_dict(), resumed.finish().state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items()) and found["scale"] == 0.5
    assert without_times(resumed.log) == without_times(whole.log)
    assert all(isinstance(v, int) for v in resumed.log[0][:6])


def test_the_state_of_something_else_is_refused() -> None:
    positives, seen = a_set()
    miner = HardNegativeMiner(positives)
    mine(miner, seen[:2])
    state = copy.deepcopy(miner.state_dict())
    for other in (positives[:2], [p[:, :5] for p in positives], [positives[0][1:], *positives[1:]]):
        with pytest.raises(CheckpointError, match=r"25, 25, 25\] positives with 12 features.*mine again"):
            HardNegativeMiner(other).load_state_dict(state)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e6])
def test_features_that_are_not_finite(bad: float) -> None:
    """A million is not finite in half precision."""
    positives, seen = a_set()
    x = seen[0][0].clone()
    x[3, 4] = bad
    miner = HardNegativeMiner(positives)
    with pytest.raises(TrainingError, match="features of image 7 are not finite"):
        miner.update(7, x, seen[0][1])
    assert len(miner.rows) == 0


def test_positives_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"as many features; not \[3, 4\]"):
        HardNegativeMiner([torch.zeros(2, 3), torch.zeros(2, 4)])
    with pytest.raises(ConfigError, match="positives of every class"):
        HardNegativeMiner([])


def test_at_most_so_many_negatives_are_kept_the_hardest() -> None:
    positives, seen = a_set()
    few, all_of_them = (
        HardNegativeMiner(positives, SVMSettings(c=1e-6), retrain_after=20, max_negatives=n) for n in (25, None)
    )
    for miner in (few, all_of_them):
        mine(miner, seen)
        miner.finish()
    assert max(line.kept for line in few.log) == 200 < max(line.kept for line in all_of_them.log)
    assert few.capped.any() and not all_of_them.capped.any()
    for k in range(3):
        held = torch.empty(len(few.rows.slots_of(k)), FEATURES)
        few.rows.read(few.rows.slots_of(k), held)
        last = [line for line in few.log if line.label == k + 1][-1]
        assert len(held) == last.kept
    assert sum(line.evicted for line in few.log) > sum(line.evicted for line in all_of_them.log)
    plenty = HardNegativeMiner(positives, SVMSettings(c=0.01), max_negatives=10_000)
    without = HardNegativeMiner(positives, SVMSettings(c=0.01))
    mine(plenty, seen), mine(without, seen)
    assert torch.equal(plenty.finish().weight, without.finish().weight)


@pytest.mark.parametrize("size", [48, 128])
def test_a_cache_with_a_limit_still_gives_the_svm_of_all_where_nearly_all_are_hard(size: int) -> None:
    """Many positives inside of the margin: each pulls as much as two negatives, so that many have to be kept."""
    generator = torch.Generator().manual_seed(0)
    parts, own = torch.randn(20, size, generator=generator), torch.randn(size, generator=generator)

    def draw(near: Tensor) -> Tensor:
        mixed = torch.rand(len(near), 20, generator=generator) ** 8 @ parts
        return (mixed + near[:, None] * own + torch.randn(len(near), size, generator=generator) - 1).relu()

    near = [torch.rand(300, 1, generator=generator) ** 12 for _ in range(20)]
    features = [draw(48 / size * each[:, 0]) for each in near]
    scale = feature_scale(features)
    positives = (scale * draw(48 / size * (0.5 + 0.5 * torch.rand(300, generator=generator)))).half().float()
    seen = [((scale * x).half().float(), overlaps) for x, overlaps in zip(features, near, strict=True)]
    negatives = torch.cat([x[overlaps[:, 0] < 0.3] for x, overlaps in seen])
    examples = torch.cat([positives, negatives]).double().numpy()
    best = objective(*fit_svm(examples, np.arange(len(examples)) < 300), positives, negatives).total
    miner = HardNegativeMiner([positives], max_negatives=100, retrain_after=500)
    mine(miner, seen)
    svms = miner.finish()
    assert miner.log[-1].kept > 100
    assert objective(svms.weight[0].numpy(), float(svms.bias[0]), positives, negatives).total <= 1.01 * best


@pytest.mark.parametrize(("C", "known", "weak"), [(1e-6, True, 3), (1e-3, True, 0), (1.0, True, 0), (1e-4, False, 3)])
def test_svms_that_look_at_no_feature_are_told(C: float, known: bool, weak: int) -> None:
    positives, seen = a_set()
    if not known:
        positives = [torch.randn_like(p) * 3 for p in positives]
    miner = HardNegativeMiner(positives, SVMSettings(c=C))
    mine(miner, seen)
    miner.finish()
    blind = 0
    for k, own in enumerate(positives):
        # What liblinear makes of as many examples that are all alike.
        last = [line for line in miner.log if line.label == k + 1][-1]
        none = torch.zeros(len(own) + last.kept + last.evicted, FEATURES, dtype=torch.float64).numpy()
        weight, bias = fit_svm(none, torch.arange(len(none)).numpy() < len(own), c=C)
        constant = objective(weight, bias, none[: len(own)], none[len(own) :], c=C).total
        blind += last.objective > 0.985 * constant
        assert (k + 1 in miner.weak_classes()) <= (last.objective > 0.985 * constant)
    assert len(miner.weak_classes()) == weak <= blind
