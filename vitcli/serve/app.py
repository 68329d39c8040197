"""The application: `POST /predict`, `GET /models`, `/health`, `/openapi.json` and the page at `/`."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from vitcli.errors import UsageError
from vitcli.inference.predict import STRANGE, Wishes, as_dict, document_head
from vitcli.serve import page
from vitcli.serve.access import Access, App, Guard
from vitcli.serve.line import Line
from vitcli.serve.openapi import PARAMETERS, document
from vitcli.serve.uploads import Limits, Refused, announced, body_of, images_in
from vitcli.text import as_json, safe

T = TypeVar("T")

EXAMPLES = 3  # classes that are named in the list of models


def build_app(lines: Mapping[str, Line], access: Access, limits: Limits | None = None) -> App:
    """The models of `lines` by their names, the first of which is asked where a request names none."""
    service = Service(lines, limits or Limits())
    routes = [
        Route("/", service.page),
        Route("/models", service.models),
        Route("/health", service.health),
        Route("/openapi.json", service.openapi),
        Route("/predict", service.predict, methods=["POST"]),
    ]
    app = Starlette(
        routes=routes,
        lifespan=service.lifespan,
        exception_handlers={HTTPException: _refused, Refused: _refused, Exception: _failed},
    )
    return Guard(app, access, page.policy(page.html()))


@dataclass(frozen=True)
class Asked:
    """A model, and what is wanted of it."""

    line: Line
    wishes: Wishes
    sets: float | None
    why: bool


class Service:
    """What the routes share: the models, and how much of them is asked for at the moment."""

    def __init__(self, lines: Mapping[str, Line], limits: Limits) -> None:
        self._lines, self._limits = lines, limits
        self._waiting = self._held = 0  # requests, and bytes of their bodies

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        yield
        for line in self._lines.values():
            await asyncio.to_thread(line.close)

    async def page(self, _: Request) -> Response:
        return HTMLResponse(page.html())

    async def health(self, _: Request) -> Response:
        return _json({"status": "ok", "waiting": self._waiting})

    async def models(self, _: Request) -> Response:
        limits = {"request_bytes": self._limits.request_bytes, "images": self._limits.images}
        return _json(
            {"schema": "vit.serve.models/1", "models": [_described(line) for line in self._lines.values()], **limits}
        )

    async def openapi(self, _: Request) -> Response:
        return _json(document())

    async def predict(self, request: Request) -> Response:
        asked = self._asked(request.query_params)
        line = asked.line
        size = announced(request.headers, self._limits)
        with self._admitted(size):
            try:
                async with asyncio.timeout(self._limits.seconds):
                    body = await body_of(request.stream(), self._limits)
            except TimeoutError:
                raise Refused(408, f"the request took longer than {self._limits.seconds:g} s to arrive") from None
            except ClientDisconnect:
                return Response(status_code=400)  # nobody reads it
            began = time.monotonic()
            uploads = await asyncio.to_thread(images_in, body, request.headers.get("content-type", ""), self._limits)
            del body
            answers = await self._all([line.put(upload.name, upload.data) for upload in uploads], request)
            predictions = [as_dict(line.model.prediction(answer, asked.wishes)) for answer in answers]
            if asked.why:
                named = [pair for pair in zip(predictions, uploads, strict=True) if pair[0].get("labels")]
                drawn = [line.reasons.put(one.name, one.data, found["labels"][0]["index"]) for found, one in named]
                for (found, _), why in zip(named, await self._all(drawn, request), strict=True):
                    found["why"] = why
        failed = all("error" in prediction for prediction in predictions)
        model = line.model.checkpoint
        return _json(
            {**document_head(model.name, model.revision, model.outputs, asked.sets), "predictions": predictions},
            status=422 if failed else 200,
            headers={"server-timing": f"predict;dur={1000 * (time.monotonic() - began):.1f}"},
        )

    async def _all(self, futures: "list[Future[T]]", request: Request) -> list[T]:
        """What all of them give.

        Raises Refused when it takes too long, or whoever asked has gone and will not read it; those that have not begun
        are cancelled then.
        """
        answers = asyncio.gather(*map(asyncio.wrap_future, futures))
        gone = asyncio.ensure_future(request.receive())  # the next that comes after a body
        try:
            first: set[asyncio.Future[Any]] = {answers, gone}
            await asyncio.wait(first, timeout=self._limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if answers.done():
                return answers.result()
            raise Refused(503, f"no answer within {self._limits.seconds:g} s: this server has too much to do")
        finally:
            gone.cancel()
            answers.cancel()

    def _asked(self, query: Mapping[str, str]) -> "Asked":
        """What a request wants. Raises Refused."""
        if unknown := sorted(query.keys() - PARAMETERS.keys()):
            raise Refused(400, f"no parameter {safe(unknown[0], 40)}; there are {', '.join(PARAMETERS)}")
        name = query.get("model")
        line = next(iter(self._lines.values())) if name is None else self._lines.get(name)
        if line is None:
            raise Refused(404, f"no model {safe(name, 60)} here; there are {', '.join(map(safe, self._lines))}")
        top, sets = _number(query, "top", int), _number(query, "sets", float)
        why = query.get("why", "false")
        if why not in ("true", "false"):
            raise Refused(400, f"why {safe(why, 30)} is neither true nor false")
        if why == "true" and not line.reasons.there:
            raise Refused(400, "why is not for an ONNX file, which has no gradients: serve its checkpoint")
        try:
            wishes = line.model.wishes(top_k=top, reject=_number(query, "reject", float), sets=sets)
        except UsageError as error:
            raise Refused(400, str(error)) from error
        return Asked(line, wishes, sets, why == "true")

    @contextmanager
    def _admitted(self, size: int) -> Iterator[None]:
        """A place for a request of `size` bytes. Raises Refused where there is none."""
        if self._waiting >= self._limits.waiting or self._held + size > self._limits.held_bytes:
            raise Refused(503, f"{self._waiting} requests are waiting already: try again in a moment")
        self._waiting, self._held = self._waiting + 1, self._held + size
        try:
            yield
        finally:
            self._waiting, self._held = self._waiting - 1, self._held - size


def _number(query: Mapping[str, str], name: str, kind: type[Any]) -> Any:
    if name not in query:
        return None
    try:
        return kind(query[name][:30])
    except ValueError:
        raise Refused(400, f"{name} {safe(query[name], 30)} is not a number") from None


def _described(line: Line) -> dict[str, Any]:
    model, checkpoint = line.model, line.model.checkpoint
    known = model.familiarity
    return {
        "name": checkpoint.name,
        "revision": checkpoint.revision,
        "outputs": checkpoint.outputs,
        "classes": len(model.labels),
        "examples": list(model.labels[:EXAMPLES]),
        "image_size": list(model.preprocess.size),
        "engine": line.opened.choice.engine,
        "temperature": model.temperature,
        "explains": line.reasons.there,
        "familiarity": known and {"data": known.facts.data, "images": known.facts.images, "strange_below": STRANGE},
    }


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(as_json(content) + "\n", status, headers, media_type="application/json")


async def _refused(_: Request, error: Exception) -> Response:
    if isinstance(error, Refused):
        return _json({"error": str(error)}, error.status, {"retry-after": "1"} if error.status == 503 else None)
    assert isinstance(error, HTTPException)
    return _json({"error": error.detail}, error.status_code, error.headers)


async def _failed(_: Request, error: Exception) -> Response:
    """A bug, or a model that cannot go on; its traceback goes to standard error."""
    return _json({"error": f"this server failed: {type(error).__name__}"}, 500)
