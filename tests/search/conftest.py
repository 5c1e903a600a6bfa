import pytest


@pytest.fixture(autouse=True)
def no_wait_for_the_disk(monkeypatch):
    """Leave the hundreds of small files of these tests in the page cache."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
