"""The VOC folders of the data tests."""

from tests.data.conftest import make_voc as make_voc
