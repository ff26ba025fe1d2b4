"""What a CONFIG may say, and what people are told of one that says something else."""

from pathlib import Path

import pytest

from flows.settings import (
    FolderSource,
    Problems,
    RepositorySource,
    SearchSource,
    Settings,
    load_settings,
    parse_settings,
)

_LEAST = """
base_model: {id: owner/base, revision: abc}
sources:
- {folder: adapters, role: subject}
scorers: {text: owner/clip, subject: owner/dino, style: owner/csd}
"""


def _problems(text: str) -> list[str]:
    with pytest.raises(Problems) as caught:
        parse_settings(text, Path("/configs"))
    return [f"{problem.code} {problem.fact} {problem.next_step}" for problem in caught.value.problems]


def test_what_is_left_out_has_a_default() -> None:
    settings = parse_settings(_LEAST, Path("/configs"))
    assert [method.method for method in settings.methods] == ["ziplora-joint", "direct"]
    assert settings.publish.enabled is False
    assert settings.publish.private is True


def test_paths_are_taken_from_the_folder_of_the_file_and_hub_ids_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "night.yaml").write_text(_LEAST.replace("owner/clip", "clip"))
    settings = load_settings(tmp_path / "night.yaml")
    (source,) = settings.sources
    assert isinstance(source, FolderSource)
    assert source.folder == tmp_path / "adapters"
    assert settings.scorers.text == str(tmp_path / "clip")
    assert settings.scorers.subject == "owner/dino"
    assert settings.catalogue == f"sqlite:///{tmp_path}/catalog.sqlite"
    assert settings.store_folder == tmp_path / "store"
    assert settings.store_url is None


def test_a_store_at_a_url_has_its_copies_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "night.yaml").write_text(_LEAST + "store: s3://bucket/ziplora\nstore_cache: copies\n")
    settings = load_settings(tmp_path / "night.yaml")
    assert settings.store_url == "s3://bucket/ziplora"
    assert settings.store_folder == tmp_path / "copies"
    assert Settings.model_validate(settings.model_dump(mode="json")) == settings


def test_a_source_is_a_folder_a_repository_or_a_search() -> None:
    text = _LEAST.replace(
        "- {folder: adapters, role: subject}",
        "- {repository: owner/cat, role: subject, file: cat.safetensors}\n- {search: {author: owner}, role: style}",
    )
    repository, search = parse_settings(text, Path("/configs")).sources
    assert isinstance(repository, RepositorySource)
    assert isinstance(search, SearchSource)
    assert search.search.author == "owner"


def test_an_unknown_key_is_named_with_its_nearest_known_one() -> None:
    text = _LEAST + "methdos: []\nlimits: {pair: 3}\n"
    assert _problems(text) == [
        "CONFIG_UNKNOWN_KEY limits.pair is no setting. did you mean 'pairs'?",
        "CONFIG_UNKNOWN_KEY methdos is no setting. did you mean 'methods'?",
    ]


def test_an_unknown_key_deep_inside_is_looked_up_where_it_stands() -> None:
    text = _LEAST.replace("role: subject", "role: subject, triger_prompt: a cat")
    assert _problems(text) == [
        "CONFIG_UNKNOWN_KEY sources.0.triger_prompt is no setting. did you mean 'trigger_prompt'?"
    ]


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ("", "CONFIG_YAML", "no mapping"),
        ("[1, 2", "CONFIG_YAML", "no YAML"),
        (_LEAST.replace("scorers", "scores"), "CONFIG_MISSING_KEY", "scorers is not set"),
        (_LEAST + "limits: {pairs: 0}", "CONFIG_VALUE", "limits.pairs"),
        (_LEAST + "pairs: {include: [cat]}", "CONFIG_VALUE", "'cat' is no pattern of pairs"),
        (_LEAST + "previews: {prompts: ['{subjct} there']}", "CONFIG_VALUE", "slot other than"),
        (_LEAST + "calibration: {joint_prompts: ['{subject} {stile}']}", "CONFIG_VALUE", "slot other than"),
        (_LEAST + "previews: {prompts: ['{subject!r} there']}", "CONFIG_VALUE", "slot other than"),
        (_LEAST + "previews: {prompts: ['{subject.upper} there']}", "CONFIG_VALUE", "slot other than"),
        (_LEAST + "calibration: {joint_prompts: []}", "CONFIG_VALUE", "calibration.joint_prompts"),
        (_LEAST + "previews: {short_list: {merges: 3}}", "CONFIG_MISSING_KEY", "previews.short_list.seeds"),
        (_LEAST + "previews: {short_list: {merges: 3, seed: [1]}}", "CONFIG_UNKNOWN_KEY", "did you mean 'seeds'?"),
        (_LEAST + "store: ftp://me:secret@there/store", "STORE_PASSWORD", "store holds a password"),
        (_LEAST + "publish: {enabled: true}", "CONFIG_VALUE", "needs a namespace"),
        (_LEAST + "publish: {collection: 'of-{subject}'}", "CONFIG_VALUE", "slot other than {style} and {month}"),
        (_LEAST + "publish: {collection: me/merges}", "CONFIG_VALUE", "no name of a repository"),
        (_LEAST + "publish: {collection: 'merges--{style}'}", "CONFIG_VALUE", "no name of a repository"),
        (_LEAST + f"publish: {{collection: '{'x' * 61}{{style}}'}}", "CONFIG_VALUE", "no name of a repository"),
        (_LEAST + "methods: [{method: average}]", "CONFIG_VALUE", "methods.0.method"),
        (_LEAST.replace("folder: adapters", "folder: a, search: {}"), "CONFIG_VALUE", "exactly one of"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(change: str, code: str, said: str) -> None:
    problems = _problems(change)
    assert any(problem.startswith(code) and said in problem for problem in problems), problems
    assert not any("secret" in problem for problem in problems)


@pytest.mark.parametrize("name", ["merges", "of-{style}", "{style}.{month}", "x" * 60 + "{style}"])
def test_a_collection_is_named_once_or_by_style_and_month(name: str) -> None:
    assert parse_settings(_LEAST + f"publish: {{collection: '{name}'}}", Path()).publish.collection == name


def test_all_problems_come_at_once() -> None:
    assert len(_problems(_LEAST + "limits: {pairs: 0, second: 3}\nstor: here\n")) == 3


def test_a_missing_file_is_a_problem_too(tmp_path: Path) -> None:
    with pytest.raises(Problems, match="CONFIG_MISSING"):
        load_settings(tmp_path / "nowhere.yaml")
