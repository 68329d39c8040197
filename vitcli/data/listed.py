"""The files that a manifest lists: as they are stored, and where they lie if not in files below its folder."""

import hashlib
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from vitcli.data.samples import Labels, Places
from vitcli.files import Where, signature
from vitcli.images.find import where
from vitcli.storage.named import is_address, split_address
from vitcli.storage.remote import Remote, Root, entries
from vitcli.storage.tar import Member
from vitcli.text import safe


@dataclass(frozen=True, eq=False)
class Listed:
    """Files one by one."""

    files: tuple[Where, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int, /) -> Where:
        return self.files[i]

    def take(self, rows: Labels) -> "Listed":
        return Listed(tuple(self.files[i] for i in rows.tolist()))

    def joined(self, *others: "Listed") -> "Listed":
        return Listed(tuple(chain(self.files, *(other.files for other in others))))

    def hashes(self) -> None:
        return None

    def digest(self) -> bytes:
        """Of names, and of sizes where those cost no request."""
        digest = hashlib.sha256()
        for one in self.files:
            known = None if isinstance(one, Remote) else signature(one)
            digest.update(f"{one}\0{known.size if known else -1}\0".encode("utf-8", "surrogateescape"))
        return digest.digest()


class Stored:
    """Files below a folder by a name in any Unicode form: file systems and editors differ in how they write an é."""

    def __init__(self, folder: Root) -> None:
        self.folder = folder
        self.listed: dict[Root, dict[str, list[str]]] = {}

    def name(self, file: str) -> str:
        """`file` as it is stored, without blanks around it that are not there; unchanged where there is none."""
        if isinstance(self.folder, Remote) or self._elsewhere(file):
            return file.strip()
        for spelt in (file, file.strip()):
            if os.path.exists(self.folder / spelt):
                return spelt
            if not spelt.isascii() and (found := self._in_another_form(spelt)):
                return found
        return file

    def key(self, file: str) -> str:
        """What two names of one file have in common."""
        if is_address(file):
            return file
        return os.path.normpath(f"{self.folder}/{file}" if isinstance(self.folder, Remote) else self.folder / file)

    def fault(self, file: str) -> str:
        """What is wrong with a file, if anything. One behind an address of its own is not asked for yet."""
        if is_address(file):
            return ""
        found = self._where(file)
        if isinstance(found, Member):
            return f"{safe(file)}: {found.fault}" if found.fault else ""
        try:
            if isinstance(found, Remote):
                self._look()
            if found.is_file():  # type: ignore[union-attr]
                return ""
            there = found.exists()  # type: ignore[union-attr]
        except ValueError:  # a NUL in the name
            there = False
        return f"{safe(file)} is not a file" if there else f"{safe(file)} does not exist"

    def places(self, files: Sequence[str]) -> Places | None:
        """Where they lie; None where all are files below the folder, or at absolute paths."""
        if not any(map(self._elsewhere, files)):
            return None
        return Listed(tuple(map(self._where, files)))

    def _elsewhere(self, file: str) -> bool:
        return is_address(file) or (split_address(file) is not None and not os.path.lexists(f"{self.folder}/{file}"))

    def _where(self, file: str) -> Where:
        if not self._elsewhere(file):
            return self.folder / file
        return where(file if is_address(file) else str(self.folder / file))

    def _look(self) -> None:
        """Lists the folder behind an address once, instead of asking for file after file."""
        if self.folder not in self.listed:
            self.listed[self.folder] = {}
            try:
                entries(self.folder)
            except OSError:
                return  # a store that does not list

    def _in_another_form(self, file: str) -> str | None:
        found = Path()
        for part in Path(file).parts:
            if not os.path.lexists(Path(str(self.folder)) / found / part):
                forms = self._names(self.folder / found).get(unicodedata.normalize("NFC", part), [])
                if len(forms) != 1:
                    return None
                part = forms[0]
            found /= part
        return str(found)

    def _names(self, folder: Root) -> dict[str, list[str]]:
        if folder not in self.listed:
            self.listed[folder] = {}
            for name in os.listdir(str(folder)) if folder.is_dir() else ():
                self.listed[folder].setdefault(unicodedata.normalize("NFC", name), []).append(name)
        return self.listed[folder]
