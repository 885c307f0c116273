"""An export takes nothing along that lies outside of its base, and writes nothing outside of its
own folder."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from adrpo_scale.core.errors import AdrpoError, ExportError, ModelNotFoundError
from adrpo_scale.export.base import Copy, Request
from adrpo_scale.export.copies import write_copies
from adrpo_scale.export.exporter import export
from adrpo_scale.export.merged_base import merge_adapters
from adrpo_scale.hub.inside import is_inside, real_file

SECRET = "the key of somebody"


@pytest.fixture
def base(root, tmp_path):
    """A copy of the base model, with a secret and somebody's folder beside it."""
    shutil.copytree(root / "base-model", tmp_path / "base")
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "config.json").write_text("{}")
    (tmp_path / "secret").write_text(SECRET)
    return tmp_path / "base"


def exported(root, base):
    to = base.parent / "out" / "deep" / "export"
    to.parent.mkdir(parents=True, exist_ok=True)
    return export(str(root / "runs/lora"), Request(to, "merged", verify="none"), str(base)).folder


def tree(place):
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


@pytest.mark.parametrize("name", ["../victim", "/{}/victim", "vae/../../victim", "a b", "", "."])
def test_a_component_is_a_folder_beside_its_index(root, base, name):
    index = json.loads((base / "model_index.json").read_text())
    index[name.format(base.parent)] = ["diffusers", "AutoencoderKL"]
    (base / "model_index.json").write_text(json.dumps(index))
    before = tree(base.parent / "victim")
    with pytest.raises(ExportError, match="expected the name of a folder beside it"):
        exported(root, base)
    assert tree(base.parent / "victim") == before and tree(base.parent / "out") == ["deep"]


def link(path, to):
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(to)


@pytest.mark.parametrize(
    "place",
    ["LICENSE.md", "LICENSE", "notice.txt", "vae/config.json", "tokenizer/x.txt", "scheduler/a.md"],
)
def test_what_a_link_of_the_base_leads_to_is_not_taken_along(root, base, place):
    link(base / place, base.parent / "secret" if "config" not in place else "../../c.json")
    shutil.copy(root / "base-model/vae/config.json", base.parent / "c.json")
    with pytest.raises(ModelNotFoundError, match="outside of the model's folder"):
        exported(root, base)
    assert tree(base.parent / "out") == ["deep"]


def test_a_component_that_is_a_link_is_not_taken_along(root, base):
    (base / "text_encoder").rename(base.parent / "elsewhere")
    link(base / "text_encoder", base.parent / "elsewhere")
    with pytest.raises(ModelNotFoundError, match="outside of the model's folder"):
        exported(root, base)


def test_links_inside_the_base_are_followed(root, base):
    (base / "LICENSE.md").rename(base / "terms")
    link(base / "LICENSE.md", "terms")
    (base / "vae" / "config.json").rename(base / "vae" / "kept.json")
    link(base / "vae" / "config.json", base / "vae" / "kept.json")
    to = exported(root, base)
    assert (to / "LICENSE.md").read_text() == (base / "terms").read_text()
    assert not any(path.is_symlink() for path in to.rglob("*"))


def test_a_base_in_the_hubs_cache_is_exported(root, base):
    """Its files are links to the contents beside its snapshots."""
    repo = base.parent / "models--own--sd3"
    snapshot = repo / "snapshots" / ("0" * 40)
    (repo / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in base.rglob("*") if path.is_file())):
        place = snapshot / path.relative_to(base)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, repo / "blobs" / str(number))
        place.symlink_to(os.path.relpath(repo / "blobs" / str(number), place.parent))
    to = exported(root, snapshot)
    assert (to / "LICENSE.md").is_file() and (to / "vae/config.json").is_file()
    link(snapshot / "LICENSE.md", repo.parent / "secret")
    shutil.rmtree(to)
    with pytest.raises(ModelNotFoundError, match="outside of the model's folder"):
        exported(root, snapshot)


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/x", "..", "", "a\\..\\x", "C:x", "a\0b", "linked/x"]
)
def test_nothing_is_written_outside_of_the_folder(tmp_path, name):
    folder, source = tmp_path / "export", tmp_path / "source"
    folder.mkdir()
    source.write_text(SECRET)
    (folder / "linked").symlink_to(tmp_path)
    for arguments in (([Copy(source, name)], {}), ([], {name: SECRET})):
        with pytest.raises(ExportError, match="outside of the export's folder"):
            write_copies(*arguments, folder, link=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "source"]


def test_names_inside():
    assert all(map(is_inside, ["a", "a/b.json", ".a", "a..b", "a/...", "a b/ü"]))


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "a").symlink_to("a")
    (tmp_path / "b").symlink_to("nothing")
    for name in "ab":
        with pytest.raises(AdrpoError, match="leads nowhere"):
            real_file(tmp_path / name, tmp_path)


@pytest.mark.parametrize("name", ["LICENSE", "tokenizer.json", "config.json", "anything.txt"])
def test_a_merged_base_takes_nothing_along_from_outside(tmp_path, name):
    base = tmp_path / "base"
    base.mkdir()
    for each in ("adapter_config.json", "adapter_model.safetensors"):
        (base / each).write_text("{}")
    (tmp_path / "secret").write_text(SECRET)
    (base / name).symlink_to(tmp_path / "secret")
    with pytest.raises(ModelNotFoundError, match="outside of the model's folder"):
        merge_adapters(str(base), tmp_path / "to")
    assert not (tmp_path / "to").exists()
