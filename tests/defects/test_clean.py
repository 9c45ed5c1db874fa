"""The engines of the clean runs are drawn, and the same again from the same seed."""

from __future__ import annotations

from pathlib import Path

from pytest_vllm_stage.settings.profile import load_profile
from pytest_vllm_stage.standins.engine.__main__ import parser, settings_of
from tests.defects.clean import LEAST_SLOTS, draw_engine, write_profile_without_reference


def test_engine_of_a_clean_run_is_drawn_from_seed_and_number() -> None:
    engines = [draw_engine(7, number) for number in range(1, 21)]
    assert engines == [draw_engine(7, number) for number in range(1, 21)]
    assert len({tuple(engine) for engine in engines}) == 20
    settings = [settings_of(parser().parse_args(engine)) for engine in engines]
    assert all(one.max_num_seqs >= LEAST_SLOTS for one in settings)
    assert {one.seed == 0 for one in settings[::2]} == {True}
    assert {one.seed == 0 for one in settings[1::2]} == {False}


def test_profile_for_drawn_answers_has_no_reference(tmp_path: Path) -> None:
    profile = load_profile(str(write_profile_without_reference(tmp_path)), tmp_path)
    assert [model.reference for model in profile.models.values()] == [None]
    assert [model.tool_format for model in profile.models.values()] == ["hermes"]
