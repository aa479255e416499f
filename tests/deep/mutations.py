"""What the fuzzing does to files: damaged bytes, damaged texts, and values that no program expects."""

from __future__ import annotations

import copy
import json
import os
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

#: A module on the path that nobody imports, and the file that appears if any of the code below runs.
UNKNOWN_MODULE = "deep_unknown_module"
CANARY = "deep-canary"
CALLS = (
    {"class_path": "os.system", "init_args": {"command": f"touch {CANARY}"}},
    {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", CANARY]}},
    {"class_path": "builtins.exec", "init_args": {"source": f"open('{CANARY}', 'w')"}},
    {"class_path": "builtins.open", "init_args": {"file": CANARY, "mode": "w"}},
    {"class_path": "pathlib.Path.touch", "init_args": {"self": CANARY}},
    {"class_path": f"{UNKNOWN_MODULE}.Harm", "init_args": {}},
    {"class_path": f"{UNKNOWN_MODULE}.harm"},
)
#: Written as they stand into JSON and YAML, in which Python cannot say them.
RAW = {
    "@@large@@": "1e999",
    "@@digits@@": "1" + "0" * 400,
    "@@deep@@": "[" * 3000 + "]" * 3000,
    "@@deeper@@": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "@@surrogate@@": '"\\ud800"',
    "@@nan@@": "NaN",
    "@@minus@@": "-Infinity",
    "@@nothing@@": "",
}
TEXTS = (
    *("", " ", "0", "-1", "nan", "inf", "1e300", "1e999", "null", "true", "DEFAULT", "cuda", "../../../etc/passwd"),
    *("/etc/passwd", "/dev/zero", "~", "C:\\x", "=1+1", "=cmd|' /C calc'!A0", "+1", "@SUM(A1)", "-2+3", "a,b"),
    *("<script>alert(1)</script>", "]]>", "&amp;", "{{7*7}}", "%s%n", "\x00", "a\x00b", "\n", "\r\n", "\t", '"', "'"),
    *("\ud800", "\u202e", "\U0001f600", "é" * 10, "x" * 5000, "1" * 400, "os.system", f"{UNKNOWN_MODULE}.Harm"),
    *("1_000", "0x10", "٣", "1e-400", "--1", "1;2", "[]", "{}", "!!python/object:os.system", "*a", "&a"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 0.0, -0.0, 0.5, -1.5, 1e-320, 1e300, -1e300, float("nan"), float("inf")),
    *(2**31, 2**63, 2**64, -(2**63), 10**30, [], {}, [[]], [None], [0, 0], [1e300] * 4, {"": 0}, {"class_path": None}),
    *RAW,
    *TEXTS,
    *CALLS,
)
ENTITIES = '<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
XML_HEADS = (
    f"<!DOCTYPE annotation [{ENTITIES}]>",
    '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd">',
    '<!DOCTYPE a [<!ENTITY i SYSTEM "file:///etc/passwd">]>',
    *(f'<?xml version="1.0" encoding="{name}"?>' for name in ("utf-16", "latin-1", "unknown", "ebcdic-cp-be", "")),
)
YAML_VALUES = (
    f'!!python/object/apply:os.system ["touch {CANARY}"]',
    f"!!python/object/new:subprocess.Popen [[touch, {CANARY}]]",
    f"!!python/module:{UNKNOWN_MODULE} ''",
    f"!!python/name:{UNKNOWN_MODULE}.Harm ''",
    *("*none", "&a [*a]", "&a {<<: *a}", "? [a]\n: b", "%YAML 9.9", "|9\n x", "0o9", "1:60:99", "2001-13-45"),
    *("!!binary x", "!!timestamp 9999-99-99", "!!set {a: 1}", "!!float .nan", "!!float x", "!!int 0b", "!!null x"),
)
YAML_BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
BYTES = (b"\x00", b"\xff", b"\xff" * 8, b"\x80" * 64, b"\r", b"\n\n", b" ", b"-", b"9" * 30)
BYTES += (b"\xef\xbb\xbf", b"\x1f\x8b")


def damage(rng: random.Random, data: bytes) -> bytes:
    """The bytes with one to four of them changed, cut, put in, repeated or swapped; sometimes nothing is left."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, size = rng.randrange(len(result) + 1), rng.choice((1, 2, 4, 16, 64, 256))
        kind = rng.randrange(8)
        if kind == 0 and at < len(result):
            result[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(result):
            result[at] = rng.randrange(256)
        elif kind == 2:
            del result[at : at + size]
        elif kind == 3:
            result[at:at] = rng.choice(BYTES) if rng.random() < 0.5 else rng.randbytes(size)
        elif kind == 4:
            result[at:at] = result[at : at + size] * rng.choice((1, 1, 50))
        elif kind == 5:
            other = rng.randrange(len(result) + 1)
            result[at : at + size], result[other : other + size] = result[other : other + size], result[at : at + size]
        elif kind == 6 and at < len(result):
            result[at : at + size] = rng.choice(BYTES)
        elif kind == 7 and rng.random() < 0.3:
            del result[at:]
    return bytes(result)


def damage_text(rng: random.Random, text: str) -> str:
    """The text with a number, a word, or a line replaced, repeated, swapped or left out."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        pattern = rng.choice((r"-?\d+(?:\.\d+)?", r"\w+", r"(?m)^[^\n]*\n", r"[<>/:,\[\]{}\"' \-]"))
        found = list(re.finditer(pattern, text))
        if not found:
            return text
        match, kind = rng.choice(found), rng.randrange(4)
        new = {0: "", 1: match[0] * rng.choice((2, 2, 300)), 2: rng.choice(found)[0]}.get(kind, rng.choice(TEXTS))
        text = text[: match.start()] + new + text[match.end() :]
    return text


def encoded(text: str) -> bytes:
    """As UTF-8, with lone surrogates as they are."""
    return text.encode("utf-8", "surrogatepass")


def damage_tree(rng: random.Random, tree: Any, values: Sequence[Any] = VALUES) -> Any:
    """A copy of nested dicts and lists in which one to three values are replaced, left out, repeated or swapped."""
    holder = {"": copy.deepcopy(tree)}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(holder))
        parent, key = rng.choice(places)
        kind = rng.randrange(10)
        if kind < 6:
            parent[key] = copy.deepcopy(rng.choice(values))
        elif kind == 6 and parent is not holder:
            del parent[key]
        elif kind == 7:
            parent[key] = [parent[key]] * rng.choice((1, 2, 2, 40))
        elif kind == 8:
            other, name = rng.choice(places)
            parent[key], other[name] = copy.deepcopy(other[name]), copy.deepcopy(parent[key])
        elif isinstance(parent, dict) and parent is not holder:
            parent[rng.choice([*TEXTS, 7, None])] = parent.pop(key)
        if not holder:
            break
    return holder.get("")


def name_a_call(rng: random.Random, options: dict[str, Any]) -> dict[str, Any]:
    """Options, one of which names something to call: as detkit's configs name classes, within a list, or as text."""
    call = rng.choice(CALLS)
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": call}}
    forms = (call, [call], call["class_path"], [call["class_path"]], json.dumps(call), {"x": call}, optimizer)
    return {**options, rng.choice(list(options)): copy.deepcopy(rng.choice(forms))}


def _places(tree: Any) -> Any:
    """(container, key) of every value."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _places(tree[key])


def to_json(tree: Any) -> str:
    """JSON, with `RAW` put in."""
    return fill_in(json.dumps(tree, ensure_ascii=False))


def fill_in(text: str) -> str:
    """The text with the names in `RAW`, quoted or not, replaced by what they stand for."""
    if "@@" in text:
        for name, raw in RAW.items():
            text = text.replace(f'"{name}"', raw).replace(f"'{name}'", raw).replace(name, raw)
    return text


def damage_xml(rng: random.Random, text: str) -> str:
    """The text of an XML file with elements left out, repeated, renamed, nested or filled with something else."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        found = list(re.finditer(r"<(\w+)>([^<>]*)</\1>", text)) or list(re.finditer(r"<(\w+)>", text))
        if not found:
            return text
        match, kind = rng.choice(found), rng.randrange(8)
        whole, name = match[0], match[1]
        if kind < 4:
            new = f"<{name}>{rng.choice(TEXTS)}</{name}>"
        elif kind == 4:
            new = ""
        elif kind == 5:
            new = whole * rng.choice((2, 300))
        elif kind == 6:
            new = whole.replace(name, rng.choice(("object", "bndbox", "xmin", "x:y", "size", "annotation", "a" * 3000)))
        else:
            nested = f"<{name}>" * 2000 + f"</{name}>" * 2000
            new = rng.choice((nested, f"<![CDATA[{whole}]]>", "<a b='1' b='2'/>", "&x;"))
        text = text[: match.start()] + new + text[match.end() :]
    if rng.random() < 0.1:
        text = rng.choice(XML_HEADS) + text.replace("<filename>", "<filename>&i;", 1)
    return text


def damage_yaml(rng: random.Random, tree: Any, dump: Callable[[Any], str]) -> str:
    """YAML of a damaged tree; now and then with tags, anchors and aliases that Python's loader might follow."""
    text = fill_in(dump(damage_tree(rng, tree)))
    if rng.random() < 0.3:
        found = list(re.finditer(r": [^\n]*", text))
        if found and rng.random() < 0.8:
            match = rng.choice(found)
            text = f"{text[: match.start()]}: {rng.choice(YAML_VALUES)}{text[match.end() :]}"
        else:
            text = YAML_BOMB + text
    return damage_text(rng, text) if rng.random() < 0.1 else text


class Pickled:
    """Runs a command where it is unpickled."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Pickled:
        return self  # a copy would run it here

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {CANARY}",)
