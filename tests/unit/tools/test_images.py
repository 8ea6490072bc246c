"""Images of every form that people have become one manifest; what is wrong with them is said."""

import hashlib
import io
import json
import os
import tarfile

import pytest

from tools.errors import BadUsage
from tools.images import open_image, pack_tree


def tar_of(entries, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


LAYER = tar_of({"bin/sh": b"#!"})


class Layout:
    """An OCI image layout that is written by hand from the specification."""

    def __init__(self, root):
        self.root = root
        (root / "blobs" / "sha256").mkdir(parents=True)
        (root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, data, media_type, **more):
        digest = hashlib.sha256(data).hexdigest()
        (self.root / "blobs" / "sha256" / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data), **more}

    def document(self, value, media_type, **more):
        return self.blob(json.dumps(value).encode(), media_type, **more)

    def image(self, arch="amd64", layer=LAYER):
        config = self.document(
            {
                "architecture": arch,
                "os": "linux",
                "config": {
                    "Env": ["PATH=/bin", "A=b=c"],
                    "Entrypoint": ["/bin/sh"],
                    "Cmd": ["-c", "true"],
                    "WorkingDir": "/srv",
                    "User": "10",
                    "StopSignal": "SIGINT",
                },
            },
            "application/vnd.oci.image.config.v1+json",
        )
        layers = [self.blob(layer, "application/vnd.oci.image.layer.v1.tar")]
        manifest = {"schemaVersion": 2, "config": config, "layers": layers}
        return self.document(
            manifest,
            "application/vnd.oci.image.manifest.v1+json",
            platform={"os": "linux", "architecture": arch},
        )

    def index(self, *manifests):
        document = {"schemaVersion": 2, "manifests": list(manifests)}
        (self.root / "index.json").write_text(json.dumps(document))
        return self.root


@pytest.fixture
def layout(tmp_path):
    root = tmp_path / "image"
    root.mkdir()
    return Layout(root)


def read(source, arch="amd64"):
    with open_image("x:1", source, arch=arch) as image:
        contents = [layer.path.read_bytes() for layer in image.layers]
        return image, contents


def refused(source, arch="amd64"):
    with pytest.raises(BadUsage) as error:
        read(source, arch)
    return str(error.value)


def test_an_oci_layout_becomes_a_manifest(layout):
    image, contents = read(layout.index(layout.image()))
    assert contents == [LAYER]
    assert image.manifest() == {
        "schema": "apf-image/1",
        "ref": "x:1",
        "arch": "amd64",
        "config": {
            "env": {"PATH": "/bin", "A": "b=c"},
            "entrypoint": ["/bin/sh"],
            "cmd": ["-c", "true"],
            "cwd": "/srv",
            "user": "10",
            "stop_signal": 2,
        },
        "layers": [{"digest": hashlib.sha256(LAYER).hexdigest(), "size_bytes": len(LAYER)}],
    }


def test_a_multi_arch_index_gives_the_one_asked_for(layout):
    inner = {"schemaVersion": 2, "manifests": [layout.image("amd64"), layout.image("arm64")]}
    nested = layout.document(inner, "application/vnd.oci.image.index.v1+json")
    root = layout.index(nested)
    assert read(root, "aarch64")[0].arch == "arm64"
    assert read(root, "x86_64")[0].arch == "amd64"
    assert "it has: amd64, arm64" in refused(root, "riscv64")


def test_a_layout_as_a_tar_is_the_same_image(layout, tmp_path):
    root = layout.index(layout.image())
    packed = tmp_path / "image.tar"
    with tarfile.open(packed, "w") as tar:
        tar.add(root, arcname=".")
    image, contents = read(packed)
    assert (image.manifest(), contents) == (read(root)[0].manifest(), [LAYER])


def test_a_docker_save_tar_is_read(tmp_path):
    config = {"architecture": "amd64", "config": {"Cmd": ["x"]}, "rootfs": {"diff_ids": []}}
    config["rootfs"]["diff_ids"] = [f"sha256:{hashlib.sha256(LAYER).hexdigest()}"]
    entries = {
        "manifest.json": json.dumps([{"Config": "c.json", "Layers": ["a/layer.tar"]}]).encode(),
        "c.json": json.dumps(config).encode(),
        "a/layer.tar": LAYER,
    }
    packed = tmp_path / "saved.tar"
    packed.write_bytes(tar_of(entries))
    image, contents = read(packed)
    assert (image.config["cmd"], contents) == (["x"], [LAYER])
    packed.write_bytes(tar_of({**entries, "a/layer.tar": tar_of({"other": b""})}))
    assert "its digest is" in refused(packed)


def test_a_directory_is_packed_the_same_way_every_time(tmp_path):
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "sh").write_bytes(b"x" * 10)
    (root / "bin" / "sh").chmod(0o4755)
    (root / "bin" / "ash").hardlink_to(root / "bin" / "sh")
    (root / "link").symlink_to("bin/sh")
    (root / "empty").mkdir()
    first, second = tmp_path / "1.tar", tmp_path / "2.tar"
    pack_tree(root, first)
    os.utime(root / "bin" / "sh", (1, 1))
    pack_tree(root, second)
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as tar:
        members = {member.name: member for member in tar}
    assert list(members) == ["bin", "bin/ash", "bin/sh", "empty", "link"]
    assert members["bin/ash"].mode == 0o4755
    assert members["bin/sh"].islnk()
    assert members["link"].linkname == "bin/sh"
    assert {member.uid for member in members.values()} == {0}
    image, _ = read(root)
    assert (image.source_kind, len(image.layers)) == ("rootfs directory", 1)


def test_a_directory_with_a_fifo_is_refused(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    os.mkfifo(root / "pipe")
    assert "fifo" in refused(root)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_a_rootfs_tar_is_one_layer_that_a_cnm_can_unpack(tmp_path, mode):
    path = tmp_path / "root.tar"
    path.write_bytes(tar_of({"bin/sh": b"#!"}, mode))
    image, contents = read(path)
    assert image.layers[0].digest == hashlib.sha256(contents[0]).hexdigest()
    with tarfile.open(fileobj=io.BytesIO(contents[0]), mode="r:gz" if mode == "w:gz" else "r:"):
        pass


def test_a_layer_with_a_wrong_digest_is_refused(layout):
    root = layout.index(layout.image())
    digest = hashlib.sha256(LAYER).hexdigest()
    (root / "blobs" / "sha256" / digest).write_bytes(LAYER + b"\0")
    assert "wanted sha256:" in refused(root)


def test_a_missing_blob_is_refused(layout):
    root = layout.index(layout.image())
    (root / "blobs" / "sha256" / hashlib.sha256(LAYER).hexdigest()).unlink()
    assert "is not in the layout" in refused(root)


def test_what_is_no_image_is_refused(layout, tmp_path):
    assert "no such file" in refused(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    assert "neither a directory nor a tar" in refused(tmp_path / "text")
    (layout.root / "index.json").write_text("{")
    assert "not JSON" in refused(layout.root)
    (layout.root / "index.json").write_text('{"manifests": [{"digest": "sha512:00"}]}')
    assert "only sha256" in refused(layout.root)
    (layout.root / "index.json").write_text('{"manifests": []}')
    assert "wanted a list" in refused(layout.root)


def test_a_saved_tar_that_points_outside_is_refused(tmp_path):
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    listed = json.dumps([{"Config": str(secret), "Layers": ["x"]}]).encode()
    packed = tmp_path / "saved.tar"
    packed.write_bytes(tar_of({"manifest.json": listed}))
    assert f"{str(secret)!r} is not in the archive" in refused(packed)


def test_import_sends_what_is_missing_with_its_descriptor(apf, daemon, layout):
    root = layout.index(layout.image())
    digest = hashlib.sha256(LAYER).hexdigest()
    daemon.answers["image.begin"] = {"missing": [digest]}
    result = apf("image", "import", "x:1", str(root), "--arch", "amd64", "--json")
    assert result.exit_code == 0
    data = json.loads(result.stdout)["data"]
    assert (data["sent_bytes"], data["ref"]) == (len(LAYER), "x:1")
    assert [method for method, _ in daemon.calls] == ["image.begin", "image.blob", "image.commit"]
    assert daemon.calls[1][1] == {"ref": "x:1", "digest": digest, "size_bytes": len(LAYER)}
    assert daemon.file_bytes == [LAYER]


def test_import_sends_nothing_that_is_there_already(apf, daemon, layout):
    daemon.answers["image.begin"] = {"missing": []}
    root = layout.index(layout.image())
    assert apf("image", "import", "x:1", str(root), "--arch", "amd64").exit_code == 0
    assert [method for method, _ in daemon.calls] == ["image.begin", "image.commit"]


@pytest.mark.parametrize(
    ("name", "kind", "link"),
    [
        ("../x", tarfile.REGTYPE, ""),
        ("/etc/x", tarfile.REGTYPE, ""),
        ("a/../../x", tarfile.REGTYPE, ""),
        ("a", tarfile.SYMTYPE, "/etc"),
        ("a/b", tarfile.SYMTYPE, "../../etc"),
        ("d/l", tarfile.SYMTYPE, ".."),  # d is a link to the root of the archive
        ("d/x", tarfile.REGTYPE, ""),
    ],
)
def test_a_member_that_would_leave_the_archive_refuses_all_of_it(tmp_path, name, kind, link):
    packed = tmp_path / "evil.tar"
    with tarfile.open(packed, "w") as tar:
        for member, linkname in (("manifest.json", ""), ("d", "."), (name, link)):
            info = tarfile.TarInfo(member)
            info.type = kind if member == name else tarfile.SYMTYPE if linkname else info.type
            info.linkname = linkname
            tar.addfile(info)
    assert "would leave the archive" in refused(packed)
    assert [path.name for path in tmp_path.iterdir()] == ["evil.tar"]


def config_with(**changes):
    return {"architecture": "amd64", "config": {}, "rootfs": {"diff_ids": []}, **changes}


def saved(tmp_path, config, entries=None, more=()):
    if entries is None:
        entries = [{"Config": "c.json", "Layers": ["l.tar"]}]
    path = tmp_path / "saved.tar"
    manifest = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    files = {"manifest.json": manifest, "c.json": json.dumps(config).encode(), "l.tar": LAYER}
    path.write_bytes(tar_of({**files, **dict(more)}))
    return path


@pytest.mark.parametrize(
    ("config", "entries"),
    [
        (config_with(rootfs="x"), None),
        (config_with(rootfs={"diff_ids": 5}), None),
        (config_with(config=[1]), None),
        (config_with(config={"Env": 5}), None),
        (config_with(config={"Env": [5]}), None),
        (config_with(config={"Cmd": {"a": 1}}), None),
        (config_with(config={"StopSignal": "1" * 5000}), None),
        (config_with(), b"no json"),
        (config_with(), b"[" * 100_000),
        (config_with(), [{"Config": "a\0b", "Layers": ["l.tar"]}]),
        (config_with(), [{"Config": "c.json", "Layers": ["x" * 5000]}]),
    ],
)
def test_a_saved_image_whose_documents_are_of_the_wrong_kind_is_refused(tmp_path, config, entries):
    path = saved(tmp_path, config, entries)
    with pytest.raises(BadUsage), open_image("a:b", path, arch="amd64"):
        pass


def test_a_circle_of_links_in_an_archive_is_refused(tmp_path):
    path = saved(tmp_path, config_with(), [{"Config": "a", "Layers": ["l.tar"]}])
    with tarfile.open(path, "a") as tar:
        for name, target in (("a", "b"), ("b", "a")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    with pytest.raises(BadUsage), open_image("a:b", path, arch="amd64"):
        pass


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_an_archive_that_is_damaged_in_its_middle_is_refused(tmp_path, mode):
    data = bytearray(tar_of({"index.json": b"{}", "oci-layout": os.urandom(200_000)}, mode))
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    path = tmp_path / "image.tar"
    path.write_bytes(bytes(data))
    with pytest.raises(BadUsage), open_image("a:b", path, arch="amd64"):
        pass
    rootfs = bytearray(tar_of({"bin/sh": os.urandom(200_000)}, mode))
    rootfs[len(rootfs) // 2 : len(rootfs) // 2 + 40] = bytes(40)
    path.write_bytes(bytes(rootfs))
    if mode != "w:gz":  # a gzip layer is handed on as it is
        with pytest.raises(BadUsage), open_image("a:b", path, arch="amd64"):
            pass


def test_a_member_below_a_circle_of_links_refuses_the_archive(tmp_path):
    packed = tmp_path / "circle.tar"
    with tarfile.open(packed, "w") as tar:
        tar.addfile(tarfile.TarInfo("manifest.json"))
        circle = tarfile.TarInfo("l")
        circle.type, circle.linkname = tarfile.SYMTYPE, "l"
        tar.addfile(circle)
        tar.addfile(tarfile.TarInfo("l/b/x"))
    assert "would leave the archive" in refused(packed)
