"""What `--help` of fit, validate, test and predict shows: first what a user needs, Lightning's trainer last."""

from __future__ import annotations

from argparse import SUPPRESS, Action, ArgumentParser

from detkit.cli.main import COMMANDS

EXAMPLES = {
    "fit": "--config configs/faster_rcnn/custom_voc.yaml --data.path data/my_voc",
    "validate": "--ckpt_path runs/my",
    "test": "--ckpt_path runs/my",
    "predict": "--ckpt_path runs/my --data ImageFolder --data.path photos/ --predictions.draw true",
}

#: Groups of options in their order, by the first word of the options, and their headings.
GROUPS = {
    "help": "options",
    "ckpt_path": "the checkpoint",
    "model": "the model",
    "data": "the data set",
    "predictions": "what is written",
    "checkpoint": "the best checkpoint",
    "": "set by the data set",
    "trainer": "the trainer, with all options of Lightning's",
}

#: The help of an option in a fit, and in the other commands.
HELP = {
    "ckpt_path": (
        "Go on from it: `last` of this run, a run's folder (runs/NAME) or a checkpoint file.",
        "Needed: a run's folder (runs/NAME), whose best checkpoint it means, or a checkpoint file. Model, classes and "
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


def arrange(parser: ArgumentParser, command: str) -> None:
    """Puts a command's options in order and in words; changes nothing of what it takes.

    Args:
        parser: of the command, with all its options.
        command: fit, validate, test or predict.
    """
    fit = command == "fit"
    required = "--config FILE" if fit else "--ckpt_path RUN"
    parser.usage = f"detkit {command} {required} [options]"
    what = COMMANDS[command]
    parser.description = f"{what[0].upper()}{what[1:]}. For example: detkit {command} {EXAMPLES[command]}"
    for group in parser._action_groups:
        word = _word(group._group_actions)
        group.title, group.description = GROUPS.get(word, group.title), None
        for action in group._group_actions:
            if action.dest in HELP:
                action.help = HELP[action.dest][0 if fit else 1]
            if word == "checkpoint" and not fit:  # taken because a fit's config has them; of no use here
                action.help = SUPPRESS
    order = {word: place for place, word in enumerate(GROUPS)}
    parser._action_groups.sort(key=lambda group: order.get(_word(group._group_actions), len(order)))


def _word(actions: list[Action]) -> str:
    """The first word of a group's options; "" for a group without any, and for what is linked to the data set."""
    word = actions[0].dest.partition(".")[0] if actions else ""
    return "" if not actions or ".init_args." in actions[0].dest else word
