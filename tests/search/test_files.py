import pytest

from spared_fm.errors import InputError
from spared_fm.search import files


def test_checksums_of_files_and_their_beginnings(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_STEP", 4)
    (tmp_path / "a").write_bytes(b"123456789")
    assert files.checksum(tmp_path / "a") == "e3069283"  # the check value of CRC-32C
    (tmp_path / "b").write_bytes(b"123456789 and more")
    assert files.checksum(tmp_path / "b", 9) == "e3069283"
    with pytest.raises(InputError, match="b is damaged"):
        files.check(tmp_path / "b", "e3069283")
