"""The user of an instance, by files that a tenant wrote."""

from pathlib import Path

import pytest

from hal.errors import Refused
from hal.linux.users import User, find_user

PASSWD = "root:x:0:0:r:/root:/bin/sh\nweb:x:7:8::/srv:\nodd:x:²:8::/:\nlong:x:{}:8::/:\n"
GROUP = "adm:x:4:web,root\nodd:x:٣:web\nhuge:x:99999999999:web2\n"


@pytest.fixture
def image(tmp_path: Path) -> str:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD.format("1" * 5000))
    (tmp_path / "etc/group").write_text(GROUP)
    return str(tmp_path)


def test_names_and_numbers_are_found(image: str) -> None:
    assert find_user(image, "web") == User(uid=7, gid=8, groups=(4,), home="/srv")
    assert find_user(image, "7:adm") == User(uid=7, gid=4, groups=(), home="/srv")
    assert find_user(image, "12") == User(uid=12)


@pytest.mark.parametrize("text", ["odd", "long", "²", "1" * 5000, "0:²", "0:odd", "9" * 19])
def test_digits_that_are_no_number_name_nobody(image: str, text: str) -> None:
    with pytest.raises(Refused):
        find_user(image, text)
