"""The pictures of README that show a trained detector: docs/images/blood_cells.jpg and report.jpg.

They were made from a run on BCCD (https://github.com/Shenggan/BCCD_Dataset, MIT licence, Copyright (c) 2017
shenggan), which is not part of the project::

    detkit fit --config faster_rcnn/laptop --data data/bccd --model.optim.backbone_lr_factor 1 \
        --trainer.max_epochs 10 --trainer.check_val_every_n_epoch 5
    detkit test runs/laptop
    python -m docs.generate.pictures runs/laptop/version_0 data/bccd/JPEGImages/BloodImage_000{31,62,65,16}.jpg

The report is photographed by headless Chromium. `PARTS` are rows of that page as it was then: look at the result.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

import detkit
from detkit.drawing import make_sheet
from docs.generate.repository import REPOSITORY

IMAGES = REPOSITORY / "docs" / "images"
WIDTH, HEIGHT = 1100, 9000  # pixels of the report's page; what is below is not photographed
#: The first and the last row of what is shown: title, numbers and label suspects on the left, errors on the right.
PARTS = ([(0, 155), (485, 705), (4126, 4685)], [(2036, 2940)])


def draw_detections(run: Path, photos: list[Path]) -> None:
    """Write blood_cells.jpg: photographs with their detections, two in a row."""
    found = detkit.load(run).predict(photos)
    sheet = make_sheet([detkit.draw(photo, each) for photo, each in zip(photos, found, strict=True)], columns=2)
    sheet = sheet.resize((round(sheet.width * 0.78), round(sheet.height * 0.78)), Image.Resampling.LANCZOS)
    sheet.save(IMAGES / "blood_cells.jpg", quality=85, optimize=True, progressive=True)


def photograph_report(page: Path) -> None:
    """Write report.jpg: parts of a report's page in two columns."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.png"
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}"]
        subprocess.run(["chromium", *options, f"--screenshot={file}", page.resolve().as_uri()], check=True)
        image = Image.open(file).convert("RGB")
    columns = [[image.crop((0, top, WIDTH, bottom)) for top, bottom in rows] for rows in PARTS]
    height = max(sum(part.height for part in parts) for parts in columns)
    sheet = Image.new("RGB", (len(columns) * WIDTH, height), image.getpixel((2, 2)))
    for x, parts in enumerate(columns):
        y = 0
        for part in parts:
            sheet.paste(part, (x * WIDTH, y))
            y += part.height
    sheet = sheet.resize((round(sheet.width * 0.64), round(height * 0.64)), Image.Resampling.LANCZOS)
    sheet.save(IMAGES / "report.jpg", quality=86, optimize=True, progressive=True, subsampling=0)


if __name__ == "__main__":
    run, *photos = map(Path, sys.argv[1:])
    draw_detections(run, photos)
    photograph_report(run / "report" / "index.html")
