"""A plan names the commit of what it takes from the hub."""

from __future__ import annotations

import pytest

from alignlab.commits import hub_commit
from alignlab.models import config as models
from alignlab.plan_text import commits
from tests.unit.sweeps.configs import config_of

NEWEST, GIVEN = "a" * 40, "b" * 40


def test_a_plan_names_the_commit_of_a_model_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "hub_commit", lambda _kind, _name, revision: revision or NEWEST)

    assert commits(config_of("model=llama31_8b")) == [
        f"model=llama31_8b: commit {NEWEST}, the newest known here; model.revision=COMMIT keeps it"
    ]
    assert commits(config_of("model=llama31_8b", f"model.revision={GIVEN}")) == [f"model=llama31_8b: commit {GIVEN}"]
    assert commits(config_of("model=tiny")) == []


@pytest.mark.parametrize("name", ["-1", "a/b/c", "..", "a--b"])
def test_a_name_that_the_hub_cannot_have_is_not_asked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignlab.commits._unreachable", unreachable := list[str]())

    assert hub_commit("model", name, "main") == "main"
    assert unreachable == []
