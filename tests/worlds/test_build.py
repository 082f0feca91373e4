"""The review world on disk: what its models have learnt, and how its pairs were made."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt import worlds
from prefopt.cli import main
from prefopt.config.compose import compose
from prefopt.data.data_config import DataConfig
from prefopt.data.prepare import prepare
from prefopt.engine.generation import generate
from prefopt.errors import UserError
from prefopt.plugin import Data
from prefopt.runs.resolve import prepared_data
from prefopt.worlds.build import EOS, MAX_NEW_TOKENS, VOCABULARY, WorldFiles, build, new_model, prompt_ids, words
from prefopt.worlds.review import ReviewWorld
from tests.train.test_processes import launch
from tests.worlds import processes

WORLD = ReviewWorld()


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def whole(row: dict[str, Any], side: str) -> str:
    return row["prompt"] + row[side]


def test_model_size() -> None:
    model = new_model(0)
    # embedding 65 * 64, tied; two layers of attention 4 * 64^2, MLP 3 * 64 * 176 and two norms; a last norm
    assert model.num_parameters() == 65 * 64 + 2 * (4 * 64**2 + 3 * 64 * 176 + 2 * 64) + 64 == 104_832
    same, other = new_model(0), new_model(1)
    assert torch.equal(model.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)


def test_tokenizer_and_files_agree(world_files: WorldFiles) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world_files.model)
    assert len(tokenizer) == len(VOCABULARY) == 65
    prompt = "the soup was cold but"
    assert tokenizer(prompt).input_ids == prompt_ids(prompt)
    ids = [VOCABULARY.index(word) for word in ["the", "staff", "was", "kind", "."]]
    assert words([*ids, EOS]) == words(ids) == tokenizer.decode(ids) == "the staff was kind ."


def test_models_before_and_after_sft(world_files: WorldFiles) -> None:
    """Base knows words and hardly the grammar; SFT writes reviews whose reward is about that of the demonstrations."""
    world = WORLD
    prompts = world.prompts(512, 0, "test")
    figures = {}
    for name, folder in (("base", world_files.base), ("sft", world_files.model)):
        model = AutoModelForCausalLM.from_pretrained(folder)
        written = generate(model, [prompt_ids(p) for p in prompts], max_new_tokens=MAX_NEW_TOKENS, eos_token_id=EOS)
        texts = [f"{prompt} {words(text)}" for prompt, text in zip(prompts, written, strict=True)]
        figures[name] = (world.valid(texts).mean(), world.reward(texts).mean(), world.reward(texts).std())
    assert figures["base"][0] < 0.4
    assert figures["sft"][0] > 0.9
    assert -0.5 < figures["sft"][1] < 0.0
    assert 0.9 < figures["sft"][2] < 1.5  # room for preferences: rewards differ


def test_pairs(world_files: WorldFiles) -> None:
    world = ReviewWorld()
    splits = [rows(file) for file in (world_files.train, world_files.validation, world_files.test)]
    assert [len(split) for split in splits] == [7936, 256, 256]
    prompts = [{row["prompt"] for row in split} for split in splits]
    assert not prompts[0] & prompts[1] | prompts[0] & prompts[2] | prompts[1] & prompts[2]
    train = splits[0]
    for side in ("chosen", "rejected"):
        rewards = world.reward([whole(row, side) for row in train])
        assert rewards.tolist() == [row[f"score_{side}"] for row in train]
    gap = np.array([row["score_chosen"] - row["score_rejected"] for row in train])
    assert (gap != 0).all()
    # The share of labels that agree with the reward has mean p = mean of sigmoid(|gap| / 0.5) and a variance of at
    # most p (1 - p) / n: five standard deviations.
    p = float((1 / (1 + np.exp(-np.abs(gap) / 0.5))).mean())
    assert abs((gap > 0).mean() - p) < 5 * np.sqrt(p * (1 - p) / len(gap))


def test_the_data_layer_takes_every_pair(world_files: WorldFiles, tmp_path: Path) -> None:
    config = DataConfig(path=str(world_files.train), eval_path=str(world_files.validation), cache_dir=str(tmp_path))
    prepared = prepare(config, AutoTokenizer.from_pretrained(world_files.model), Data.PAIRS)
    assert (len(prepared.train), len(prepared.eval or [])) == (7936, 256)
    assert not prepared.rejections
    first, row = prepared.train[0], rows(world_files.train)[0]
    for ids, side in zip(first.completions, ("chosen", "rejected"), strict=True):
        assert words([*first.prompt, *ids]).split()[1:] == whole(row, side).split()  # after the beginning of text
        assert ids[-1] == EOS


@pytest.mark.slow
def test_of_several_processes_one_makes_the_pairs(world_files: WorldFiles, tmp_path: Path) -> None:
    """The others waited for a lock while it waited for them."""
    models = world_files.model.parent
    shutil.copytree(models, tmp_path / models.name)
    done = launch(2, "tests.worlds.processes", str(tmp_path))
    assert done.returncode == 0, done.stderr[-4000:]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0] == found[1]
    assert len(rows(Path(found[0]["train"]))) == processes.PAIRS


def test_worlds_with_other_labels_share_models_and_texts(world_files: WorldFiles) -> None:
    root = world_files.train.parent.parent
    flipped = build(ReviewWorld(pairs=400, label_flips=0.5), root)
    assert flipped.model == world_files.model
    assert flipped.train != world_files.train
    assert build(ReviewWorld(pairs=400, label_flips=0.5), root) == flipped
    right = [row["score_chosen"] > row["score_rejected"] for row in rows(flipped.train)]
    assert len(right) == 400
    # flipped half the time, a label says nothing: a fair coin within five standard deviations
    assert abs(np.mean(right) - 0.5) < 5 * np.sqrt(0.25 / 400)


def test_length_bias_prefers_longer_texts(world_files: WorldFiles) -> None:
    root = world_files.train.parent.parent

    def longer_wins(world: ReviewWorld) -> float:
        sides = [(len(r["chosen"].split()), len(r["rejected"].split())) for r in rows(build(world, root).train)]
        return float(np.mean([c > r for c, r in sides if c != r]))

    assert longer_wins(ReviewWorld(pairs=400, length_bias=1.0)) > longer_wins(ReviewWorld(pairs=400)) + 0.2


@pytest.mark.slow
def test_a_better_writer(world_files: WorldFiles) -> None:
    """With the best of eight on one side, the chosen texts are better than those of plain samples, the rejected too."""
    root = world_files.train.parent.parent
    plain, better = (rows(build(ReviewWorld(pairs=400, best_of=n), root).train) for n in (1, 8))
    for row in better:
        assert WORLD.reward([whole(row, "chosen")])[0] == row["score_chosen"]
    chosen = [np.array([row["score_chosen"] for row in world]) for world in (plain, better)]
    assert chosen[1].mean() > chosen[0].mean() + 0.5  # errors of the means: 1.2 / 20 each


def test_few_desirable_texts(world_files: WorldFiles, tmp_path: Path) -> None:
    """Of 400 chosen texts a share is left out, the more the same and others; what is left are single texts."""
    root = world_files.train.parent.parent
    pairs = rows(build(ReviewWorld(pairs=400), root).train)
    kept = {}
    for dropped in (0.5, 0.9):
        files = build(ReviewWorld(pairs=400, desirable_dropped=dropped), root)
        singles = rows(files.train)
        bad = [(row["prompt"], row["completion"]) for row in singles if not row["label"]]
        assert bad == [(row["prompt"], row["rejected"]) for row in pairs]
        kept[dropped] = {(row["prompt"], row["completion"]) for row in singles if row["label"]}
        # binomial: five standard deviations
        assert abs(len(singles) - 400 - 400 * (1 - dropped)) < 5 * np.sqrt(400 * dropped * (1 - dropped))
        assert len(rows(files.validation)) == 256
    assert kept[0.9] < kept[0.5] < {(row["prompt"], row["chosen"]) for row in pairs}
    config = DataConfig(path=str(files.train), eval_path=str(files.validation), cache_dir=str(tmp_path))
    prepared = prepare(config, AutoTokenizer.from_pretrained(world_files.model), Data.UNPAIRED)
    assert (len(prepared.train), len(prepared.eval or [])) == (len(singles), 256)


def test_another_draw_is_other_data_from_the_same_models(world_files: WorldFiles) -> None:
    root = world_files.train.parent.parent
    first, second = (build(ReviewWorld(pairs=400, draw=draw), root) for draw in (0, 1))
    assert first.model == second.model == world_files.model
    texts = [{whole(row, "chosen") for row in rows(files.train)} for files in (first, second)]
    assert len(texts[0] & texts[1]) < 40


def test_worlds_by_their_knobs(world_files: WorldFiles) -> None:
    assert worlds.resolve({}) == worlds.resolve() == world_files
    assert worlds.knobs({"label_flips": 0.2, "pairs": 100}) == ReviewWorld(label_flips=0.2, pairs=100)
    with pytest.raises(UserError, match="no knob 'label_flip'; did you mean 'label_flips'"):
        worlds.knobs({"label_flip": 0.2})
    for wrong in ({"pairs": 10.5}, {"label_flips": "much"}, {"best_of": True}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} of the review world is a"):
            worlds.knobs(wrong)


def test_an_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(
        import_module("prefopt.worlds.build"), "new_model", stop
    )  # `prefopt.worlds.build` is a function
    with pytest.raises(KeyboardInterrupt):
        build(ReviewWorld(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_knobs_on_the_command_line(world_files: WorldFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`data.world.KNOB=VALUE` trains on that world; a knob that is not there is refused by name."""
    assert main(["train", "data.world.label_flip=0.2", f"output_dir={tmp_path / 'a'}"]) == 2
    assert "did you mean 'label_flips'" in capsys.readouterr().err
    assert (
        main(["train", "data.world.pairs=100", f"data.path={world_files.train}", f"output_dir={tmp_path / 'b'}"]) == 2
    )
    assert "data.world is for the paths world and world/instructions" in capsys.readouterr().err
    config = compose(["data.world.pairs=100", "data.world.label_flips=0.5"])
    prepared = prepared_data(config, AutoTokenizer.from_pretrained(world_files.model))
    assert (len(prepared.train), len(prepared.eval)) == (100, 256)
