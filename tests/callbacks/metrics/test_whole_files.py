import pytest

from callbacks.metrics.whole_files import write_whole


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = write_whole(tmp_path / "new" / "page.md", "first – whole\n")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "half\ud800")
    assert path.read_text(encoding="utf-8") == "first – whole\n"
    assert [found.name for found in path.parent.iterdir()] == ["page.md"]
