"""A bucket whose client is not installed is refused with the package to install."""

import sys

import pytest

from audiox_trainer.trainer.data.storage import download, open_store


def test_a_missing_client_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)  # as if it were not installed
    message = r"^gs://b/x: needs google.cloud.storage, which is not installed: pip install 'google-cloud-storage<3.3'$"
    with pytest.raises(ValueError, match=message):
        open_store("gs://b/x")
    with pytest.raises(ValueError, match=message):
        download("gs://b/x", tmp_path / "x")
