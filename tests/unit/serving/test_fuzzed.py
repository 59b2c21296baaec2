"""The server under requests that schemathesis makes of its own OpenAPI schema: each gets an answer that the schema names, and
none is a fault of the server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs alignlab[serve]")
pytest.importorskip("openai", reason="needs alignlab[serve]")
schemathesis = pytest.importorskip("schemathesis", reason="needs alignlab[serve_test]")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis.errors import Unsatisfiable  # noqa: E402
from schemathesis import GenerationMode  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi import checks  # noqa: E402

from alignlab.serving.engine import Engine, Limits  # noqa: E402
from alignlab.tuners.composed import compose  # noqa: E402
from tests.conftest import backbone  # noqa: E402
from tests.contracts.controls import CASES, trained  # noqa: E402
from tests.fuzzing import examples  # noqa: E402
from tests.unit.conftest import attached  # noqa: E402
from tests.unit.serving.conftest import held, serving  # noqa: E402

SECONDS = 20
"""Of one request."""
CHECKS = (
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
)
MODELS = ("red", "meet", "red+lora")
MEET = next(case for case in CASES if case.form == "token" and case.backbone == "llama")


@pytest.fixture(scope="module")
def served() -> Iterator[Any]:
    """The schema of a server of a RED policy, of one with classes, and of two adapters, one of which has a safe range."""
    policies = {
        "red": attached("red", backbone("llama")),
        "meet": trained(MEET, backbone("llama")),
        "red+lora": compose({name: attached(name, backbone("llama")) for name in ("red", "lora")}),
    }
    ranges = {"red+lora": {"red": held(0.0, 1.0), "lora": None}}
    engine = Engine(policies, Limits(new_tokens=6, prompt_tokens=None, rows=4, waiting=8), ranges, "clamp")
    with serving(engine, key=None) as address:
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")


@pytest.mark.fuzz
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(
    "operation",
    ["GET /health", "GET /v1/models", "GET /v1/models/{model}", "POST /v1/completions", "POST /v1/chat/completions"],
)
def test_no_request_of_the_schema_is_a_fault_of_the_server(served: Any, operation: str, mode: Any) -> None:
    method, path = operation.split()
    statuses = set()

    @settings(
        max_examples=examples(200), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
    )
    @given(case=served[path][method].as_strategy(generation_mode=mode))
    def answered(case: Any) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = MODELS[len(case.body["model"]) % len(MODELS)]
            if isinstance(case.body.get("strength"), dict):
                case.body["model"] = MODELS[-1]
                case.body["strength"] = dict(zip(("red", "lora"), case.body["strength"].values()))
        answer = case.call(timeout=SECONDS)
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    with suppress(Unsatisfiable):  # a request without parameters cannot be wrong
        answered()
    assert not {status for status in statuses if status >= 500}
