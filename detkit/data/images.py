"""Images without annotations, to predict on."""

from __future__ import annotations

import os

from torch.utils.data import DataLoader, Dataset

from detkit.data.annotations import Annotations
from detkit.data.datamodule import DetectionDataModule
from detkit.data.dataset import image_to_tensor
from detkit.data.image_io import read_image
from detkit.data.input_files import walk
from detkit.data.loaders import make_eval_loader
from detkit.data.voc_files import IMAGE_SUFFIXES, is_image_name
from detkit.errors import DataError
from detkit.types import Sample


class ImageFolder(DetectionDataModule):
    """All images below a folder, or a single one; for `predict` only.

    Args:
        path: a folder, which is searched with the folders in it, or one image file.
        batch_size: images per step; at least 1.
        num_workers: processes that read images; None takes one less than the cores, at most 4.
        class_names: as the model has them; not needed.
    """

    def __init__(
        self,
        path: str,
        batch_size: int = 1,
        num_workers: int | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, class_names=class_names)
        self.path = str(path)
        self.images = ImageDataset(self.path)

    def read(self, split: str) -> Annotations | None:
        """None: there are no annotations."""
        return None

    def category_ids_of(self, split: str) -> list[int]:
        """Empty: there are no annotations."""
        return []

    def setup(self, stage: str | None = None) -> None:
        """Nothing to build; raises DataError for a stage that needs annotations."""
        if stage not in (None, "predict"):
            raise DataError(f"{self.path}: a folder of images has no annotations, so it is for predict, not {stage}")

    def predict_dataloader(self) -> DataLoader:
        """Batches of {"image", "image_id", "path"}, sorted by image_id."""
        return make_eval_loader(self.images, self.eval_batch_size, self.num_workers)


class ImageDataset(Dataset):
    """Image files in the order of their names; DataError if there is no such path, or no image there."""

    def __init__(self, path: str) -> None:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        if os.path.isfile(path):
            if not path.lower().endswith(IMAGE_SUFFIXES):
                raise DataError(f"{path}: not an image file ({suffixes})")
            self.root, file = os.path.split(path)
            self.files = [file]
            return
        if not os.path.isdir(path):
            raise DataError(f"{path}: no such file or folder")
        above = len(os.path.join(path, ""))
        self.root, self.files = path, sorted(file[above:] for file in walk(path) if is_image_name(file))
        if not self.files:
            raise DataError(f"{path}: no image below this folder ({suffixes})")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        """image uint8 (3, H, W), image_id (path below the folder, with "/") and path; DataError if it is unreadable."""
        file = self.files[index]
        path = os.path.join(self.root, file)
        return {"image": image_to_tensor(read_image(path)), "image_id": file.replace(os.sep, "/"), "path": path}
