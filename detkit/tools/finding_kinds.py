"""What each kind of finding means for a run, and how it is mended."""

from __future__ import annotations

from typing import Literal, NamedTuple

#: What a finding does to a run: it stops it, something of the data is lost, or it is only told.
Effect = Literal["stops", "loses", "note"]


class Kind(NamedTuple):
    """A kind of finding: its effect, what detkit does, and what a user may do."""

    effect: Effect
    does: str
    mend: str


CORRECT, NOTHING = "correct the annotation", "nothing needs to be done"
FIT = "see the suggestion, or let `detkit recipe` choose the images' size and the anchors for your machine"
KINDS = {
    # read with an error
    "error": Kind("stops", "a run stops with this message", "add, correct or remove what it names"),
    "nothing_to_learn": Kind("stops", "a fit stops", "annotate the objects, or look at the boxes that are left out"),
    "unreadable": Kind("stops", "a fit or test stops; predict goes on", "replace or remove the image"),
    # boxes
    "inverted": Kind("loses", "the box is left out", CORRECT),
    "degenerate": Kind("loses", "the box is left out", CORRECT),
    "not_finite": Kind("loses", "the box is left out", CORRECT),
    "outside": Kind("loses", "the box is left out", CORRECT),
    "normalized": Kind("loses", "the box is left out", "multiply it by the width and height of the image"),
    "other_class": Kind("loses", "the objects are left out", "add the class to class_names"),
    "no_box": Kind("loses", "no object is read", "draw the box, or remove the row"),
    "no_image": Kind("loses", "the annotations are left out", "add the images, or remove the annotations"),
    "clipped": Kind("note", "what is within the image is kept", CORRECT),
    "tiny": Kind("note", "it is trained on", "look whether it is a slip of the mouse"),
    "whole_image": Kind("note", "it is trained on", "look whether the object was drawn at all"),
    "same_box": Kind("note", "both are trained on, and one is missed in a test", "remove one"),
    "near_box": Kind("note", "both are trained on, and one is missed in a test", "remove one if they are one"),
    "several_boxes": Kind("note", "each box is an object", CORRECT),
    # images
    "other_size": Kind("note", "the image's size counts", "look whether the boxes fit; correct the size"),
    "exif": Kind("note", "the image is turned", "look whether the boxes fit; --data.exif apply or ignore decides"),
    "turned": Kind("note", "images are turned where --data.exif says so", "look whether the boxes fit"),
    "file_twice": Kind("note", "the image is used twice", "remove one of the ids"),
    "many_objects": Kind("note", "more cannot be found", "--model.detection.max_detections and, in a test, maxDets"),
    "not_annotated": Kind("note", "the images are not used", "annotate them, or take them as empty by the option"),
    "not_listed": Kind("note", "the images are not used", "add them to a set, or remove them"),
    # classes
    "alike_classes": Kind("note", "they are different classes", "rename the objects of one of them"),
    "no_training_box": Kind("note", "the class cannot be learnt", "annotate some, or give class_names without it"),
    "crowds": Kind("note", "they are not trained on", "some exporters mark every mask so; set iscrowd to 0"),
    # sets
    "in_two_sets": Kind("note", "the numbers of a test are too good", "remove the image from one of the sets"),
    "alike_sets": Kind("note", "the numbers of a test are too good", "move the image to the set of the other one"),
    "in_no_set": Kind("loses", "the images are left out", "add them to a set"),
    "empty_set": Kind("note", "there is no such set", "choose its images by --data.sets, or add other images"),
    "alike": Kind("note", "images that are alike are in one set", NOTHING),
    "no_such_set": Kind("note", "the set is not read", "correct the file that names it"),
    # how files were understood
    "duplicate": Kind("note", "it is taken once", "remove what is there twice"),
    "several_annotations": Kind("note", "the last one is taken", "remove the others"),
    "several_classes": Kind("note", "each class is an object", "look whether one is meant"),
    "rotated": Kind("note", "the box around it is taken", NOTHING),
    "from_outline": Kind("note", "its box is taken", NOTHING),
    "grouped": Kind("note", "the shapes of a group are one object", NOTHING),
    "image_rotation": Kind("note", "the image is taken as it is stored", "look whether the boxes fit"),
    "no_label": Kind("loses", "the regions are left out", "label them"),
    "one_class": Kind("note", "all objects are of one class", "add a column with the classes"),
    "unused_category": Kind("note", "the category is left out", NOTHING),
    "no_label_file": Kind("note", "the images have no objects", "look whether the label files are missing"),
    "no_size": Kind("note", "the image's size is read from it", NOTHING),
    "other_name": Kind("note", "the file that is named in the message is taken", "correct the name"),
    "id_type": Kind("note", "they are taken for the same", "write the ids alike"),
    "type": Kind("note", "it is read as what is meant", "write numbers as numbers"),
    "flag": Kind("note", "it is read as what is meant", "write 0 or 1"),
    "ignore": Kind("note", "the objects count as any other, as in COCOeval", NOTHING),
    "confidence": Kind("note", "the number is not used", NOTHING),
    "difficult": Kind("note", "such objects are neither trained on nor missed", NOTHING),
    "no_difficult": Kind("note", "the object is taken as not difficult", NOTHING),
    "zero_based": Kind(
        "note", "VOC counts from 1: boxes may be shifted by a pixel", "look whether all boxes begin at 0"
    ),
    # anchors
    "anchors": Kind("note", "these objects are learnt from their best anchors only", FIT),
    "small_objects": Kind("note", "they are hard to find", FIT),
}
OTHER = Kind("note", "see the message", NOTHING)


def kind_of(name: str) -> Kind:
    """What is known of a kind; the finding's message says it for the others."""
    return KINDS.get(name, OTHER)
