"""Files that appear when they are complete."""

import contextlib
import io
import threading

from rayembed.records.stored_folder import StoredFolder


def test_a_file_that_becomes_longer_is_read_whole(tmp_path):
    """The first stream asked for the size before the change, and reads as much of what is there now."""
    folder = StoredFolder(str(tmp_path))
    folder.put("number", b"10")
    files = folder.files
    streams = [io.BytesIO(b"1"), io.BytesIO(b"10")]

    class Changing:
        get_file_info = files.get_file_info

        def open_input_stream(self, name):
            return streams.pop(0)

    folder.files = Changing()
    assert folder.get("number") == b"10"


def test_a_block_that_fails_leaves_nothing(tmp_path):
    folder = StoredFolder(str(tmp_path), "a")
    folder.create()
    with contextlib.suppress(RuntimeError), folder.writing("b/c") as stream:
        stream.write(b"half")
        raise RuntimeError
    assert folder.get("b/c") is None
    with folder.writing(lambda: "b/d") as stream:
        stream.write(b"whole")
    assert (folder.names(), folder.names("b"), folder.get("b/d")) == (["b"], ["d"], b"whole")
    assert not list(tmp_path.glob("a/.*"))


def test_a_folder_that_comes_and_goes_is_listed(tmp_path):
    """pyarrow alone fails in some of 10,000 calls: the folder appears after it was not found."""
    folder = StoredFolder(str(tmp_path))
    ended = threading.Event()

    def come_and_go():
        while not ended.is_set():
            (tmp_path / "parts").mkdir()
            (tmp_path / "parts").rmdir()

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        found = {tuple(folder.names("parts")) for _ in range(10_000)}
    finally:
        ended.set()
        other.join()
    assert found == {()}
