"""Images without annotations, to predict on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from detkit.data.annotations import Annotations
from detkit.data.datamodule import DetectionDataModule
from detkit.data.dataset import image_to_tensor
from detkit.data.inputs import Input, InputReader, find_inputs
from detkit.errors import DataError
from detkit.types import Sample


class ImageFolder(DetectionDataModule):
    """Images below folders, image files, lists of them, or the frames of videos; for `predict` only.

    Args:
        path: one or more folders, image files, patterns, lists of files (.txt) or videos; see `find_inputs`.
        every: of a video every how many-th frame is read; at least 1.
        batch_size: images per step; at least 1.
        num_workers: processes that read images; None takes one less than the cores, at most 4. Videos are read in the
            main process.
        class_names: as the model has them; not needed.
    """

    def __init__(
        self,
        path: str | list[str],
        every: int = 1,
        batch_size: int = 1,
        num_workers: int | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, class_names=class_names)
        self.path = path
        self.inputs = find_inputs(path, every)
        if any(each.frame is not None for each in self.inputs.images):
            self.num_workers = 0  # OpenCV's threads for videos do not survive the fork of a worker
        self.images = ImageDataset(self.inputs.images)

    def read(self, split: str) -> Annotations | None:
        """None: there are no annotations."""
        return None

    def category_ids_of(self, split: str) -> list[int]:
        """Empty: there are no annotations."""
        return []

    def setup(self, stage: str | None = None) -> None:
        """Say what is not read; raises DataError for a stage that needs annotations."""
        if stage not in (None, "predict"):
            raise DataError(f"{self.path}: images without annotations are for predict, not {stage}")
        if note := self.inputs.note():
            rank_zero_info(note)

    def predict_dataloader(self) -> DataLoader:
        """Batches of {"image", "image_id", "file", "path"}, in the order of `find_inputs`."""
        return self.predict_loader(self.images)


class ImageDataset(Dataset):
    """Images and frames as samples without annotations.

    Args:
        inputs: what is read. The frames of a video are read quickest in their order.
    """

    def __init__(self, inputs: Sequence[Input]) -> None:
        self.inputs = list(inputs)
        self._reader = InputReader()

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Sample:
        """image uint8 (3, H, W), image_id, file and path; DataError if it is unreadable."""
        sample: Any = {"image": image_to_tensor(self._reader.read(self.inputs[index])), **self.names(index)}
        return sample

    def names(self, index: int) -> dict[str, str]:
        """image_id, file and path of an image, which is not read for it."""
        image_id, path, _ = self.inputs[index]
        return {"image_id": image_id, "file": image_id, "path": path}
