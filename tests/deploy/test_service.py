"""The programs of docs/export.md, as they stand there."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from PIL import Image

from .conftest import Exported
from .test_runtime import photographs

PAGE = Path(__file__).parents[2] / "docs" / "export.md"


def answer_of(port: int, body: bytes) -> tuple[int, object]:
    """Status and JSON; it may take a while until the service listens."""
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"http://localhost:{port}", body, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the service does not answer")


def test_programs(pyramid: Exported, tmp_path: Path) -> None:
    blocks = re.findall(r"(?<!<!-- service -->\n)```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    (file, *_) = photographs(tmp_path)
    Image.open(file).save(tmp_path / "photo.jpg")
    (tmp_path / "best.onnx").symlink_to(pyramid.path)
    for block in blocks:
        subprocess.run([sys.executable, "-c", block], cwd=tmp_path, check=True)


def test_the_service_answers_a_photograph(pyramid: Exported, tmp_path: Path) -> None:
    (program,) = re.findall(r"<!-- service -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "serve.py").write_text(program)
    with socket.create_server(("localhost", 0)) as probe:
        port = probe.getsockname()[1]
    (file, *_) = photographs(tmp_path)
    service = subprocess.Popen([sys.executable, tmp_path / "serve.py", pyramid.path, str(port)])
    try:
        status, found = answer_of(port, file.read_bytes())
        assert status == 200
        expected = pyramid.detector.predict(file)
        assert [row["class"] for row in found] == [expected.name(label) for label in expected["labels"].tolist()]
        assert answer_of(port, b"nothing") == (400, {"error": "UnidentifiedImageError"})
    finally:
        service.kill()
        service.wait()
