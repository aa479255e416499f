"""What there is, in words: the commands, and the options that a user of fit, validate, test and predict needs first."""

from __future__ import annotations

from detkit.__about__ import __version__

COMMANDS = {
    "fit": "train a detector, with a checkpoint and an mAP after every epoch",
    "validate": "the mAP of a checkpoint on the validation split",
    "test": "the mAP of a checkpoint on the test split, and a report on it",
    "predict": "the detections of a checkpoint on images, as COCO JSON and drawn",
    "evaluate": "the mAP and a report of detections in files, COCO's or VOC's, without a model",
    "propose": "boxes that may hold objects, computed once and kept in a file, and how many objects they cover",
    "convert": "a data set in another format: COCO, VOC, YOLO or CSV",
    "compress": "a checkpoint's fully connected layers by truncated SVD: quicker, no training",
    "benchmark": "the three generations on this machine: seconds an image, stage by stage, and mAP",
    "demo": "draw a small data set, train on it, test, and show the detections",
}

HELP = """detkit {version}: R-CNN, Fast R-CNN and Faster R-CNN

usage: detkit COMMAND [options]

{commands}

options:
  --version   the version
  --help      this text; `detkit COMMAND --help` shows all options of a command,
              `detkit fit --model.help FasterRCNN` those of a class

examples:
  detkit fit --config shapes/faster_rcnn
  detkit fit --config my.yaml --model.optim.lr 0.005 --trainer.max_epochs 24
  detkit fit --config my.yaml --ckpt_path last            go on where it stopped
  detkit test --ckpt_path runs/my
  detkit predict --ckpt_path runs/my --data ImageFolder --data.path photos/ --predictions.draw true
  detkit propose --config my.yaml --split train --method SelectiveSearch
  detkit convert data/my_photos --to yolo --output data/my_yolo
  detkit compress --ckpt_path runs/my --rank fc6=1024,fc7=256
  detkit evaluate --detections predictions.json --annotations instances_val2017.json
  detkit benchmark generations --data VOC --data.path data/my_voc
"""

#: An example of each command of Lightning's.
EXAMPLES = {
    "fit": "--config faster_rcnn/custom_voc --data.path data/my_voc",
    "validate": "--ckpt_path runs/my",
    "test": "--ckpt_path runs/my",
    "predict": "--ckpt_path runs/my --data ImageFolder --data.path photos/ --predictions.draw true",
}

#: The help of an option: in a fit, and in the other commands.
OPTIONS = {
    "ckpt_path": (
        "Go on from it: `last` of this run, a run's folder (runs/NAME) or a checkpoint file.",
        "Needed: a run's folder (runs/NAME), whose best checkpoint is used, or a checkpoint file. Model, classes and "
        "preprocessing come from it.",
    ),
    "model": (
        "FasterRCNN, FastRCNN, RCNN or ImageClassifier; its options are --model.NAME VALUE, and --model.help CLASS "
        "explains them.",
        "The checkpoint's; --model.NAME VALUE changes an option of it, and --model.help CLASS explains them.",
    ),
    "data": (
        "VOC, COCO, Shapes, ...; its options are --data.NAME VALUE, and --data.help CLASS explains them.",
        "VOC, COCO, ImageFolder, Shapes, ...; by default that of the checkpoint's run. Its options are --data.NAME "
        "VALUE, and --data.help CLASS explains them.",
    ),
}


def help_text() -> str:
    """What `detkit --help` prints."""
    commands = "\n".join(f"  {name:<10}  {line}" for name, line in COMMANDS.items())
    return HELP.format(version=__version__, commands=commands)


def describe(command: str) -> dict[str, str]:
    """Usage and description of fit, validate, test or predict, for its parser."""
    what = COMMANDS[command]
    required = "--config FILE" if command == "fit" else "--ckpt_path RUN"
    return {
        "usage": f"detkit {command} {required} [options]",
        "description": f"{what[0].upper()}{what[1:]}. For example: detkit {command} {EXAMPLES[command]}. --config is "
        "given the path of a file, or the name of one of the project's; --import MODULE imports classes of your own.",
    }
