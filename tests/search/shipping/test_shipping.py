"""shipping.py: which files are sent to a cluster, which are not, and which copy a node uses."""

import os
import subprocess
from pathlib import Path

import pytest

from feedrate.search.options import UsageError
from feedrate.search.shipping import folder_contents, shipping
from feedrate.search.shipping.shipping import digest_of, on_this_node, shipment
from feedrate.trainables.resolve import make_ref


@pytest.fixture
def project(tmp_path):
    """A folder as people have them."""
    folder = tmp_path / "project"
    for name in ("train.py", "secrets.py", "package/__init__.py", "package/mod.py", ".svn/config", "data/small.bin", "conf/app.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"# {name}\n")
    return folder


def sent(folder):
    """The files that Ray itself packs, relative, and the shipment."""
    from ray._private.runtime_env.packaging import _dir_travel

    found = []
    with shipment(folder) as shipped:
        copy = Path(shipped.runtime_env["working_dir"])
        _dir_travel(copy, [], found.append, include_gitignore=True)
        return {str(path.relative_to(copy)) for path in found if path.is_file()}, shipped


def write(folder, *names, text="x"):
    """Make files, with the folders they are in."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


CODE = {"train.py", "secrets.py", "package/__init__.py", "package/mod.py", "data/small.bin", "conf/app.yaml"}


def test_code_is_sent_and_clutter_is_not(project):
    write(project, "__pycache__/train.pyc")
    names, shipped = sent(project)
    assert names == CODE
    assert {entry.path: entry.why for entry in shipped.contents.left_out} == {".svn/": "no run needs it", "__pycache__/": "no run needs it"}
    assert shipped.said() is None


def test_modes_and_empty_folders_are_kept(project):
    """A program that writes into a folder of the project finds it."""
    (project / "outputs" / "deep").mkdir(parents=True)
    (project / "train.py").chmod(0o755)
    with shipment(project) as shipped:
        copy = Path(shipped.runtime_env["working_dir"])
        assert (copy / "outputs" / "deep").is_dir()
        assert os.access(copy / "train.py", os.X_OK)
        assert not os.access(copy / "secrets.py", os.X_OK)
    assert not copy.exists()


def test_secrets_large_files_and_links_are_left_out_and_told(project, tmp_path, monkeypatch):
    """Also in folders below, with names that are patterns, and behind a link with a harmless name."""
    monkeypatch.setattr(folder_contents, "MAX_FILE_BYTES", 1000)
    write(project, ".env", "conf/key.pem", "conf/aws-credentials.json", ".ssh/id_rsa", ".aws/config", text="secret")
    (project / "data" / "a[1] #*!.bin").write_bytes(bytes(1001))
    write(tmp_path, "elsewhere/huge.bin", "home/.netrc")
    (project / "linked").symlink_to(tmp_path / "elsewhere")
    (project / "settings").symlink_to(tmp_path / "home" / ".netrc")
    (project / "extra.py").symlink_to(project / "train.py")
    (project / "broken").symlink_to(tmp_path / "absent")
    os.mkfifo(project / "pipe")
    names, shipped = sent(project)
    assert names == CODE | {"extra.py"}
    assert {entry.path: entry.why for entry in shipped.contents.missed()} == {
        ".env": "may hold a secret",
        "conf/key.pem": "may hold a secret",
        "conf/aws-credentials.json": "may hold a secret",
        ".ssh/": "may hold a secret",
        ".aws/": "may hold a secret",
        "settings": "may hold a secret",
        "data/a[1] #*!.bin": "over 10 MiB",
        "linked/": "link to a folder",
        "broken": "neither a file nor a folder",
        "pipe": "neither a file nor a folder",
    }
    assert shipped.said().startswith("not sent to the cluster: .aws/ (may hold a secret), .env (may hold a secret), ")
    assert "and 5 more; with .feedrateignore you can add to this list or take from it" in shipped.said()


@pytest.mark.parametrize(
    "name",
    [
        ".git-credentials", ".docker/config.json", ".envrc", "token.json", "kubeconfig", "kaggle.json", ".kaggle/kaggle.json",
        "my-service-account-1.json", ".htpasswd", ".my.cnf", ".s3cfg", ".boto", "rclone.conf", "prod.tfstate", "prod.tfstate.backup",
        "prod.tfvars", "server.ppk", "openai_key.txt", "accessKeys.csv", "rootkey.csv", "passwords.txt", "passwords-2024.xlsx",
        "Secrets.YAML", ".streamlit/secrets.toml", "credentials", "deploy_rsa", "id_ed25519.pub", "vault.kdbx", ".ssh/config",
        ".env.production", "prod.env", ".npmrc", ".pypirc", ".netrc", "a/b/.pgpass", "hf_token.txt", "wandb-api-key", ".bashrc",
        "client_secret_1.apps.json", "gcp-key-prod.json", "cert.pfx", "auth.json", ".aws/credentials", ".azure/x", ".dockercfg",
        "sftp-config.json", "wp-config.php", "master.key", "logins.json", "private.asc",
        ".git-credentials.bak", ".netrc~", "server.pem.old", "id_rsa.orig~", "kaggle.json_backup",
    ],
)  # fmt: skip
def test_a_name_that_secrets_have_is_not_sent(tmp_path, name):
    write(tmp_path, name, "train.py")
    assert sent(tmp_path)[0] == {"train.py"}


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json", "tokens.txt", "tokens/part-0.npy", "special_tokens_map.json", "keypoints.csv", "train_keywords.txt", "config.json",
        "secret_sauce.py", "password_model.py", "api_key_loader.py", "environment.yml", "envs/grid.py", "model.safetensors", "shadow/depth.npy",
        "requirements.txt", ".python-version", "dem.asc",
        "train.py.bak", "config.json~",
    ],
)  # fmt: skip
def test_a_name_that_data_and_code_have_is_sent(tmp_path, name):
    write(tmp_path, name, text="")
    assert sent(tmp_path)[0] == {name}


def test_ignore_files_are_read_as_git_reads_them(project, monkeypatch):
    """The deepest one that names a path decides; .feedrateignore has the last word, in both directions, also over our own list."""
    monkeypatch.setattr(folder_contents, "MAX_FILE_BYTES", 1000)
    write(project, "runs/1/log.txt", "package/gen/a.py", "package/gen/keep.py", "notes.md", "conf/api_key.txt", "conf/x.key", "old.bin")
    (project / "large.bin").write_bytes(bytes(1001))
    write(project, ".gitignore", text="runs/\n**/gen/*\n*.md\nold.bin\n")
    write(project, "package/.gitignore", text="!gen/keep.py\n")
    listed = ["git", "-c", "init.defaultBranch=main", "ls-files", "--others", "--exclude-standard"]
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
    git = set(subprocess.run(listed, cwd=project, check=True, capture_output=True, text=True).stdout.split())
    assert sent(project)[0] == git - {"large.bin", "conf/api_key.txt", "conf/x.key", ".svn/config", ".gitignore", "package/.gitignore"}
    write(project, ".feedrateignore", text="# ours\nconf/app.yaml\n!notes.md\n!large.bin\n!api_key.txt\n")
    names, shipped = sent(project)
    added = {"package/gen/keep.py", "notes.md", "large.bin", "conf/api_key.txt"}
    assert names == CODE - {"conf/app.yaml"} | added
    why = {entry.path: entry.why for entry in shipped.contents.left_out}
    assert why["conf/app.yaml"] == "named in .feedrateignore"
    assert why["runs/"] == why["old.bin"] == why["package/gen/a.py"] == "named in .gitignore"
    assert [entry.path for entry in shipped.contents.missed()] == ["conf/x.key"]


def test_a_home_folder_is_refused(project, monkeypatch):
    """Before anything of it is read."""
    monkeypatch.setattr(folder_contents, "MAX_FILES", 3)
    with pytest.raises(UsageError, match=r"has more than 3 files: start feedrate in your project's folder"), shipment(project):
        pass


def test_feedrate_is_sent_with_its_version(project):
    """Importable from the folders alone, and gone afterwards."""
    with shipment(project) as shipped:
        package, info = map(Path, shipped.runtime_env["py_modules"])
        assert {"search", "trainables", "analysis"} == {path.name for path in package.iterdir()}
        assert (package / "search" / "run.py").is_file()
        assert (package / "analysis" / "py.typed").is_file() == (Path(shipping.__file__).parents[2] / "analysis" / "py.typed").is_file()
        assert "Name: feedrate" in (info / "METADATA").read_text()
        assert not list(package.rglob("__pycache__"))
    assert not package.exists()


def test_a_bundled_workload_needs_no_folder():
    """feedrate is sent, and nothing of where it was started."""
    with shipment(None) as shipped:
        assert set(shipped.runtime_env) == {"py_modules"}
        assert shipped.said() is None


def test_a_node_uses_the_folder_in_its_place_or_the_copy(project, tmp_path, monkeypatch):
    """A node uses the file in place if it has the same file there, and the sent copy if it has none or another one."""
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
