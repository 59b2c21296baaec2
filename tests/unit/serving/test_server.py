"""The server as OpenAI's own client meets it, over a socket: the contract that answers, streams and refusals keep."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs alignlab[serve]")
pytest.importorskip("uvicorn", reason="needs alignlab[serve]")
openai = pytest.importorskip("openai", reason="needs alignlab[serve]")

import httpx  # noqa: E402  what OpenAI's client brings

from alignlab.models.policy import Policy  # noqa: E402
from alignlab.models.sampling import Sampling  # noqa: E402
from alignlab.serving.engine import Engine, Limits  # noqa: E402
from alignlab.tuners.composed import compose  # noqa: E402
from tests.conftest import backbone  # noqa: E402
from tests.contracts.controls import PAIRED, trained  # noqa: E402
from tests.unit.conftest import attached  # noqa: E402
from tests.unit.serving.conftest import KEY, held, serving  # noqa: E402

MEET = next(case for case in PAIRED if case.form == "soft_prompt" and case.backbone == "llama")
PROMPTS = ("Tell a story about Tom and a kite.", "Tell a story.", "Tell a short story about Anna.")
STRENGTHS = (0.0, 1.5, 0.5, 0.0, 2.0)
MODELS = ("red", "meet/seed-0", "red+lora")
RANGES = {"red": {"red": held(-1.0, 2.0)}, "red+lora": {"red": held(0.0, 1.5), "lora": None}}
CLIENTS, REQUESTS = 16, 200


def policy(model: str) -> Policy:
    """A policy, the same each time."""
    if model == "meet/seed-0":
        return trained(MEET, backbone("llama"))
    parts = {name: attached(name, backbone("llama")) for name in model.split("+")}
    return compose(parts) if len(parts) > 1 else parts[model]


@pytest.fixture(scope="module")
def engine() -> Engine:
    """A RED policy, one with two classes, and one of two adapters."""
    limits = Limits(new_tokens=40, prompt_tokens=None, rows=8, waiting=16)
    return Engine({name: policy(name) for name in MODELS}, limits, RANGES)


@pytest.fixture(scope="module")
def address(engine: Engine) -> Iterator[str]:
    """Of their server."""
    with serving(engine) as found:
        yield found


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Any]:
    """OpenAI's."""
    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def post(address: str, route: str, body: Any = None, **given: Any) -> httpx.Response:
    """A request by hand."""
    headers = {"Authorization": f"Bearer {KEY}", **given.pop("headers", {})}
    return httpx.post(f"{address}/v1/{route}", json=body, headers=headers, **given)


def alone(prompt: str, model: str = "red", **asked: Any) -> str:
    """What a policy answers by itself; one that no engine is using."""
    (text,) = policy(model).respond([prompt], sampling=Sampling(12, 0.0, 1.0), seed=0, **asked)
    return text


def test_models_are_listed_with_their_classes_adapters_and_safe_ranges(client: Any) -> None:
    found = {model.id: model for model in client.models.list().data}

    assert tuple(found) == MODELS
    assert [model.classes for model in found.values()] == [[], ["good", "bad"], []]
    assert [model.adapters for model in found.values()] == [[], [], ["red", "lora"]]
    safe = {"low": -1.0, "high": 2.0, "metric": "toy/capability", "tolerance": 0.1}
    assert [model.safe_range for model in found.values()] == [
        safe,
        None,
        {"red": {**safe, "low": 0.0, "high": 1.5}, "lora": None},
    ]
    assert {model.outside for model in found.values()} == {"warn"}
    assert client.models.retrieve("meet/seed-0") == found["meet/seed-0"]


def chatted(client: Any, model: str, **asked: Any) -> Any:
    """A greedy chat completion of twelve tokens. `asked`: fields that OpenAI's client does not know."""
    messages = [{"role": "user", "content": PROMPTS[0]}]
    return client.chat.completions.create(model=model, messages=messages, max_tokens=12, temperature=0, extra_body=asked)


def test_chat_answers_at_a_strength_as_the_policy_does(client: Any) -> None:
    for strength in (0.0, 1.5):
        made = client.chat.completions.create(
            model="red",
            messages=[{"role": "user", "content": [{"type": "text", "text": PROMPTS[0]}]}],
            max_completion_tokens=12,
            temperature=0,
            extra_body={"strength": strength},
        )

        assert made.choices[0].message.content == alone(PROMPTS[0], strength=strength)
        assert made.usage.completion_tokens == 12


def test_each_of_two_adapters_is_asked_for_by_name(client: Any) -> None:
    for strength in ({"red": 1.5, "lora": 0.0}, {"lora": 2.0, "red": 0.5}, 0.5):
        made = chatted(client, "red+lora", strength=strength)

        assert made.choices[0].message.content == alone(PROMPTS[0], model="red+lora", strength=strength)
        assert "warning" not in made.model_extra


@pytest.mark.parametrize("streams", [False, True])
def test_a_strength_outside_the_safe_range_is_warned_of_in_header_and_body(address: str, streams: bool) -> None:
    asked = {"model": "red", "prompt": PROMPTS[0], "max_tokens": 2, "stream": streams, "strength": 2.5}

    answer = post(address, "completions", asked)

    said = "strength 2.5 is outside the safe range -1 to 2, in which toy/capability was seen to hold"
    bodies = (
        [answer.json()] if not streams else [json.loads(line[6:]) for line in answer.text.split("\n\n") if line[6:7] == "{"]
    )
    assert answer.status_code == 200
    assert answer.headers["Alignlab-Warning"].startswith(said)
    assert {body["warning"] for body in bodies} == {answer.headers["Alignlab-Warning"]}
    assert {body["strength"] for body in bodies} == {2.5}


def test_a_class_and_a_mixture_are_asked_for_by_control(client: Any) -> None:
    for control in ("bad", {"good": 0.7, "bad": 0.3}):
        made = chatted(client, "meet/seed-0", control=control)

        assert made.choices[0].message.content == alone(PROMPTS[0], model="meet/seed-0", control=control)


def test_streams_add_up_to_the_answer_and_count_tokens_at_the_end(client: Any) -> None:
    asked = {"model": "red", "prompt": PROMPTS[0], "max_tokens": 12, "temperature": 0, "extra_body": {"strength": 0.5}}
    whole = client.completions.create(**asked)

    *chunks, last = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})

    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "length"]
    assert (last.choices, last.usage) == ([], whole.usage)


def test_a_chat_streams(client: Any) -> None:
    chunks = client.chat.completions.create(
        model="red", messages=[{"role": "user", "content": PROMPTS[1]}], max_tokens=12, temperature=0, stream=True
    )

    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == alone(PROMPTS[1], strength=1.0)


def test_200_requests_of_mixed_strengths_from_16_clients_are_those_one_by_one(client: Any) -> None:
    asked = [(PROMPTS[n % 3], STRENGTHS[n % 5], n % 2 == 0) for n in range(REQUESTS)]

    def answered(prompt: str, strength: float, streams: bool) -> str:
        given = {"model": "red", "messages": [{"role": "user", "content": prompt}], "max_tokens": 12, "temperature": 0}
        made = client.chat.completions.create(**given, stream=streams, extra_body={"strength": strength})
        return "".join(chunk.choices[0].delta.content for chunk in made) if streams else made.choices[0].message.content

    with ThreadPoolExecutor(CLIENTS) as pool:
        texts = list(pool.map(lambda each: answered(*each), asked))

    known = {(prompt, strength): alone(prompt, strength=strength) for prompt in PROMPTS for strength in STRENGTHS}
    assert texts == [known[prompt, strength] for prompt, strength, _ in asked]
    assert len(set(known.values())) > 10


def chatting(**more: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": "red", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2, **more}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (chatting(strenght=1.5), 422, "strenght: Extra inputs are not permitted"),
        (chatting(strength="much"), 422, "strength"),
        (chatting(strength=1e300), 422, "float32"),
        (chatting(strength=[1.0]), 422, "strength.number: Input should be a valid number"),
        (chatting(strength={"red": 1.0}), 422, "not a number"),
        (chatting(model="red+lora", strength={"red": 1.0}), 422, "give one for each of red, lora"),
        (chatting(model="red+lora", strength={"red": "much", "lora": 1}), 422, "strength.numbers.red: Input should be a valid"),
        (chatting(control={"good": 1.0}), 422, "no classes"),
        (chatting(max_tokens=41), 422, "40 at most"),
        (chatting(stop=""), 422, "stop"),
        (chatting(temperature=1e-9), 422, "temperature"),
        (chatting(messages=[{"role": "tool", "content": "a"}]), 422, "messages.0.role"),
        (chatting(messages=[{"role": "assistant", "content": "a"}]), 422, "in turn"),
        (chatting(seed=10**30), 422, "seed"),
        (chatting(model="blue"), 404, "known: red"),
        (chatting(messages=[{"role": "user", "content": "a" * 20_000}]), 413, "longer than 10000 bytes"),
        ({"model": "red"}, 422, "messages: Field required"),
        ([], 422, "the body"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_a_sentence(address: str, body: Any, status: int, said: str) -> None:
    answer = post(address, "chat/completions", body)

    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff",
        b'{"strength": NaN}',
        b'{"strength": {"red": Infinity}}',
        b'{"\\ud800": 1}',
        b'{"model": "\\ud800"}',
        b"[" * 5000,
        b"9" * 5000,
    ],
)
def test_bodies_that_are_hardly_json_are_refused(address: str, body: bytes) -> None:
    answer = post(address, "completions", content=body, headers={"Content-Type": "application/json"})

    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["message"]


def test_a_body_that_is_sent_as_a_form_is_told_the_header_that_it_lacks(address: str) -> None:
    content, form = json.dumps(chatting()).encode(), "application/x-www-form-urlencoded"  # what curl -d sends by itself

    answer = post(address, "completions", content=content, headers={"Content-Type": form})

    said = f"the body is sent as {form}; send JSON with the header Content-Type: application/json."
    assert (answer.status_code, answer.json()["error"]["message"]) == (422, said)


@pytest.mark.parametrize("key", [None, "Bearer x", f"Bearer {KEY}x", KEY, "Bearer \xe9"])
def test_a_request_without_the_key_is_refused(address: str, key: str | None) -> None:
    headers = {} if key is None else {"Authorization": key.encode("latin-1")}

    assert httpx.get(f"{address}/v1/models", headers=headers).status_code == 401
    assert httpx.get(f"{address}/health", headers=headers).json()["status"] == "ok"


def test_a_page_of_another_name_cannot_ask(address: str) -> None:
    assert httpx.get(f"{address}/health", headers={"Host": "example.com"}).status_code == 400


def test_the_schema_says_what_a_strength_is_and_no_route_loads_a_model(address: str) -> None:
    schema = httpx.get(f"{address}/openapi.json", headers={"Authorization": f"Bearer {KEY}"}).json()

    routes = schema["paths"]
    strength = schema["components"]["schemas"]["ChatRequest"]["properties"]["strength"]
    forms = [form for each in strength["anyOf"] for form in each.get("oneOf", [each])]
    assert sorted(form["type"] for form in forms) == ["null", "number", "object"]
    assert sorted(routes) == ["/health", "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model}"]


def eventually(engine: Engine, **wanted: int) -> bool:
    """Whether an engine comes to this load within seconds."""
    until = time.monotonic() + 20
    while engine.load != wanted and time.monotonic() < until:
        time.sleep(0.02)
    return engine.load == wanted


@pytest.mark.parametrize("streams", [True, False])
def test_clients_that_hang_up_free_their_rows_and_a_full_server_says_429(streams: bool) -> None:
    engine = Engine({"red": policy("red")}, Limits(new_tokens=40, prompt_tokens=None, rows=1, waiting=1))
    go_on = threading.Event()
    hook = engine.policies["red"].model.register_forward_pre_hook(lambda *_: go_on.wait(30) and None)
    body = json.dumps(chatting(stream=streams, max_tokens=40)).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()

    with serving(engine, key=None) as address:
        place = ("127.0.0.1", int(address.rpartition(":")[2]))
        clients = []
        for load in ({"running": 1, "waiting": 0}, {"running": 1, "waiting": 1}):
            clients.append(socket.create_connection(place))
            clients[-1].sendall(head + body)
            assert eventually(engine, **load)
        refused = post(address, "chat/completions", chatting())
        for client in clients:
            client.close()
        freed = eventually(engine, running=0, waiting=0)
        go_on.set()
        hook.remove()
        answered = post(address, "chat/completions", chatting())

    assert refused.status_code == 429
    assert refused.headers["Retry-After"] == "1"
    assert freed
    assert answered.status_code == 200
