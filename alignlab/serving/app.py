"""The server's routes: models, completions and chat completions as OpenAI's, and health. Importing this module needs FastAPI
and OpenAI's types (alignlab[serve])."""

from __future__ import annotations

import asyncio
import hmac
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from openai.types import Completion, CompletionUsage, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.completion_choice import CompletionChoice
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from alignlab.errors import AlignlabError
from alignlab.models.strength import adapters_of
from alignlab.records import Turn
from alignlab.serving.engine import Engine, FullError, Piece, Question, Reply, UnknownModelError
from alignlab.serving.ranges import Outside
from alignlab.serving.requests import ChatRequest, CompletionRequest
from alignlab.serving.requests import Request as Asked

WATCH_SECONDS = 0.25
"""How often a request without streaming looks whether its client is still there."""
EVENTS = "text/event-stream"
WARNING = "Alignlab-Warning"
"""The header with what is to be said of an answer's strength, as in the field `warning` of its body."""
OPEN = ("/health",)
"""Paths that need no key."""

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]


class Refusal(BaseModel):
    """The `error` of a refused request, as OpenAI's client reads it."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Refused(BaseModel):
    """A refused request."""

    error: Refusal


class Safe(BaseModel):
    """The strengths at which an adapter was seen to hold: the metric at most `tolerance` of the backbone's value worse."""

    low: float
    high: float
    metric: str
    tolerance: float


class Served(Model):
    """A model as OpenAI describes it. `classes`: what `control` takes; `adapters`: the names that `strength` takes where there
    are several; `safe_range`: one, or of several by name, null where none was measured; `outside`: what is done with a strength
    outside it; `context`: tokens of prompt and answer together."""

    classes: list[str]
    adapters: list[str]
    safe_range: Safe | dict[str, Safe | None] | None
    outside: Outside
    context: int


class ModelList(BaseModel):
    """The models that are served."""

    object: str = "list"
    data: list[Served]


class Health(BaseModel):
    """Whether questions are answered, how many are being answered, and how many wait."""

    status: str
    running: int
    waiting: int


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Refused, "description": description}
    for status, description in (
        (400, "A body that is no JSON."),
        (401, "A key is missing or wrong."),
        (404, "A model that is not served."),
        (413, "A body that is too long."),
        (422, "A field that does not exist, or a value that cannot be."),
        (429, "As many questions wait as may."),
        (500, "The answer could not be computed."),
    )
}


def application(
    engine: Engine,
    *,
    key: str | None = None,
    body_bytes: int,
    hosts: Sequence[str] = ("*",),
    page: str | None = None,
) -> FastAPI:
    """The routes on an engine, which ends with them. `key`: what requests have to carry as `Authorization: Bearer KEY`, but for
    those below `page`, which has a login of its own. `hosts`: the names by which the server may be asked, so that no web page
    of another name reaches it in a browser.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(engine.close)

    app = FastAPI(title="alignlab", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.engine, app.state.began = engine, int(time.time())
    app.add_middleware(_Gate, key=key, body_bytes=body_bytes, open_paths=OPEN if page is None else (*OPEN, page))
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.add_exception_handler(AlignlabError, _refuse_question)
    app.add_exception_handler(RequestValidationError, _refuse_body)
    app.add_exception_handler(HTTPException, _refuse_request)
    app.get("/health", response_model=Health, responses={503: {"model": Health}})(_health)
    app.get("/v1/models", response_model=ModelList)(_models)
    app.get("/v1/models/{model:path}", response_model=Served, responses={404: REFUSALS[404]})(_model)
    told = {
        "description": "What is to be said of the strength, where it is outside the safe range.",
        "schema": {"type": "string"},
    }
    streamed: dict[str, Any] = {"content": {EVENTS: {}}, "headers": {WARNING: told}}
    app.post("/v1/completions", response_model=Completion, responses={**REFUSALS, 200: streamed})(_complete)
    app.post("/v1/chat/completions", response_model=ChatCompletion, responses={**REFUSALS, 200: streamed})(_chat)
    return app


async def _health(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    found = {"status": "ok" if engine.alive else "ending", **engine.load}
    return JSONResponse(found, status_code=200 if engine.alive else 503)


async def _models(request: Request) -> Response:
    """The runs, each a model."""
    engine: Engine = request.app.state.engine
    return JSONResponse({"object": "list", "data": [_described(request, name) for name in engine.policies]})


async def _model(request: Request, model: str) -> Response:
    """One of them."""
    if model not in request.app.state.engine.policies:
        raise UnknownModelError(f"model {model!r} is not served here; known: {', '.join(request.app.state.engine.policies)}.")
    return JSONResponse(_described(request, model))


def _described(request: Request, name: str) -> dict[str, Any]:
    """A model, as `Served`."""
    engine: Engine = request.app.state.engine
    policy, ranges = engine.policies[name], engine.ranges.get(name, {})
    adapters = list(adapters_of(policy.tuner))
    safe = {adapter: None if found is None else Safe(**vars(found)) for adapter, found in ranges.items()}
    described = Served(
        id=name,
        object="model",
        created=request.app.state.began,
        owned_by="alignlab",
        classes=[] if policy.tuner.controls is None else list(policy.tuner.controls.names),
        adapters=adapters,
        safe_range=safe if adapters else safe.get(name),
        outside=engine.outside,
        context=policy.room,
    )
    return described.model_dump()


async def _complete(request: Request, asked: CompletionRequest) -> Response:
    """Continues a text as it stands."""
    return await _answered(request, asked, asked.prompt, _completion)


async def _chat(request: Request, asked: ChatRequest) -> Response:
    """Answers a conversation, written by the template that the run was trained with."""
    return await _answered(request, asked, [message.turn for message in asked.messages], _chat_completion)


Written = Callable[[dict[str, Any], Piece, bool], BaseModel]
"""(what all objects of an answer have in common, the piece, whether it is streamed) -> the object."""


async def _answered(request: Request, asked: Asked, content: str | Sequence[Turn], written: Written) -> Response:
    engine: Engine = request.app.state.engine
    question = await run_in_threadpool(
        engine.question,
        asked.model,
        content,
        asked.sampling,
        strength=asked.strength,
        control=asked.control,
        new_tokens=asked.new_tokens,
        seed=asked.drawn_from,
        streams=asked.stream,
    )
    pieces: asyncio.Queue[Piece] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def deliver(piece: Piece) -> None:
        with suppress(RuntimeError):  # the loop has ended before the engine
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

    common = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model, **_told(question)}
    headers = {WARNING: common["warning"].encode("ascii", "backslashreplace").decode()} if question.warning else None
    read = len(question.ids)
    reply = engine.ask(question, deliver)
    if asked.stream:
        counted = asked.stream_options is not None and asked.stream_options.include_usage
        return StreamingResponse(
            _events(reply, pieces, common, written, read if counted else None), headers=headers, media_type=EVENTS
        )
    piece = await _whole(request, reply, pieces)
    if piece is None:
        return Response(status_code=499)  # nobody reads it
    if piece.error:
        return _refused(422 if piece.asked_wrongly else 500, piece.error)
    made = written({**common, "usage": _usage(read, piece)}, piece, False)
    return JSONResponse(made.model_dump(exclude_none=True), headers=headers)


def _told(question: Question) -> dict[str, Any]:
    """What an answer says of a strength outside the safe range: the strength that is answered, and the sentence."""
    return {} if question.warning is None else {"strength": question.strength, "warning": question.warning}


async def _whole(request: Request, reply: Reply, pieces: asyncio.Queue[Piece]) -> Piece | None:
    """The answer; None where the client has hung up, which frees the row."""
    try:
        while True:
            with suppress(asyncio.TimeoutError):
                return await asyncio.wait_for(pieces.get(), WATCH_SECONDS)
            if await request.is_disconnected():
                return None
    finally:
        reply.left = True


async def _events(
    reply: Reply, pieces: asyncio.Queue[Piece], common: dict[str, Any], written: Written, read: int | None
) -> AsyncIterator[str]:
    """The pieces as server-sent events. A client that hangs up ends this, which frees the row. `read`: tokens of the prompt,
    where a last event is to count tokens."""
    try:
        while True:
            piece = await pieces.get()
            if piece.error:
                yield _event(Refused(error=_refusal(422 if piece.asked_wrongly else 500, piece.error)))
                return
            made = written(common, piece, True)
            yield _event(made)
            if piece.finish:
                if read is not None:
                    yield _event(made.model_copy(update={"choices": [], "usage": _usage(read, piece)}))
                yield "data: [DONE]\n\n"
                return
    finally:
        reply.left = True


def _event(made: BaseModel) -> str:
    return f"data: {made.model_dump_json(exclude_none=True)}\n\n"


def _completion(common: dict[str, Any], piece: Piece, streamed: bool) -> BaseModel:
    del streamed  # both have one form
    # OpenAI's type has no word for a part that is not the last.
    choice = CompletionChoice.model_construct(index=0, text=piece.text, finish_reason=piece.finish, logprobs=None)
    return Completion.model_construct(object="text_completion", choices=[choice], **common)


def _chat_completion(common: dict[str, Any], piece: Piece, streamed: bool) -> BaseModel:
    said = {"role": "assistant", "content": piece.text}
    choice = {"index": 0, "finish_reason": piece.finish, "delta" if streamed else "message": said}
    if streamed:
        return ChatCompletionChunk(object="chat.completion.chunk", choices=[choice], **common)
    return ChatCompletion(object="chat.completion", choices=[choice], **common)


def _usage(read: int, piece: Piece) -> CompletionUsage:
    return CompletionUsage(prompt_tokens=read, completion_tokens=piece.tokens, total_tokens=read + piece.tokens)


async def _refuse_question(_: Request, error: Exception) -> Response:
    status = 429 if isinstance(error, FullError) else 404 if isinstance(error, UnknownModelError) else 422
    return _refused(status, str(error))


async def _refuse_body(request: Request, error: Exception) -> Response:
    """In one sentence, where and why; the value itself, which may be long, is left out."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    told = request.headers.get("Content-Type", "")
    if first["loc"] == ("body",) and "json" not in told:  # what curl -d sends without -H
        return _refused(
            422, f"the body is sent as {told or 'no type'}; send JSON with the header Content-Type: application/json."
        )
    broken = first["type"] == "json_invalid"  # at a character, which is no field
    where = "" if broken else ".".join(str(place) for place in first["loc"][1:])
    return _refused(400 if broken else 422, f"{where or 'the body'}: {first['msg']}", where or None)


async def _refuse_request(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _refused(error.status_code, str(error.detail), headers=dict(error.headers or {}))


def _refusal(status: int, message: str, field: str | None = None) -> Refusal:
    """Texts that are no Unicode, such as half a surrogate pair, are written out."""
    said, field = (text and text.encode("utf-8", "backslashreplace").decode() for text in (message, field))
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status, "invalid_request_error")
    return Refusal(message=said or "", type="server_error" if status >= 500 else kind, param=field)


def _refused(status: int, message: str, field: str | None = None, headers: dict[str, str] | None = None) -> Response:
    headers = {**(headers or {}), **({"Retry-After": "1"} if status == 429 else {})}
    return JSONResponse({"error": _refusal(status, message, field).model_dump()}, status_code=status, headers=headers)


class _Gate:
    """In front of the routes: the key, and the length of a body, counted while it comes."""

    def __init__(self, app: Application, key: str | None, body_bytes: int, open_paths: Sequence[str]) -> None:
        self._app, self._body_bytes, self._open = app, body_bytes, open_paths
        self._wanted = None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        opened = any(scope["path"] == path or scope["path"].startswith(f"{path}/") for path in self._open)
        if self._wanted is not None and not opened:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._wanted):
                refusal = _refused(401, "the key is missing or wrong.", headers={"WWW-Authenticate": "Bearer"})
                await refusal(scope, receive, send)
                return
        body = bytearray()
        message: dict[str, Any] = {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            body += message.get("body", b"")
            if message["type"] == "http.disconnect":
                return
            if len(body) > self._body_bytes:
                refusal = _refused(413, f"the body is longer than {self._body_bytes} bytes; send less.")
                await refusal(scope, receive, send)
                return
        read = False

        async def whole() -> dict[str, Any]:
            nonlocal read
            if read:
                return await receive()
            read = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self._app(scope, whole, send)
