"""Archives read by their headers: whole ones, cut ones at every place, and hostile ones."""

import tarfile
from pathlib import Path

import pytest

from tests.helpers.shards import write_tar
from vitcli.errors import ArchiveError
from vitcli.storage.named import split_address
from vitcli.storage.tar import members

FILES = {f"folder/{i}.jpg": bytes([i]) * (300 + 400 * i) for i in range(4)}


def test_members_are_those_of_tarfile_in_any_order(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", FILES | {"x" * 300 + ".jpg": b"long name"})
    found = list(members(archive))
    with tarfile.open(archive) as expected:
        assert [(one.name, one.size) for one in found] == [(one.name, one.size) for one in expected]
    for one in reversed(found[:4]):
        with one.open() as file:
            assert file.read() == FILES[one.name]
        assert str(one) == f"{archive}#{one.name}"
        assert split_address(str(one)) == (str(archive), one.name)


def test_an_archive_that_is_cut_anywhere_says_so(tmp_path: Path) -> None:
    """At a member's end, too, where `tarfile` sees nothing wrong."""
    data = write_tar(tmp_path / "a.tar", FILES).read_bytes()
    end = 4 * 512 + sum(-(-len(one) // 512) * 512 for one in FILES.values())
    assert len(list(members(tmp_path / "a.tar"))) == 4
    for size in [*range(0, end + 1, 256), 1, 511, 513]:
        (tmp_path / "cut.tar").write_bytes(data[:size])
        with pytest.raises(ArchiveError, match=r"cut\.tar") as error:
            list(members(tmp_path / "cut.tar"))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it is empty"),
        (b"\x1f\x8b\x08\0\0\0" + bytes(2000), "is compressed"),
        (b"BZh91AY" + bytes(2000), "is compressed"),
        (b"\x28\xb5\x2f\xfd" + bytes(2000), "is compressed"),
        (b"<html>" * 500, "damaged or no tar archive"),
        (bytes(range(256)) * 8, "damaged or no tar archive"),
    ],
)
def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(ArchiveError, match=said):
        list(members(tmp_path / "a.tar"))


def test_damage_in_the_middle_is_no_end(tmp_path: Path) -> None:
    data = bytearray(write_tar(tmp_path / "a.tar", FILES).read_bytes())
    data[1024 + 150] ^= 1  # in the second header, whose sum is wrong then
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(ArchiveError, match="what follows is lost"):
        list(members(tmp_path / "a.tar"))


def test_two_archives_in_one_are_refused(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "a.tar", FILES).read_bytes()
    (tmp_path / "two.tar").write_bytes(one + one)
    with pytest.raises(ArchiveError, match="two in one"):
        list(members(tmp_path / "two.tar"))


def test_links_and_devices_are_never_followed(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            entry = tarfile.TarInfo(f"{kind.decode()}.jpg")
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
    found = list(members(path))
    assert len(found) == 4
    for one in found:
        with pytest.raises(OSError, match="link or in pieces"):
            one.open()


def test_a_size_that_no_file_has(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("huge.jpg")
    entry.size = 1 << 40
    (tmp_path / "a.tar").write_bytes(entry.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(ArchiveError, match=r"cut off in huge\.jpg|damaged"):
        list(members(tmp_path / "a.tar"))


def test_an_archive_that_shrank_since_gives_no_half_member(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", FILES)
    last = list(members(archive))[-1]
    archive.write_bytes(archive.read_bytes()[: last.start + 10])
    with pytest.raises(OSError, match="cut off"):
        last.open()
