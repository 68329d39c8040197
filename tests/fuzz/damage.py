"""Damage to bytes, and to values in JSON and TOML. Everything is drawn from the generator that is passed in."""

import json
import math
import random
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

Tree = Any  # JSON as Python has it, but objects are `Pairs`


class Pairs(list[tuple[str, Any]]):
    """An object's keys and values, in which a key may stand twice."""


class Raw(str):
    """Text that stands in the file as it is."""


CONTROL = (
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x07", "\x00", "\x7f", "\x9b31m", "\u202egnp.exe", "\u2066", "\r"
)  # fmt: skip
TEXTS = (
    *CONTROL, "", " ", "\n", "é", "日本語", "\u2028", "\ud800", "\ufeff", "a" * 10_000,
    "../../../etc/passwd", "/dev/zero", "/proc/self/mem", ".", "-1", "1e400", "nan", "true", "None", "%s%n{0}", "[red]",
    "=1+1", "<script>", "__class__",
)  # fmt: skip
NUMBERS = (
    0, -1, 1, 2, 3, 7, 255, 65536, 10**6, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30,
    -(10**30), 0.5, -0.0, 1e-320, 1e300, -1e308, Raw("1e400"), Raw("NaN"), Raw("-Infinity"), Raw("9" * 5000),
)  # fmt: skip
DEEP = (Raw("[" * 500 + "]" * 500), Raw("[" * 100_000 + "]" * 100_000), Raw('{"a":' * 2000 + "1" + "}" * 2000))
OTHERS = (None, True, False, [], Pairs(), [[]], [None], [1, "a", None], [0] * 1000, Pairs([("a", Pairs([("b", 1)]))]))


def damaged_bytes(content: bytes, rng: random.Random, other: bytes = b"") -> bytes:
    """One to four changes: flips, cuts, insertions, copies within, splices from `other`, telling numbers."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        content = rng.choice(_BYTE_DAMAGES)(content, rng, other)
    return content


def damaged_json(text: str, rng: random.Random) -> bytes:
    """The JSON in `text` with one to three values, keys or names changed."""
    tree = json.loads(text, object_pairs_hook=Pairs)
    return dump_json(damaged_tree(tree, rng)).encode("utf-8", "surrogatepass")


def damaged_tree(tree: Tree, rng: random.Random) -> Tree:
    """`tree` changed in one to three places."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(tree))
        if not places:
            return _value(tree, rng)
        holder, i = rng.choice(places)
        if isinstance(holder, Pairs):
            _damage_pair(holder, i, rng)
        else:
            _damage_item(holder, i, rng)
    return tree


def dump_json(tree: Tree) -> str:
    """`tree` as JSON, however deep: what is still to be written waits on a stack, its last item is next."""
    written: list[str] = []
    waiting = [tree]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Pairs):
            items = [part for key, inner in value for part in (Raw(", "), Raw(f"{json.dumps(key)}: "), inner)]
            waiting += reversed((Raw("{"), *items[1:], Raw("}")))
        elif isinstance(value, list):
            items = [part for inner in value for part in (Raw(", "), inner)]
            waiting += reversed((Raw("["), *items[1:], Raw("]")))
        else:
            written.append(value if isinstance(value, Raw) else json.dumps(value))
    return "".join(written)


def dump_toml(tree: Pairs) -> str:
    """Values at the top first, then one section for each object there; deeper objects are written inline."""
    lines = [f"{_toml_key(key)} = {_toml(value)}" for key, value in tree if not isinstance(value, Pairs)]
    for name, section in tree:
        if isinstance(section, Pairs):
            lines += [f"[{_toml_key(name)}]", *(f"{_toml_key(key)} = {_toml(value)}" for key, value in section)]
    return "\n".join(lines) + "\n"


def damage_file(path: Path, rng: random.Random, other: bytes = b"") -> None:
    """The file with its bytes damaged, or, now and then, with something else in its place."""
    if rng.random() < 0.95:
        path.write_bytes(damaged_bytes(path.read_bytes(), rng, other))
    else:
        path.write_bytes(rng.choice((b"", b"\0" * 4096, rng.randbytes(4096), b"PK\x03\x04" + rng.randbytes(60), other)))


def _toml(value: Tree) -> str:
    if isinstance(value, Raw):
        return {"NaN": "nan", "-Infinity": "-inf"}.get(value, value)
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml(inner)}" for key, inner in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return _toml_text(value)
    return json.dumps(value)  # null is no TOML, and that is damage too


def _toml_text(text: str) -> str:
    escaped = json.dumps(text, ensure_ascii=False)
    return re.sub("[\x7f-\x9f\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", escaped)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_text(key)


def _places(tree: Tree) -> Iterator[tuple[list[Any], int]]:
    """Every value inside, at any depth: the list or the pairs that hold it, and where."""
    holders = [tree]
    while holders:
        holder = holders.pop()
        for i, item in enumerate(holder if isinstance(holder, list) else ()):
            yield holder, i
            holders.append(item[1] if isinstance(holder, Pairs) else item)


def _damage_pair(holder: Pairs, i: int, rng: random.Random) -> None:
    key, value = holder[i]
    kind = rng.randrange(10)
    if kind == 0:
        del holder[i]
    elif kind == 1:
        holder.insert(i, (key, _value(value, rng)))
    elif kind == 2:
        holder[i] = (rng.choice((*TEXTS, key + rng.choice(CONTROL), key.upper())), value)
    elif kind == 3:
        holder.append((rng.choice(TEXTS), _value(value, rng)))
    else:
        holder[i] = (key, _value(value, rng))


def _damage_item(holder: list[Any], i: int, rng: random.Random) -> None:
    kind = rng.randrange(6)
    if kind == 0:
        del holder[i]
    elif kind == 1:
        holder.insert(i, holder[i])
    elif kind == 2:
        holder *= rng.choice((2, 100))
    else:
        holder[i] = _value(holder[i], rng)


def _value(old: Tree, rng: random.Random) -> Tree:
    """Something else: half of the time of the same kind, and then often near the old one."""
    if rng.random() < 0.5:
        return deepcopy(rng.choice(rng.choice((TEXTS, NUMBERS, DEEP, OTHERS))))  # what is put in may be damaged next
    if isinstance(old, bool):
        return not old
    if isinstance(old, int | float) and not isinstance(old, Raw) and math.isfinite(old):
        return rng.choice((old + 1, old - 1, -old, old * 2, old * 1000, float(old), str(old), [old], old / 3, *NUMBERS))
    if isinstance(old, str):
        return rng.choice((old + rng.choice(CONTROL), old.upper(), old[::-1], old[:-1], old * 100, *TEXTS))
    if isinstance(old, list):
        return rng.choice((type(old)(), type(old)(old[:1]), type(old)(old[::-1]), [old], type(old)(old * 2)))
    return rng.choice(NUMBERS)


def _flip(content: bytes, rng: random.Random, other: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 20))):
        if changed:
            changed[_where(changed, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _set(content: bytes, rng: random.Random, other: bytes) -> bytes:
    changed = bytearray(content)
    if changed:
        changed[_where(changed, rng)] = rng.choice((0, 1, 7, 0x1B, 0x22, 0x5C, 0x7B, 0x7F, 0x80, 0x9B, 0xFF))
    return bytes(changed)


def _number(content: bytes, rng: random.Random, other: bytes) -> bytes:
    width = rng.choice((2, 4, 8))
    value = rng.choice((0, 1, -1, 2 ** (8 * width - 1) - 1, 2**15, 60_000, 2**20, 2**31, 2**40)) % 2 ** (8 * width)
    at = _where(content, rng)
    return content[:at] + value.to_bytes(width, rng.choice(("little", "big"))) + content[at + width :]


def _cut(content: bytes, rng: random.Random, other: bytes) -> bytes:
    return content[: _where(content, rng)]


def _delete(content: bytes, rng: random.Random, other: bytes) -> bytes:
    at = _where(content, rng)
    return content[:at] + content[at + rng.choice((1, 2, 4, 16, 256, 4096)) :]


def _insert(content: bytes, rng: random.Random, other: bytes) -> bytes:
    at = _where(content, rng)
    new = rng.choice((rng.randbytes(rng.choice((1, 4, 64))), rng.choice(CONTROL).encode(), b"\0" * 512))
    return content[:at] + new + content[at:]


def _copy(content: bytes, rng: random.Random, other: bytes) -> bytes:
    start, at = _where(content, rng), _where(content, rng)
    return content[:at] + content[start : start + rng.choice((1, 8, 64, 1024))] * rng.choice((1, 1, 50)) + content[at:]


def _splice(content: bytes, rng: random.Random, other: bytes) -> bytes:
    return content[: _where(content, rng)] + other[_where(other, rng) :]


_BYTE_DAMAGES: tuple[Callable[[bytes, random.Random, bytes], bytes], ...] = (
    _flip, _flip, _set, _number, _cut, _delete, _insert, _copy, _splice,
)  # fmt: skip


def _where(content: bytes | bytearray, rng: random.Random) -> int:
    """A position, half of the time among the first 200: headers decide more than bodies."""
    return rng.randrange(min(len(content), 200) if rng.random() < 0.5 else len(content)) if content else 0
