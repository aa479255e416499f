"""R-CNN's limit over a whole test set, beside a plain reading of it."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.heads import SetLimit

SCORES = st.lists(st.tuples(st.integers(1, 3), st.floats(0, 1, width=16)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(SCORES, min_size=1, max_size=5), st.integers(1, 4))
def test_it_keeps_the_best_of_each_class_over_all_images(images: list[list[tuple[int, float]]], per_image: int) -> None:
    limit = SetLimit(3, per_image)
    for found in images:
        limit.see(torch.tensor([score for _, score in found]), torch.tensor([k for k, _ in found], dtype=torch.int64))
    most = per_image * len(images)
    for found in images:
        scores, labels = torch.tensor([s for _, s in found]), torch.tensor([k for k, _ in found], dtype=torch.int64)
        kept = limit.keep([{"scores": scores, "labels": labels, "boxes": torch.arange(4.0 * len(found)).view(-1, 4)}])[
            0
        ]
        expected = []
        for row, (k, score) in enumerate(found):
            better = sum(other > score for image in images for label, other in image if label == k)
            if better < most:  # fewer than the limit are better
                expected.append(row)
        assert kept["labels"].tolist() == [found[row][0] for row in expected]
        assert (kept["boxes"][:, 0] / 4).tolist() == expected
        torch.testing.assert_close(kept["scores"], scores[expected])


def test_nothing_seen_limits_nothing() -> None:
    limit = SetLimit(2, 40)
    assert limit.thresholds().tolist() == [-torch.inf] * 2
    limit.see(torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert limit.thresholds().tolist() == [-torch.inf] * 2 and limit.images == 1
    detections = {"scores": torch.tensor([0.0, 0.3]), "labels": torch.tensor([1, 2])}
    assert limit.keep([detections])[0]["labels"].tolist() == [1, 2]
