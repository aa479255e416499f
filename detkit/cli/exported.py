"""`detkit predict` of an exported detector on images, without torch and Lightning, which take seconds to import."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from detkit.cli.arguments import Arguments
from detkit.cli.resume import Start
from detkit.cli.tools import plain_values
from detkit.data.inputs import Input, InputReader, find_inputs
from detkit.deploy.description import is_exported
from detkit.deploy.runtime import ExportedModel, open_without_proposals
from detkit.engine.predictions import NAME, STOPPED, PredictionFiles, without_drawings
from detkit.errors import DataError
from detkit.files import keep_inputs
from detkit.progress import Progress
from detkit.signals import SIGNALS, Stopped

#: Images that are read while the detector is at work.
AHEAD = 2
#: The options besides those of `PredictionFiles` that are read here.
KNOWN = {"ckpt_path", "data", "data.path", "data.every"}


def predict_exported(arguments: Arguments, start: Start) -> PredictionFiles | None:
    """Run `detkit predict`, and say where the predictions are.

    Returns:
        What was written; None, before anything is done, where the command needs torch or Lightning: of another
        detector, on a data set, with tiles, or with an option that is not read here.

    Raises:
        DetkitError: what the user can mend.
        KeyboardInterrupt: it was stopped; the message says what is kept.
    """
    options = _options(arguments)
    if start.checkpoint is None or not is_exported(start.checkpoint.path) or options is None:
        return None
    values, paths, every = options
    path = start.checkpoint.path
    files = PredictionFiles(**values)
    model = open_without_proposals(path)
    print(*arguments.notes, f"checkpoint: {start.checkpoint}", sep="\n", flush=True)
    files.use_folder(start.checkpoint.folder)
    found = find_inputs(paths, every)
    keep_inputs(files.paths, [path, *paths], "--predictions.output")
    files.check(model.class_names, model.description.category_ids)
    images = without_drawings(found.images, paths)
    if note := found.note():
        print(note, file=sys.stderr, flush=True)
    files.begin()
    try:
        try:
            _predict(model, images, files)
            files.close()
            files.join(NAME)
        except (DataError, Stopped):
            files.close()
            files.join(STOPPED)
            raise
        SIGNALS.waits = False
        if SIGNALS.received is not None:  # after the last image
            raise KeyboardInterrupt
        print(files.report(), flush=True)
    except DataError as error:
        raise DataError(f"{error}\n{files.how_to_go_on()}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(files.how_to_go_on()) from None
    finally:
        SIGNALS.waits = False
        files.discard()
    return files


def _predict(model: ExportedModel, images: Sequence[Input], files: PredictionFiles) -> None:
    """Write the detections of each image; Stopped after the image in hand where a signal came."""
    with Progress("predict", len(images)) as progress:
        for image, pixels in _read_ahead(images):
            SIGNALS.begin_item()
            try:
                array = pixels.result()
            except DataError as error:
                if not files.skips_unreadable:
                    raise
                files.write_error(image.image_id, str(error))
            else:
                (detections,) = model.detect(np.ascontiguousarray(array.transpose(2, 0, 1)[None]))
                height, width = array.shape[:2]
                files.write(image.image_id, image.image_id, (width, height), detections, array)
            progress.step()
            if SIGNALS.received is not None:
                raise Stopped


def _read_ahead(images: Sequence[Input]) -> Iterator[tuple[Input, Future[np.ndarray]]]:
    """Each image with its pixels, which another thread reads."""
    reader, coming = InputReader(), deque[tuple[Input, "Future[np.ndarray]"]]()
    with ThreadPoolExecutor(1) as pool:
        for image in images:
            coming.append((image, pool.submit(reader.read, image)))
            if len(coming) > AHEAD:
                yield coming.popleft()
        yield from coming


def _options(arguments: Arguments) -> tuple[dict[str, Any], list[str], int] | None:
    """The arguments of `PredictionFiles`, the inputs, and every how many-th frame; None where there are others."""
    if arguments.files or arguments.modules or arguments.ask_for_help or arguments.option("data") != "ImageFolder":
        return None
    pairs = dict(arguments.pairs())
    own = {name.removeprefix("predictions."): value for name, value in pairs.items() if name.startswith("predictions.")}
    if None in own.values() or not pairs.keys() - {f"predictions.{name}" for name in own} <= KNOWN:
        return None
    values = plain_values(PredictionFiles, replace(arguments, options=[f"--{n}={value}" for n, value in own.items()]))
    every = arguments.option("data.every") or "1"
    try:
        paths = json.loads(arguments.option("data.path") or "")
    except ValueError:
        return None
    if values is None or values.get("agnostic_nms") or not every.isdecimal():
        return None
    return (values, paths, int(every)) if isinstance(paths, list) and all(isinstance(p, str) for p in paths) else None
