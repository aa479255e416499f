"""Two and three processes over gloo: what they compute together is what one computes alone, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
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


SHARDINGS = {
    2: lambda images: [
        (images[0::2], [*images[1::2], images[0]]),  # a sampler repeats the first to make both equally long
        (images[:9], images[9:]),
        ([], images),
        ([], []),
    ],
    3: lambda images: [
        (images[:7], images[7:8], images[8:]),
        (images[4:], [], images[:6]),  # one has none, two have some in common
        ([], [], images),
    ],
}


@pytest.mark.parametrize("world_size", SHARDINGS)
def test_ranks_together_equal_one_process(tmp_path: Path, world_size: int) -> None:
    images = some_images(11)
    shardings = SHARDINGS[world_size](images)
    cases = [(protocol, shards) for protocol in ("coco", "voc07") for shards in shardings]
    torch.save(cases, tmp_path / "cases.pt")
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                str(HERE / "one_rank.py"),
                str(rank),
                str(world_size),
                *(str(tmp_path / name) for name in ("meeting", "cases.pt", f"{rank}.pt")),
            ],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=120)
            assert rank.returncode == 0, errors
    finally:
        for rank in ranks:
            rank.kill()

    everyone = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world_size)]
    for (protocol, shards), *together in zip(cases, *everyone, strict=True):
        alone = MeanAveragePrecision(protocol, ["cat", "dog"])
        everything = images if any(shards) else []
        alone.update(*([pair[part] for pair in everything] for part in range(2)))
        expected = alone.compute()
        if everything:
            assert 0 < expected["map"] < 1
        for (result, kept), shard in zip(together, shards, strict=True):
            assert as_bits(result) == as_bits(expected)
            assert kept == len(shard)  # afterwards each rank has its own again


def as_bits(result: dict[str, Any]) -> dict[str, Any]:
    """Numbers whose NaNs are equal too."""
    tensors = {key: value.numpy().tobytes() for key, value in result.items() if isinstance(value, torch.Tensor)}
    return {key: repr(value) for key, value in result.items()} | tensors
