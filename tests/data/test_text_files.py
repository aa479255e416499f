from __future__ import annotations

from pathlib import Path

import pytest

from detkit.data.text_files import read_text
from detkit.errors import DataError


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_that_say_what_they_are(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_text("Größe 红\n", encoding=encoding)
    assert read_text(tmp_path / "a.txt") == "Größe 红\n"


@pytest.mark.parametrize(
    ("text", "encoding", "likely"),
    [
        ("<name>红</name>", "gbk", "gb18030"),
        ("红色汽车,交通标志", "gbk", "gb18030"),
        ("<name>Müller</name><name>Größe</name>", "cp1252", "cp125|latin|iso"),
    ],
)
def test_another_encoding_is_named(tmp_path: Path, text: str, encoding: str, likely: str) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=rf"a\.xml: is not written in UTF-8 .*, but likely in ({likely})") as caught:
        read_text(path)
    assert "iconv -f" in str(caught.value)
