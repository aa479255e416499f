"""Arguments as the parser is given them."""

from __future__ import annotations

import pytest

from detkit.cli.arguments import with_nulls


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--model.rpn.channels", "null"], ['--model.rpn={"channels": null}']),
        (["--model.init_args.rpn.channels=null", "--x"], ['--model.init_args.rpn={"channels": null}', "--x"]),
        (["--model.weights", "null"], ["--model.weights", "null"]),
        (["--model.init_args.weights=null"], ["--model.init_args.weights=null"]),
        (["--data.val", "null", "null"], ["--data.val", "null", "null"]),
        (["null"], ["null"]),
    ],
)
def test_null_of_a_nested_option(given: list[str], expected: list[str]) -> None:
    assert with_nulls(given) == expected
