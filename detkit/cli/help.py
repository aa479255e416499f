"""What there is, in words: the commands, and the options that a user of fit, validate, test and predict needs first."""

from __future__ import annotations

from detkit.__about__ import __version__

COMMANDS = {
    "fit": "train a detector, with a checkpoint and an mAP after every epoch",
    "validate": "the mAP of a checkpoint on the validation split",
    "test": "the mAP of a checkpoint on the test split, and a report on it",
    "predict": "the detections of a checkpoint on images, folders, lists and videos, in files and drawn",
    "evaluate": "the mAP and a report of detections in files, COCO's or VOC's, without a model",
    "propose": "boxes that may hold objects, computed once and kept in a file, and how many objects they cover",
    "convert": "a data set in another format: COCO, VOC, YOLO or CSV",
    "doctor": "what is wrong with a data set: files, images, boxes, classes, sets, and how the anchors fit",
    "recipe": "a config that fits a data set and this machine, with the reason of each value",
    "export": "a detector in one file that runs without detkit: ONNX, OpenVINO, torch.export",
    "compress": "a checkpoint's fully connected layers by truncated SVD: quicker, no training",
    "split": "divide a data set that has no sets of its own into train, val and test, for good",
    "benchmark": "how fast detectors are on this machine: the three generations, or one of them in every format",
    "demo": "draw a small data set, train on it, test, and show the detections",
}

#: What follows `detkit benchmark`.
BENCHMARKS = {
    "generations": "R-CNN, Fast R-CNN and Faster R-CNN: seconds an image, stage by stage, and mAP",
    "speed": "one detector: in Python, by torchvision, and in each exported format that is installed",
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
  detkit fit --config my.yaml --model.init_from torchvision:fasterrcnn_resnet50_fpn_v2
  detkit test runs/my
  detkit predict runs/my photos/ --draw
  detkit predict runs/my clip.mp4 --every 10 --format csv --classes cat,dog
  detkit propose --config my.yaml --split train --method SelectiveSearch
  detkit convert data/my_photos --to yolo --output data/my_yolo
  detkit recipe data/my_photos --minutes 20
  detkit doctor data/my_photos --output doctor/
  detkit export runs/my --format onnx
  detkit compress runs/my --rank fc6=1024,fc7=256
  detkit split photos/ --data.split "[0.7, 0.2, 0.1]"
  detkit evaluate --detections predictions.json --annotations instances_val2017.json
  detkit benchmark generations --data VOC --data.path data/my_voc
  detkit benchmark speed runs/my --images photos/
"""

#: An example of each command of Lightning's.
EXAMPLES = {
    "fit": "--config faster_rcnn/custom_voc --data.path data/my_voc",
    "validate": "runs/my",
    "test": "runs/my",
    "predict": "runs/my photos/ --draw",
}

#: What is to be said besides the options.
NOTES = {
    "predict": "RUN is a run's folder, a checkpoint or torchvision:NAME, like --ckpt_path; INPUT images, folders, "
    "patterns, lists of files (.txt, or - for standard input), videos, or a data set. "
    "Options of --predictions need not be called --predictions.NAME. ",
    "validate": "RUN is a run's folder or a checkpoint, like --ckpt_path; a data set after it is like --data. ",
    "test": "RUN is a run's folder or a checkpoint, like --ckpt_path; a data set after it is like --data. ",
}

#: The help of an option: in a fit, and in the other commands.
OPTIONS = {
    "ckpt_path": (
        "Go on from it: `last` of this run, a run's folder (runs/NAME) or a checkpoint file.",
        "Needed: a run's folder (runs/NAME), whose best checkpoint is used, a checkpoint file, or torchvision:NAME (a "
        "Faster R-CNN for COCO). Model, classes and preprocessing come from it.",
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
    required = {"fit": "--config FILE", "predict": "RUN INPUT..."}.get(command, "RUN")
    return {
        "usage": f"detkit {command} {required} [options]",
        "description": f"{what[0].upper()}{what[1:]}. For example: detkit {command} {EXAMPLES[command]}. "
        f"{NOTES.get(command, '')}--config is "
        "given the path of a file, or the name of one of the project's; --import MODULE imports classes of your own.",
    }
