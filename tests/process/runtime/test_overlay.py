"""LinuxOverlay with the kernel's own overlayfs."""

import os

import pytest

from hal.errors import HalError, Refused, Unavailable
from hal.linux.overlay import LinuxOverlay

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root"),
]


def test_writes_go_to_the_upper_directory_and_the_image_stays(tmp_path) -> None:
    image = tmp_path / "image"
    image.mkdir()
    (image / "f").write_text("image")
    home = tmp_path / "home"
    overlay = LinuxOverlay()
    paths = [str(image), *(str(home / name) for name in ("upper", "work", "rootfs"))]
    try:
        overlay.mount(*paths)
    except Unavailable as exc:
        pytest.skip(f"no overlayfs here: {exc}")
    try:
        assert (home / "rootfs/f").read_text() == "image"
        (home / "rootfs/f").write_text("changed")
        assert (image / "f").read_text() == "image"
        assert (home / "upper/f").read_text() == "changed"
    finally:
        overlay.unmount(paths[3])
    assert os.listdir(home / "rootfs") == []
    overlay.unmount(paths[3])
    overlay.unmount(str(home / "absent"))


def test_what_cannot_be_mounted_is_an_error(tmp_path) -> None:
    overlay = LinuxOverlay()
    good = str(tmp_path / "x")
    for bad in ("relative", "/a,b", "/a:b"):
        with pytest.raises(Refused):
            overlay.mount(bad, good, good, good)
    with pytest.raises(HalError, match="no-such"):
        overlay.mount(str(tmp_path / "no-such"), good, f"{good}-work", f"{good}-root")
    assert os.listdir(f"{good}-root") == []
