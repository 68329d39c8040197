"""The body of a request → the image files in it, within limits that hold before anything is kept."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from vitcli.errors import VitError
from vitcli.text import safe

MAX_FIELDS = 16  # of a form, beside its files; none is looked at


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may take."""

    waiting: int = 128  # requests that are being received or answered; the next is told to come again
    request_bytes: int = 64 << 20
    images: int = 32  # of one request
    held_bytes: int = 512 << 20  # bodies of all requests together
    seconds: float = 60.0  # to receive a request, and once more to answer it


@dataclass(frozen=True)
class Upload:
    """An image as it came; nothing in it is believed."""

    name: str
    data: bytes


class Refused(VitError):
    """A request that is not answered; `status` is HTTP's."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def announced(headers: Any, limits: Limits) -> int:
    """Bytes that a body may come to, by its own word or by the limit. Raises Refused for more than the limit."""
    length = headers.get("content-length")
    if length is None:
        return limits.request_bytes
    if not (length.isascii() and length.isdecimal()) or int(length[:20]) > limits.request_bytes:
        raise Refused(413, f"more than {limits.request_bytes >> 20} MiB in one request: send smaller images, or fewer")
    return int(length)


async def body_of(chunks: AsyncIterator[bytes], limits: Limits) -> bytes:
    """All of a body. Raises Refused as soon as it is too large."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > limits.request_bytes:
            raise Refused(413, f"more than {limits.request_bytes >> 20} MiB in one request: send smaller images")
    return bytes(body)


def images_in(body: bytes, content_type: str, limits: Limits) -> list[Upload]:
    """The files of a form (multipart/form-data), whatever its fields are called; any other body is one image itself.

    Takes as long as a hostile body makes it, so not for the thread that serves. Raises Refused.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        if kind.startswith(("text/", "application/json", "application/x-www-form")):
            raise Refused(415, "send the image itself, or a form (multipart/form-data) with files in it")
        found = [Upload("image 1", body)] if body else []
    else:
        found = _files_of_form(body, content_type, limits)
    if not found:
        raise Refused(400, "no image in the request: send its bytes, or a form (multipart/form-data) with files in it")
    return found


def _files_of_form(body: bytes, content_type: str, limits: Limits) -> list[Upload]:
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import FormParser, parse_options_header

    found: list[Upload] = []
    fields: list[None] = []
    ended: list[None] = []

    def keep(file: Any) -> None:
        if len(found) >= limits.images:
            raise Refused(413, f"more than {limits.images} images in one request")
        file.file_object.seek(0)
        name, data = (file.file_name or b"").decode("utf-8", "replace"), file.file_object.read()
        file.close()
        if name or data:  # a browser sends a field without a file so
            found.append(Upload(name or f"image {len(found) + 1}", data))

    def pass_over(field: Any) -> None:
        fields.append(None)
        if len(fields) > MAX_FIELDS:
            raise Refused(413, f"more than {MAX_FIELDS} fields in one form")

    _, options = parse_options_header(content_type)
    settings = {"MAX_MEMORY_FILE_SIZE": limits.request_bytes + 1}  # never on disk
    try:
        if not (boundary := options.get(b"boundary")):
            raise FormParserError("it has no boundary")
        parser = FormParser(
            "multipart/form-data", pass_over, keep, lambda: ended.append(None), boundary=boundary, config=settings
        )
        parser.write(body)
        parser.finalize()
        if not ended:
            raise FormParserError("it is cut off")
    except (FormParserError, ValueError) as error:
        raise Refused(400, f"the form is damaged: {safe(error)}") from error
    return found
