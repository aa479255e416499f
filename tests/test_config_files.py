"""The project's configs are found by name; tests/cli reads wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from detkit.config_files import config_names, find_config
from detkit.errors import ConfigError


@pytest.mark.parametrize("name", ["shapes/rcnn", "shapes/rcnn.yaml", "configs/shapes/rcnn.yaml"])
def test_a_config_is_found_by_name_from_any_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == config_names()["shapes/rcnn"]
    mine = tmp_path / name
    mine.parent.mkdir(parents=True)
    mine.write_text("{}")
    assert find_config(name) == Path(name)


def test_a_config_in_the_folder_is_nearer(tmp_path: Path) -> None:
    (tmp_path / "my_photos.yaml").touch()
    (tmp_path / "my_photo.txt").touch()
    with pytest.raises(ConfigError, match=r"my_photo\.yaml: no such config file; did you mean \S*my_photos\.yaml[?]"):
        find_config(tmp_path / "my_photo.yaml")


@pytest.mark.parametrize("name", ["shapes/rcn", "custom_voc.yml", "faster_rcn/custom_vok"])
def test_a_misspelt_name_is_answered_with_the_nearest(name: str) -> None:
    meant = "shapes/rcnn" if name.startswith("shapes") else "faster_rcnn/custom_voc"
    with pytest.raises(ConfigError, match=f"no such config file; did you mean {meant}[?]\n.*rcnn/modern_custom"):
        find_config(name)
