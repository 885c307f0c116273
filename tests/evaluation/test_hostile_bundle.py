"""Bundles of somebody else: a damaged or planted one is one error, and writes nothing outside."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile

import pytest

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.evaluation.report.bundle import write_bundle
from adrpo_scale.evaluation.report.given import read_given
from adrpo_scale.evaluation.report.unbundle import read_bundle
from tests.evaluation.test_report import OLD

EVAL = "folders/000/old/eval.jsonl"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Path → bytes of a sound bundle's files."""
    folder = tmp_path_factory.mktemp("bundle")
    shutil.copytree(OLD / "image", folder / "old")
    given = read_given([str(folder / "old")], "evaluated", lambda: folder)
    write_bundle(folder / "out.tar", given)
    with tarfile.open(folder / "out.tar") as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}


def listed(files):
    lines = [
        f"{hashlib.sha256(files[name]).hexdigest()} {len(files[name])} {name}\n"
        for name in sorted(files)
        if name != "MANIFEST"
    ]
    return files | {"MANIFEST": "".join(lines).encode()}


def tar_of(files, *more):
    """A tar of `files`, after the members `more`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in more:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def member(name, kind=tarfile.REGTYPE, link="", **pax):
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.pax_headers = kind, link, pax
    return found


def read(tmp_path, content):
    """Reads a bundle of these bytes; (error, paths that were made beside the unpacked ones)."""
    path, to = tmp_path / "in" / "out.tar", tmp_path / "in" / "new"
    to.mkdir(parents=True)
    path.write_bytes(content)
    try:
        return read_bundle(path, to)
    finally:
        outside = {p.name for p in (*tmp_path.iterdir(), *path.parent.iterdir())}
        assert outside == {"in", "new", "out.tar"}
        assert not [p for p in to.rglob("*") if p.is_symlink()]


def refused(tmp_path, content, *said):
    with pytest.raises(ConfigError) as error:
        read(tmp_path, content)
    text = str(error.value)
    assert "out.tar" in text and "\n" not in text and len(text) < 2500
    assert all(part in text for part in said), text


def test_a_sound_one_is_read(files, tmp_path):
    (run,) = read(tmp_path, tar_of(files)).runs
    assert run.folder.name == "old" and run.rows


PLANTED = {
    "absolute": (member("/tmp/planted"), "leads out of its folder"),
    "above": (member("folders/../../../planted"), "leads out of its folder"),
    "dot": (member("folders/./x"), "leads out of its folder"),
    "backslash": (member("folders\\..\\x"), "has a character"),
    "escape": (member("folders/\x1b[2Jx"), "has a character"),
    "long": (member("folders/" + "x/" * 20 + "x"), "is too long"),
    "folder": (member("folders/new", tarfile.DIRTYPE), "is no plain file"),
    "symlink": (member("folders/000", tarfile.SYMTYPE, "/tmp"), "is no plain file"),
    "hard link": (member("folders/x", tarfile.LNKTYPE, "/etc/passwd"), "is no plain file"),
    "device": (member("folders/x", tarfile.CHRTYPE), "is no plain file"),
    "fifo": (member("folders/x", tarfile.FIFOTYPE), "is no plain file"),
    "sparse": (
        member("folders/x", **{"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 60)}),
        "",
    ),
    "renamed by a header": (member("folders/x", path="../../planted"), "leads out of its folder"),
    "huge": (member("folders/x", size=str(1 << 62)), ""),
    "elsewhere": (member("home/x"), "is no file of a bundle"),
    "twice": (member(EVAL), "is there twice"),
    "a file where a folder is": (member("folders/000"), ""),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_member_is_refused(name, files, tmp_path):
    planted, why = PLANTED[name]
    refused(tmp_path, tar_of(files, planted), why)


def test_a_cut_one_is_refused_wherever_it_was_cut(files, tmp_path):
    whole = tar_of(files)
    used = len(whole.rstrip(b"\0"))
    for number, cut in enumerate(
        (0, 1, 511, 512, 700, used // 3, used // 2, used - 1000, used - 1)
    ):
        refused(tmp_path / str(number), whole[:cut], "copy it again")


def test_a_changed_byte_is_named_with_its_file(files, tmp_path):
    changed = files | {EVAL: files[EVAL].replace(b"0", b"1", 1)}
    stated = hashlib.sha256(files[EVAL]).hexdigest()[:12]
    refused(tmp_path / "a", tar_of(changed), repr(EVAL), f"MANIFEST says {stated}")
    fewer = {name: content for name, content in files.items() if name != EVAL}
    refused(tmp_path / "b", tar_of(fewer), f"{EVAL!r} is missing")
    more = files | {"folders/000/old/more.json": b"{}"}
    refused(tmp_path / "c", tar_of(more), "more.json' is not listed")
    without = {name: content for name, content in files.items() if name != "MANIFEST"}
    refused(tmp_path / "d", tar_of(without), "it has no MANIFEST")
    refused(tmp_path / "e", tar_of(files | {"MANIFEST": b"\xff\n"}), "no bundle that can be read")
    refused(tmp_path / "f", tar_of(files | {"MANIFEST": b"hello\n"}), "is not `sha256 bytes path`")


@pytest.mark.parametrize(
    "content", [b"", b"PK\3\4" + b"x" * 4000, gzip.compress(b"0" * 10_000_000)]
)
def test_another_file_is_refused(content, tmp_path):
    refused(tmp_path, content, "no bundle that can be read")


def test_a_million_headers_end_in_an_error(files, tmp_path):
    """Headers of headers, which Python's reader follows one inside the other."""
    header = member("x", tarfile.XHDTYPE).tobuf(tarfile.USTAR_FORMAT)
    refused(tmp_path, header * 5000 + tar_of(files), "no bundle that can be read")


INDEXES = {
    "another version": ({"format": 2}, "its format is 2"),
    "no runs": ({"runs": None}, "a list is expected"),
    "a run above": ({"runs": [{"folder": "../..", "at": "", "weights": "raw"}]}, "another form"),
    "an unknown run": (
        {"runs": [{"folder": "folders/9", "at": "", "weights": ""}]},
        "another form",
    ),
    "a run elsewhere": (
        {
            "runs": [{"folder": "/etc", "at": "", "weights": "raw"}],
            "folders": {"/etc": {"path": "x", "settings": {}}},
        },
        "names a folder that is not in it",
    ),
    "an odd iteration": (
        {"runs": [{"folder": "folders/000/old", "at": "@../x", "weights": ""}]},
        "",
    ),
    "a run that is not there": (
        {
            "runs": [{"folder": "folders/1", "at": "", "weights": "raw"}],
            "folders": {"folders/1": {"path": "x", "settings": {}}},
        },
        "out.tar: folders/1/eval.jsonl is not there",
    ),
    "an origin elsewhere": (
        {
            "folders": {
                "folders/000/old": {"path": "x", "settings": {}, "origin": "folders/../../x"}
            }
        },
        "names a folder that is not in it",
    ),
    "settings of another kind": (
        {"folders": {"folders/000/old": {"path": "x", "settings": [1]}}},
        "an object is expected",
    ),
}


@pytest.mark.parametrize("name", INDEXES)
def test_an_odd_index_is_refused(name, files, tmp_path):
    changes, why = INDEXES[name]
    index = json.loads(files["bundle.json"]) | changes
    refused(tmp_path, tar_of(listed(files | {"bundle.json": json.dumps(index).encode()})), why)


@pytest.mark.parametrize("text", [b"[]", b"{", b"[" * 100_000, b'{"format": 1e999}', b"\xff"])
def test_an_index_that_is_no_object_is_refused(text, files, tmp_path):
    refused(tmp_path, tar_of(listed(files | {"bundle.json": text})), "no bundle that can be read")
