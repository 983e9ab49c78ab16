"""shipping.py: what travels to a cluster, what does not, and which copy a node uses."""

import os
from pathlib import Path

import pytest

from feedrate.search import shipping
from feedrate.search.options import UsageError
from feedrate.search.shipping import digest_of, on_this_node, shipment
from feedrate.trainables.resolve import make_ref


@pytest.fixture
def project(tmp_path):
    """A folder as people have them."""
    folder = tmp_path / "project"
    for name in ("train.py", "secrets.py", "package/__init__.py", "package/mod.py", ".git/config", "data/small.bin", "conf/app.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"# {name}\n")
    return folder


def sent(folder):
    """What Ray itself would pack of it, relative."""
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    found = []
    with shipment(folder) as shipped:
        _dir_travel(folder, [_get_excludes(folder, shipped.runtime_env["excludes"])], found.append, include_gitignore=True)
        return {str(path.relative_to(folder)) for path in found if path.is_file()}, shipped


def test_code_is_sent_and_clutter_is_not(project):
    (project / "__pycache__").mkdir()
    (project / "__pycache__" / "train.pyc").touch()
    names, shipped = sent(project)
    assert names == {"train.py", "secrets.py", "package/__init__.py", "package/mod.py", "data/small.bin", "conf/app.yaml"}
    assert shipped.left_out == ()
    assert shipped.said() is None


def test_secrets_large_files_and_links_are_left_out_and_told(project, tmp_path, monkeypatch):
    """Also in folders below, and with names that are patterns."""
    monkeypatch.setattr(shipping, "MAX_FILE_BYTES", 1000)
    for name in (".env", "conf/key.pem", "conf/aws-credentials.json", ".ssh/id_rsa", ".aws/config"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text("secret")
    large = project / "data" / "a[1] #*!.bin"
    large.write_bytes(bytes(1001))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "huge.bin").write_text("data")
    (project / "linked").symlink_to(tmp_path / "elsewhere")
    names, shipped = sent(project)
    assert names == {"train.py", "secrets.py", "package/__init__.py", "package/mod.py", "data/small.bin", "conf/app.yaml"}
    assert set(shipped.left_out) == {".env", "conf/key.pem", "conf/aws-credentials.json", ".ssh", ".aws", "data/a[1] #*!.bin", "linked"}
    assert shipped.said().startswith("not sent to the cluster: ")
    assert "and 2 more (files over" in shipped.said()


def test_a_home_folder_is_refused(project, monkeypatch):
    """Before anything of it is read."""
    monkeypatch.setattr(shipping, "MAX_FILES", 3)
    with pytest.raises(UsageError, match=r"holds more than 3 files: start feedrate in your project's folder"), shipment(project):
        pass


def test_feedrate_is_sent_with_its_version(project):
    """Importable from the folders alone, and gone afterwards."""
    with shipment(project) as shipped:
        package, info = map(Path, shipped.runtime_env["py_modules"])
        assert {"search", "trainables", "analysis"} == {path.name for path in package.iterdir()}
        assert (package / "search" / "run.py").is_file()
        assert (package / "analysis" / "py.typed").is_file() == (Path(shipping.__file__).parents[1] / "analysis" / "py.typed").is_file()
        assert "Name: feedrate" in (info / "METADATA").read_text()
        assert not list(package.rglob("__pycache__"))
    assert not package.exists()


def test_a_bundled_workload_needs_no_folder():
    """feedrate is sent, and nothing of where it was started."""
    with shipment(None) as shipped:
        assert set(shipped.runtime_env) == {"py_modules"}
        assert shipped.said() is None


def test_a_node_uses_the_folder_in_its_place_or_the_copy(project, tmp_path, monkeypatch):
    """In place where the same file lies there; the copy where there is none, or another one."""
    ref = make_ref("train.py:workload", cwd=project)
    digest, root = digest_of(ref), str(project)
    copy = tmp_path / "copy"
    copy.mkdir()
    monkeypatch.chdir(copy)
    assert on_this_node(ref, None, None) is ref
    assert on_this_node(ref, root, digest) is ref
    (project / "train.py").write_text("# changed here")
    there = on_this_node(ref, root, digest)
    assert (there.target, there.folder, there.cwd) == (f"{copy}/train.py:workload", str(copy), str(copy))
    os.rename(project, tmp_path / "gone")
    assert on_this_node(ref, root, digest) == there


def test_modules_and_bundled_workloads(project, tmp_path, monkeypatch):
    """A module's file decides; what is installed everywhere stays what it is."""
    monkeypatch.chdir(tmp_path)
    ref = make_ref("package.mod:workload", cwd=project)
    assert digest_of(ref) != digest_of(make_ref("package:workload", cwd=project))
    assert on_this_node(ref, str(project), digest_of(ref)) is ref
    there = on_this_node(ref, str(project), "another")
    assert (there.target, there.folder) == ("package.mod:workload", str(tmp_path))
    for name in ("images", "json:loads"):
        ref = make_ref(name, cwd=project)
        assert digest_of(ref) is None
        assert on_this_node(ref, str(project), None) is ref
