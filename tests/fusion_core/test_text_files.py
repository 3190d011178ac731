"""Files of text, streamed: every format gives the same documents, from any place on, in little memory."""

import gzip
import io
import itertools
import json
import pathlib
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fusion_core as fc
from fusion_core.text import parquet_pages, read_documents
from fusion_core.text.files import read_file
from tests.fuzz.mutations import varint

try:
    import pyarrow
    import zstandard
    from pyarrow import parquet
except ImportError:
    pyarrow = None

extra = pytest.mark.skipif(pyarrow is None, reason="needs the extra corpora")

quick = settings(max_examples=60, derandomize=True, deadline=None)
ROOT = pathlib.Path(__file__).parent.parent.parent

TEXTS = [f"document {i}: naïve Ωmega 漢字 🙂\nsecond line {'x' * (7 * i)}" for i in range(30)]


def kinds(*names):
    """Parameters of these files, of which some need packages."""
    return [pytest.param(n, marks=extra if n.endswith(("zst", "parquet")) else ()) for n in names]


def zst(data):
    return zstandard.ZstdCompressor().compress(data)


def write(path, texts):
    """The documents in the format that the path's suffixes say."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    if name.endswith(".parquet"):
        table = pyarrow.table({"url": ["u"] * len(texts), "text": texts})
        parquet.write_table(table, path, row_group_size=4)
        return path
    if name.endswith(("jsonl", "json")):
        data = "".join(json.dumps({"text": t, "url": "u"}, ensure_ascii=False) + "\n" for t in texts).encode()
    else:
        data = "\n\n\n".join(texts).encode()
    return compressed(path, data)


def compressed(path, data):
    """Write the bytes, compressed as the path's suffix says."""
    path.write_bytes({".gz": gzip.compress, ".zst": zst}.get(path.suffix, bytes)(data))
    return path


FORMATS = kinds(
    "a.txt", "a.md", "a.jsonl", "a.txt.gz", "a.jsonl.gz", "a.json.gz", "a.txt.zst", "a.jsonl.zst", "a.parquet"
)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_documents_and_goes_on_after_any(tmp_path, name):
    path = write(tmp_path / name, TEXTS)
    found = list(read_file(path))
    assert [text for text, _ in found] == TEXTS
    for i, (_, position) in enumerate(found):
        assert [text for text, _ in read_file(path, position)] == TEXTS[i + 1 :]
        assert list(read_file(path, position)) == found[i + 1 :]


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_and_read_documents_have_them_too(tmp_path, name):
    write(tmp_path / name, TEXTS)
    assert read_documents([tmp_path]) == TEXTS


def test_a_plain_json_file_in_a_folder_is_not_text(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    write(tmp_path / "a.txt", TEXTS)
    assert read_documents([tmp_path]) == TEXTS


def test_a_line_of_json_is_a_document_whatever_is_in_it(tmp_path):
    texts = ["two\nlines\n\n\nin one document", "a line separator \u2028 inside, and \x0b\x1c\x85"]
    assert read_documents([write(tmp_path / "a.jsonl", texts)]) == texts


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "world"}\n')
    assert read_documents([tmp_path / "a.txt", tmp_path / "b.jsonl"]) == ["hello", "world"]


LINES = st.lists(st.sampled_from(["", " ", "\t ", "a", "b c", "é"]), max_size=14)


@quick
@given(lines=LINES, ending=st.sampled_from(["\n", "\r\n"]), last=st.booleans())
def test_two_empty_lines_separate_as_in_the_text_as_a_whole(tmp_path_factory, lines, ending, last):
    path = tmp_path_factory.getbasetemp() / "lines.txt"
    text = ending.join(lines) + (ending if last else "")
    path.write_bytes(text.encode())
    whole = re.split(r"\n[ \t]*\n[ \t]*\n", text.replace("\r\n", "\n"))
    assert [t for t, _ in read_file(path) if t.strip()] == [t for t in whole if t.strip()]


@quick
@given(text=st.text("ab é漢\n", max_size=80), longest=st.integers(8, 30))
def test_text_without_empty_lines_is_cut_and_nothing_is_lost(tmp_path_factory, text, longest):
    text = re.sub(r"\n\s*\n", "\n", text)
    path = tmp_path_factory.getbasetemp() / "long.txt"
    path.write_bytes(text.encode())
    found = list(read_file(path, longest=longest))
    assert "".join(t for t, _ in found) == text
    assert all(len(t.encode()) < 3 * longest for t, _ in found)
    for i, (_, position) in enumerate(found):
        assert list(read_file(path, position, longest)) == found[i + 1 :]


@extra
def test_frames_of_zstd_follow_each_other(tmp_path):
    (tmp_path / "a.txt.zst").write_bytes(zst(b"one\n\n\n") + zst(b"") + zst(b"two"))
    assert read_documents([tmp_path / "a.txt.zst"]) == ["one", "two"]


@extra
def test_long_windows_and_skippable_frames_of_zstd_are_read(tmp_path):
    long = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=long).compressobj()
    skippable = (0x184D2A50).to_bytes(4, "little") + (4).to_bytes(4, "little") + b"skip"
    path = tmp_path / "a.txt.zst"
    path.write_bytes(skippable + packer.compress(b"long ") + packer.flush() + skippable + zst(b"window"))
    assert read_documents([path]) == ["long window"]


# Memory

# generates, streams and measures in a process of its own; the memory of the imports does not count
MEMORY = r"""
import gzip, json, pathlib, re, sys
import zstandard, pyarrow.parquet
from fusion_core.text import TextFiles
from fusion_core.text.documents import BlockStart, blocks
import itertools

def status(name):
    return int(re.search(name + r":\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024

before = status("VmRSS")
pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
most = characters = 0
found = blocks(TextFiles(sys.argv[1:]), 0, BlockStart(), 1000, 1 << 20)
for start, texts in itertools.takewhile(lambda block: block[0].epoch < 1, found):
    characters += sum(map(len, texts))
print(json.dumps([characters, status("VmHWM") - before]))
"""

LINE = "The quick brown fox jumps over the lazy dog, and %d more do as well. " * 14 + "\n"


def corpus(folder, suffix, megabytes):
    """A file of so many megabytes of text: documents of one line and, in the middle, one long document."""
    path = folder / f"big{suffix}"
    lines = (LINE % ((i,) * 14) for i in range(megabytes * 1000))
    if suffix == ".parquet":
        writer = None
        for part in iter(lambda: list(itertools.islice(lines, 4000)), []):
            table = pyarrow.table({"text": part})
            writer = writer or parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
        writer.close()
    elif suffix == ".jsonl.zst":
        with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as packed:
            for line in lines:
                packed.write((json.dumps({"text": line}) + "\n").encode())
    elif suffix == ".txt.gz":
        with gzip.open(path, "wb", compresslevel=1) as file:
            for line in lines:
                file.write(line.encode())
    else:
        with path.open("wb") as file:
            for line in lines:
                file.write(line.replace("\n", " ").encode())
    return path


@pytest.mark.skipif(not pathlib.Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("suffix", "megabytes", "limit"),
    [
        pytest.param(".txt", 40, 20e6, id="one line of 40 MB"),
        pytest.param(".txt.gz", 40, 20e6, id="gz without empty lines"),
        pytest.param(".jsonl.zst", 40, 20e6, id="zst", marks=extra),
        # Arrow's allocator takes 40 MB, also for a file of 5 MB
        pytest.param(".parquet", 100, 60e6, id="parquet", marks=extra),
    ],
)
def test_memory_does_not_grow_with_the_file(tmp_path, suffix, megabytes, limit):
    path = corpus(tmp_path, suffix, megabytes)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    characters, peak = json.loads(done.stdout)
    assert characters > 0.9e6 * megabytes
    assert peak < limit, f"{peak / 1e6:.0f} MB"


# Bad input


def refused(path, message):
    with pytest.raises(fc.InputError, match=message) as caught:
        list(read_file(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", kinds("a.txt", "a.jsonl.gz", "a.txt.zst", "a.parquet"))
def test_a_missing_file_is_refused(tmp_path, name):
    refused(tmp_path / name, "there is no file .*; check the path")


@pytest.mark.parametrize("name", kinds("a.jsonl.gz", "a.txt.gz", "a.jsonl.zst", "a.txt.zst", "a.parquet"))
@pytest.mark.parametrize("keep", [3, 0.5, -1])
def test_a_cut_off_file_is_refused(tmp_path, name, keep):
    """Wherever it is cut: the library for zst would end without a word."""
    path = write(tmp_path / name, TEXTS)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep == 0.5 else keep])
    refused(path, "cannot be read: .*; check the file, or leave it out")


@extra
def test_the_library_alone_would_not_say_that_a_file_is_cut_off(tmp_path):
    data = zst("".join(TEXTS).encode())[:-1]
    assert io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data))).read() is not None


@pytest.mark.parametrize("name", kinds("a.txt.gz", "a.txt.zst", "a.parquet"))
def test_a_file_of_another_kind_is_refused(tmp_path, name):
    (tmp_path / name).write_text("plain text, longer than any header would be")
    refused(tmp_path / name, "cannot be read: .*; check the file, or leave it out")


@pytest.mark.parametrize("where", [slice(40, 60), slice(-8, -4)], ids=["inside", "checksum"])
@pytest.mark.parametrize("name", kinds("a.txt.gz", "a.txt.zst"))
def test_damage_is_found(tmp_path, name, where):
    path = write(tmp_path / name, TEXTS)
    data = bytearray(path.read_bytes())
    data[where] = bytes(b ^ 0xFF for b in data[where])
    path.write_bytes(data)
    with pytest.raises(fc.InputError, match=name):
        list(read_file(path))


@pytest.mark.parametrize("line", ["{", '{"txt": "a"}', '{"text": 5}', "[1]", '"text"', "[" * 100_000, '{"text": null}'])
@pytest.mark.parametrize("suffix", kinds("", ".gz", ".zst"))
def test_a_bad_json_line_is_refused_with_its_number_also_after_going_on(tmp_path, line, suffix):
    path = compressed(tmp_path / f"a.jsonl{suffix}", ('{"text": "good"}\n\n' + line + "\n").encode())
    refused(path, r'line 3: expected one JSON object a line, \{"text": "\.\.\."\}')
    _, position = next(read_file(path))
    with pytest.raises(fc.InputError, match="line 3"):
        list(read_file(path, position))


@pytest.mark.parametrize("name", kinds("a.txt", "a.jsonl", "a.txt.gz", "a.txt.zst"))
def test_wrong_utf8_is_refused_with_its_offset(tmp_path, name):
    data = b'{"text": "fine"}\n\n\n{"text": "gr' + b'\xfcn"}\n'
    path = compressed(tmp_path / name, data)
    refused(path, f"is not UTF-8: byte 0xfc at offset {data.index(0xFC)}; convert it")
    _, position = next(read_file(path))
    with pytest.raises(fc.InputError, match=f"at offset {data.index(0xFC)}"):
        list(read_file(path, position))


@extra
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"body": ["a"]}, "has no column text of strings, but body: string; rename the column that has them"),
        ({"text": [1]}, "has no column text of strings, but text: int64"),
        ({"text": ["a", "b", None]}, "row group 0, row 2: the text is null"),
    ],
)
def test_a_parquet_without_text_is_refused(tmp_path, columns, message):
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", message)


@extra
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", ["none", "snappy", "zstd"])
def test_the_pages_of_a_parquet_are_found(tmp_path, monkeypatch, version, codec):
    """Their sizes lead from the first to the end of the column chunk; a last one that says more than there is is refused."""
    monkeypatch.setattr("fusion_core.text.files.WITHOUT_BUFFER", 0)
    texts = [f"{i} " * (3000 if i % 50 == 0 else 40) for i in range(400)]  # the bounds in a header may be long
    path, options = tmp_path / "a.parquet", {"data_page_version": version, "data_page_size": 2000, "compression": codec}
    options |= {"use_dictionary": codec == "snappy", "row_group_size": 200, "write_batch_size": 10}
    parquet.write_table(pyarrow.table({"text": texts}), path, **options)
    assert [text for text, _ in read_file(path)] == texts
    metadata = parquet.ParquetFile(path).metadata
    assert [end - at for [(at, end)] in parquet_pages.chunks_of(path, "text")] == [
        metadata.row_group(i).column(0).total_compressed_size for i in (0, 1)
    ]
    (at, end), pages = parquet_pages.chunks_of(path, "text")[1][0], []
    with path.open("rb") as file:
        while at < end:
            length, size = parquet_pages.page(file, at, 1 << 20)
            pages.append((at, size))
            at += length + size
    assert at == end
    assert len(pages) > 5 or codec == "snappy"
    data = path.read_bytes()
    _, packed = parquet_pages.varint(data, pages[-1][0] + 3)  # kind, size unpacked, size, each after a byte of its own
    _, after = parquet_pages.varint(data, packed + 1)
    path.write_bytes(data[: packed + 1] + varint(2 * 1_600_000_000) + data[after:])
    refused(path, "row group 1: a page says that it has 1,600,000,000 bytes, but the file has ")


def test_a_compressed_parquet_is_passed_over_in_folders_and_refused(tmp_path):
    write(tmp_path / "a.txt", TEXTS)
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    assert read_documents([tmp_path]) == TEXTS
    refused(tmp_path / "a.parquet.gz", "is a compressed .parquet, which cannot be entered anywhere; unpack it first")


@extra
@pytest.mark.parametrize(("name", "module"), [("a.txt.zst", "zstandard"), ("a.parquet", "pyarrow")])
def test_a_missing_package_is_named_with_the_remedy(tmp_path, monkeypatch, name, module):
    path = write(tmp_path / name, TEXTS)
    for loaded in [m for m in sys.modules if m.partition(".")[0] == module]:
        monkeypatch.setitem(sys.modules, loaded, None)
    refused(path, rf"needs {module} to be read; pip install 'deepfusion\[corpora\]'")
