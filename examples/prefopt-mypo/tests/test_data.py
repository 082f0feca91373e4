"""The installed package's form of data is recognised, and its reward is found by its name."""

import json
from pathlib import Path

from prefopt_mypo.data import THUMBS, brevity

from prefopt.data.data_config import DataConfig
from prefopt.data.reader import read
from prefopt.runs.resolve_reward import named_reward


def test_its_rows_are_recognised(tmp_path: Path) -> None:
    file = tmp_path / "thumbs.jsonl"
    rows = [{"question": f"{i}?", "reply": "yes", "thumb": thumb} for i, thumb in enumerate(("up", "down", "sideways"))]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read(DataConfig(path=str(file)))
    assert found.schema == THUMBS.name
    assert [record.desirable for record in found.records] == [True, False]
    assert [rejection.detail for rejection in found.rejections] == ["thumb is up or down, not 'sideways'"]


def test_its_reward_has_a_name() -> None:
    reward = named_reward("brevity", {}, writer=lambda: None)
    assert (reward.name, reward.function) == ("brevity", brevity)
