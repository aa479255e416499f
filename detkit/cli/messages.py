"""jsonargparse's errors in a few lines: what was wrong and where, without the usage text of hundreds of lines."""

from __future__ import annotations

import re
from difflib import get_close_matches

from detkit.cli.arguments import Arguments
from detkit.errors import DetkitError

NOISE = re.compile(
    r"Expected a <class 'NoneType'>.*|Does not validate against any of the Union subtypes|Subtypes: .*|Errors:"
    r"|Given value type: .*|Given value: .*|Expected a path but .* either not accessible or invalid"
)

WORDS = (
    (r"Expected a <class 'tuple'>", "expected a list in brackets"),
    (r"Expected a tuple with (\d+) elements", r"expected a list of \1, in brackets"),
    (r"Expected a <class '(?:[\w.]+\.)?(\w+)'>\.? ?", r"expected \1. "),
    (r"Expected a typing\.Literal\[(.*?)\]\.? ?", r"expected one of \1. "),
    (r"Parser key \"([^\"]+)\":", r"\1:"),
    (r"Problem with given class_path '(?:[\w.]+\.)?(\w+)':", r"\1:"),
    (r"Expected a dot import path string: (.*)", r"there is no class '\1'"),
    (r"(?:Option|Subcommand '\w+' does not accept option) '([^']+)'(?: is not accepted)?", r"there is no option '\1'"),
    (r"unrecognized arguments: (\S+).*", r"there is no option '\1'"),
    (r"\b(?:fit|validate|test|predict)\.(\w+)", r"--\1"),
    (r"the following arguments are required: ", "needed and not given: "),
    (r"\s+$", ""),
)

#: What the values of a list are, where that is easily taken for one number.
OF_TWO = {name: "[training, test]" for name in ("proposals.max_boxes", "rpn_pre_nms", "rpn_post_nms")}
SECTIONS = ("model", "data", "trainer", "checkpoint", "predictions")


def shorten(message: str, command: str, arguments: Arguments, known: list[str] | None = None) -> str:
    """A message of a few lines.

    Args:
        message: what jsonargparse says.
        command: the command that was run.
        arguments: what the user gave, to name the config file that holds the culprit.
        known: the names of options and classes there are, to suggest a near one.
    """
    lines = [re.sub(r"^\s*(- )?", "", line).rstrip() for line in message.splitlines()]
    lines = [_plain(line) for line in lines if line and not NOISE.match(line)]
    text = ""
    for line in lines:  # "model:", "FasterRCNN:", "lr:", "expected a float" make one line
        text += line if not text else f" {line}" if text.endswith(":") else f"\n{line}"
    text = text.rstrip(":") or message
    for name, values in OF_TWO.items():
        text = re.sub(rf"\b{name}: expected a list[\w ,]*", f"{name}: expected two numbers, {values}", text)
    value = re.search(r"\n\s*Given value: (?!\{|\[|Namespace|NestedArg)(.{1,60})$", message)
    if value and "Got value" not in text:
        text = f"{text.rstrip('.')}. Got value: {value[1]}"
    file = _culprit(message, arguments)
    if file:
        text = f"{file}: {text}"
    near = _near(text, known or [])
    return f"{text}{near}\n`detkit {command} --help` shows all options."


def own_cause(error: BaseException) -> DetkitError | None:
    """The error of ours that another one was made of: jsonargparse wraps what a constructor raises."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DetkitError):
        cause = cause.__cause__ or cause.__context__
    return cause


def _plain(line: str) -> str:
    for pattern, replacement in WORDS:
        line = re.sub(pattern, replacement, line)
    return line


def _culprit(message: str, arguments: Arguments) -> str | None:
    """The config file that holds the name the message complains about, if the command line does not."""
    quoted = re.findall(r"(?:option|Option) '([\w.]+)'|Got value: (\S+)|import path string: (\S+)", message)
    for words in quoted:
        name = next(w for w in words if w).split(".")[-1]
        if any(name in option for option in arguments.options):
            return None
        for content, path in zip(arguments.sections, arguments.configs, strict=True):
            if _holds(content, name):
                return path
    return None


def _holds(content: object, name: str) -> bool:
    if isinstance(content, dict):
        return any(str(k) == name or _holds(v, name) for k, v in content.items())
    if isinstance(content, list):
        return any(_holds(v, name) for v in content)
    return str(content) == name


def _near(text: str, known: list[str]) -> str:
    match = re.search(r"there is no (?:option|class) '-*([\w.]+)'", text)
    if not match:
        return ""
    name = match[1]
    section, dot, rest = name.partition(".")
    if dot and section not in SECTIONS and (close := get_close_matches(section, SECTIONS, n=1, cutoff=0.75)):
        return f"; did you mean '--{close[0]}.{rest}'?"
    close = get_close_matches(name, known, n=1, cutoff=0.75) or get_close_matches(
        name.split(".")[-1], [k.split(".")[-1] for k in known], n=1, cutoff=0.75
    )
    return f"; did you mean {close[0]!r}?" if close and close[0] != name else ""
