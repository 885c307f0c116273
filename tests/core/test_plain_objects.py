"""What ranks send to each other is data: it arrives as it was, and nothing else arrives at all."""

from __future__ import annotations

import ast
import dataclasses
import datetime
import enum
import math
import os
import pickle
import pickletools
from collections import Counter, OrderedDict, defaultdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import BaseModel

import adrpo_scale
from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.core import dist, plain_objects
from adrpo_scale.core.chat_endpoint import Answer
from adrpo_scale.core.errors import AdrpoError, ConfigError, StopRequested
from adrpo_scale.core.plain_objects import packed, trust, unpacked
from adrpo_scale.core.tensor_files import FileFacts
from adrpo_scale.core.types import Completion
from adrpo_scale.hub.needs import HubNeed
from tests.support.ranks import run_ranks

PLAIN = [
    None,
    True,
    2**200,
    -0.0,
    math.nan,
    5e-324,
    "ü\ud800\0",
    b"\xff\0",
    (1, [2, {3: (4,)}], {5}, frozenset({6})),
    {"a": 1, (2, 3): 4, None: 5, 1.5: 6},
    Path("/a/b"),
    Counter("aab"),
    OrderedDict(b=1, a=2),
    defaultdict(list, {1: [2]}),
    datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
    datetime.timedelta(seconds=1.5),
    complex(1, -2),
    range(3),
    torch.float32,
    torch.Size([1, 2]),
    torch.device("cuda:1"),
    FileFacts("a", 1, "b"),
    Answer("text", True),
    HubNeed("a/b", allow=("*",)),
    Completion((1, 2), "text", True),
    SimpleNamespace(a=1),
]


@pytest.fixture(autouse=True)
def nothing_trusted(monkeypatch):
    """Tests before these may have loaded components of `tests`, whose classes then travel."""
    monkeypatch.setattr(plain_objects, "_trusted", {"__main__"})
    plain_objects.is_data.cache_clear()
    yield
    plain_objects.is_data.cache_clear()


def test_a_config_that_names_a_class_of_ours_by_its_path_lets_nothing_more_travel():
    trust("adrpo_scale.demo.image.rewards")
    assert not plain_objects.is_data("adrpo_scale.algorithms.base", "Algorithm")
    trust("my_rewards.judge")
    assert plain_objects._trusted == {"__main__", "my_rewards"}


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_data_arrive_as_they_are(value):
    found = unpacked(packed(value))
    assert type(found) is type(value) and repr(found) == repr(value)
    assert found == value or value != value


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64],
)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (5,), (2, 3, 4)])
def test_tensors_and_arrays_arrive_to_the_bit(dtype, shape):
    values = (torch.randn(shape) * 3).to(dtype)
    found = unpacked(packed({"a": values, "b": values}))
    assert torch.equal(found["a"], values) and found["b"].dtype == dtype
    assert found["a"].shape == values.shape
    if dtype != torch.bfloat16:
        for array in (values.numpy(), values.numpy().T, np.array(["x", None, 3], dtype=object)):
            arrived = unpacked(packed(array))
            assert arrived.dtype == array.dtype and np.array_equal(arrived, array)
    number = np.float64(0.1)
    assert type(unpacked(packed(number))) is np.float64
    transposed = torch.arange(6).reshape(2, 3).T
    assert torch.equal(unpacked(packed(transposed)), transposed)
    assert not unpacked(packed(torch.ones(2, requires_grad=True))).requires_grad


def test_pictures_arrive():
    picture = Image.fromarray(np.arange(27, dtype=np.uint8).reshape(3, 3, 3))
    assert np.array_equal(np.asarray(unpacked(packed(picture))), np.asarray(picture))


class OwnError(ConfigError):
    """Of somebody's reward."""


def test_errors_keep_their_class_and_what_is_on_them():
    error = ConfigError("no")
    error.agreed = True
    found = unpacked(packed((1, error)))[1]
    assert type(found) is ConfigError and str(found) == "no" and found.agreed
    assert unpacked(packed(StopRequested(saveable=True))).saveable
    for kind in (RuntimeError, OSError, ValueError, KeyError):
        assert type(unpacked(packed(kind("x")))) is kind
    other = unpacked(packed(OwnError("mine")))
    assert type(other) is ConfigError and str(other) == "mine"  # the nearest that all ranks know


# ---- what does not arrive ------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 1


class Calls:
    """A pickle that calls a function where it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def bomb(mark):
    code = f"open({str(mark)!r}, 'w')"
    import importlib
    import runpy
    import shutil
    import subprocess

    yield Calls(os.system, f"touch {mark}")
    yield Calls(os.mknod, str(mark))
    yield Calls(eval, code)
    yield Calls(exec, code)
    yield Calls(open, str(mark), "w")
    yield Calls(getattr, "a", "upper")
    yield Calls(__import__, "antigravity")
    yield Calls(importlib.import_module, "antigravity")
    yield Calls(runpy.run_path, str(mark))
    yield Calls(shutil.rmtree, str(mark.parent / "victim"))
    yield Calls(subprocess.Popen, ["touch", str(mark)])
    yield Calls(Path.touch, mark)
    yield Calls(torch.load, str(mark))
    yield Calls(torch.storage._load_from_bytes, pickle.dumps(Calls(os.mknod, str(mark))))
    yield Calls(np.load, str(mark))
    yield Calls(pickle.loads, pickle.dumps(Calls(os.mknod, str(mark))))
    yield Calls(partial, os.mknod, str(mark))
    yield Calls(map, os.mknod, [str(mark)])
    yield Calls(type, "X", (), {})
    yield Calls(plain_objects.trust, "os")
    yield Calls(plain_objects._resolved, "os", "system")
    yield Calls(dist.barrier)
    yield Calls(SystemExit, 0)
    yield Calls(KeyboardInterrupt)
    yield Calls(torch.jit.load, str(mark))
    yield Calls(np.ndarray.tofile, np.zeros(1), str(mark))
    yield [Calls(os.mknod, str(mark))]
    yield {"a": (1, {Colour.RED: Calls(os.mknod, str(mark))})}


def streams(mark):
    for each in bomb(mark):
        for protocol in (0, 2, 4, 5):
            yield pickle.dumps(each, protocol=protocol)
    for name in (b"posix\nsystem", b"os\nsystem", b"builtins\neval", b"adrpo_scale.core.files\nos"):
        yield b"c" + name + b"\n(S'touch " + str(mark).encode() + b"'\ntR."
    for module, name in (
        ("adrpo_scale.core.files", "os.system"),
        ("adrpo_scale.core.files", "replace_file"),
        ("adrpo_scale.core.tensor_files", "TensorFileWriter"),
        ("adrpo_scale.core.folder_lock", "RunLock"),
        ("adrpo_scale.training.trainer", "Trainer"),
        ("adrpo_scale.rewards.apart", "obey"),
        ("adrpo_scale.nothing", "Nothing"),
        ("numpy", "memmap"),
        ("pathlib", "os.system"),
        ("torch", "load"),
        ("torch", "serialization.load"),
        ("builtins", "BaseException"),
        ("builtins", "print"),
    ):
        yield f"c{module}\n{name}\n)R.".encode()
    yield from (b"", b".", b"\x80\x05", b"not a pickle", b"\x80\x05N", b"(" * 1000, os.urandom(99))


def test_nothing_else_arrives_and_nothing_is_called(tmp_path):
    mark = tmp_path / "called"
    (tmp_path / "victim").mkdir()
    tried = 0
    for stream in streams(mark):
        with pytest.raises(RuntimeError, match="no message of this package"):
            unpacked(stream)
        tried += 1
    assert tried > 130 and not mark.exists() and (tmp_path / "victim").is_dir()


def test_every_name_in_a_message_is_data():
    """Nothing of a message needs more than the reader allows: it is the same list."""
    for value in PLAIN:
        names = [op for op in pickletools.genops(packed(value)) if op[0].name == "GLOBAL"]
        assert names == []


def test_what_cannot_travel_is_said_on_every_rank():
    for value in (Calls(os.getcwd), lambda: 1, Colour.RED, open, os, (1, [object()])):
        with pytest.raises(RuntimeError, match="a rank cannot send this to the others"):
            unpacked(packed(value))


def test_a_component_of_ones_own_may_send_its_classes(monkeypatch):
    monkeypatch.setattr(plain_objects, "_trusted", {"__main__"})
    plain_objects.is_data.cache_clear()
    with pytest.raises(RuntimeError, match="no data"):
        unpacked(packed(Colour.RED))
    trust(__name__)
    assert unpacked(packed(Colour.RED)) is Colour.RED
    assert type(unpacked(packed(OwnError("mine")))) is OwnError
    with pytest.raises(RuntimeError):
        unpacked(pickle.dumps(Calls(bomb, 1)))
    monkeypatch.undo()
    plain_objects.is_data.cache_clear()


def sends(rank, world):
    for value in (rank, Colour.RED if rank == 1 else rank):
        try:
            yield dist.gather_objects(value)
        except RuntimeError as error:
            yield "cannot send" in str(error)
    try:
        yield dist.broadcast_object(Colour.RED)
    except RuntimeError as error:
        yield "cannot send" in str(error)
    yield dist.run_on_main(lambda: {"a": torch.tensor([rank + 0.5])})


def all_sends(rank, world):
    return list(sends(rank, world))


def test_ranks_agree_that_something_cannot_travel_and_go_on():
    everyone = run_ranks(all_sends, 2)
    assert everyone == [[[0, 1], True, True, {"a": torch.tensor([0.5])}]] * 2


def fails(rank, world):
    def build():
        raise OwnError("mine")

    try:
        dist.run_on_main(build)
    except AdrpoError as error:
        return type(error).__mro__[1 if rank == 0 else 0].__name__, str(error), error.agreed


def test_an_error_of_ones_own_ends_every_rank():
    assert run_ranks(fails, 2) == [("ConfigError", "mine", True)] * 2


def test_a_reader_of_a_checkpoint_says_itself_how_it_travels():
    assert plain_objects.is_data(Reader.__module__, Reader.__name__)


def classes():
    """Every class of the package that may travel."""
    for path in sorted(Path(adrpo_scale.__file__).parent.rglob("*.py")):
        parts = path.relative_to(Path(adrpo_scale.__file__).parents[1]).with_suffix("").parts
        module = ".".join(parts)
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name != "_Writer":
                try:
                    allowed = plain_objects.is_data(module, node.name)
                except ImportError:
                    continue  # of a library that is not here
                if allowed:
                    yield plain_objects._resolved(module, node.name)


def test_no_class_that_may_travel_does_anything_when_it_is_built():
    """Fields are set, and nothing is opened, started or removed."""
    found = list(classes())
    assert len(found) > 150 and Reader in found
    watched = ("__del__", "__setstate__", "__new__", "__setattr__", "__getattr__")
    for kind in found:
        if issubclass(kind, BaseModel | tuple | enum.Enum):
            continue  # pydantic's and Python's own
        own = {name for name in watched if name in vars(kind)}
        if dataclasses.is_dataclass(kind):  # a frozen one has its own, which raises
            own -= {"__setattr__"}
        assert own == set(), kind
        written = "__init__" in vars(kind) and not dataclasses.is_dataclass(kind)
        assert not written or issubclass(kind, Exception) or kind is Reader, kind
