"""Two processes over gloo: what they compute together is what one computes alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from detkit.evaluation import MeanAveragePrecision

HERE = Path(__file__).parent


def some_images(count: int) -> list[tuple[dict, dict]]:
    """Images with ids of both kinds, equal scores, and some without detections or objects."""
    generator = torch.Generator().manual_seed(0)

    def boxes(number: int) -> torch.Tensor:
        corner = torch.randint(0, 30, (number, 2), generator=generator).float()
        return torch.cat((corner, corner + torch.randint(5, 90, (number, 2), generator=generator)), dim=1)

    images = []
    for image in range(count):
        truths, others = image % 3, (image + 1) % 4
        objects = boxes(truths)
        near = objects.repeat(2, 1) + torch.randint(-3, 4, (2 * truths, 4), generator=generator)
        found = torch.cat((near, boxes(others)))
        labels = torch.randint(1, 3, (truths,), generator=generator)
        other_labels = torch.randint(1, 3, (others,), generator=generator)
        detections = {
            "boxes": found,
            "scores": torch.randint(1, 5, (len(found),), generator=generator) / 4,
            "labels": torch.cat((labels.repeat(2), other_labels)),
        }
        image_id = image if image % 2 else f"{image:03}"
        images.append((detections, {"boxes": objects, "labels": labels, "image_id": image_id}))
    return images


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    images = some_images(11)
    shardings = {
        "padded": (images[0::2], [*images[1::2], images[0]]),  # a sampler repeats the first to make both equally long
        "uneven": (images[:9], images[9:]),
        "one rank has none": ([], images),
        "nobody has any": ([], []),
    }
    cases = [(protocol, shards) for protocol in ("coco", "voc07") for shards in shardings.values()]
    torch.save(cases, tmp_path / "shards.pt")
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                str(HERE / "two_ranks.py"),
                str(rank),
                *(str(tmp_path / name) for name in ("meeting", "shards.pt", f"{rank}.pt")),
            ],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=120)
            assert rank.returncode == 0, errors
    finally:
        for rank in ranks:
            rank.kill()

    for (protocol, shards), *together in zip(cases, *(torch.load(tmp_path / f"{r}.pt") for r in range(2)), strict=True):
        alone = MeanAveragePrecision(protocol, ["cat", "dog"])
        everything = images if any(shards) else []
        alone.update(*([pair[part] for pair in everything] for part in range(2)))
        expected = alone.compute()
        if everything:
            assert 0 < expected["map"] < 1
        for (result, kept), shard in zip(together, shards, strict=True):
            assert set(result) == set(expected)
            assert all(torch.equal(result[k].nan_to_num(-7), expected[k].nan_to_num(-7)) for k in expected)
            assert kept == len(shard)  # afterwards each rank has its own again
