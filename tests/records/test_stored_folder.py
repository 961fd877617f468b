"""Files that appear when they are complete."""

import contextlib
import io

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
