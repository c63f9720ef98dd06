"""Yes or no: what the settings say of themselves is what is read."""

from __future__ import annotations

import numpy as np
import pytest

from recft import registry
from recft.data.store import Records

PARTS = {
    "before": "stands before the history",
    "between": "stands before the candidate",
    "after": "stands after the candidate",
}


@pytest.mark.parametrize("kind", ["encoder", "causal"])
def test_prompts_stand_where_their_descriptions_say_on_any_base(kind: str) -> None:
    member = registry.load("recft.tasks", "purchase")
    config = member.Config(name="purchase", before="<", between="|", after=">")
    assert {name: member.Config.model_fields[name].description for name in PARTS} == PARTS
    one, item = np.array([0, 1]), np.array([1], np.int32)
    grades, log = np.ones(1, np.float32), np.zeros(1, np.int32)
    records = Records(["u"], None, None, one[:1], one[1:], None, one, item, grades, log)
    assert member.pairs(config, records, np.arange(1), ["red 椅子", "oak 🎒"]) == [("<red 椅子", "|oak 🎒>")]
    assert member.head(config, kind) == {"encoder": "classifier", "causal": "answers"}[kind]
