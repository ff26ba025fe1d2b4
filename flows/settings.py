"""CONFIG, one YAML file, as models that check themselves; and the only reader of the environment.

A night is described by *what* (base model, sources, pairs, methods, previews, scorers: all of it changes results) and
by *how* (device, limits, where things are kept: none of it does).
"""

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from catalog.consent import DENIED_WORDS

Role = Literal["subject", "style"]
Method = Literal["direct", "ziplora", "ziplora-joint", "ziplora-lsq", "np-lora", "ties", "dare"]
_MAX_CONFIG_BYTES = 1_000_000
_SLOTS = {"subject", "style"}
_LONGEST_SLUG = 36


class Problem(Exception):  # noqa: N818 - what people see is a problem with their input, in a sentence
    """A stable code, one sentence with the observed fact, and what to do next; `exit_code` is what a script sees."""

    def __init__(self, code: str, fact: str, next_step: str, exit_code: int = 2) -> None:
        super().__init__(f"{code}  {fact} Next: {next_step}")
        self.code, self.fact, self.next_step, self.exit_code = code, fact, next_step, exit_code


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=False)


class BaseModelSettings(_Strict):
    """What the LoRAs were trained on."""

    id: str = Field(description="a Hub id, or a folder that stock diffusers loads")
    revision: str | None = Field(default=None, description="a commit of the Hub repository; None for a folder")


class _Source(_Strict):
    role: Role
    trigger_prompt: str | None = Field(
        default=None, description="calls the adapter up; None takes the card's instance prompt"
    )
    slot: str | None = Field(
        default=None,
        description="what stands for the adapter in prompts: a subject's trigger prompt, or a style's words from its "
        "last ' in ' on, unless said here",
    )


class FolderSource(_Source):
    """Repository folders on disk."""

    folder: Path
    names: tuple[str, ...] = Field(default=("*",), description="patterns of the repository folders' names")


class RepositorySource(_Source):
    """One repository of the Hub."""

    repository: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = "main"
    file: str | None = Field(default=None, description="the weights, where a repository holds several")


class Search(_Strict):
    """What to ask the Hub for."""

    base_model: str | None = Field(
        default=None, description="as cards name it; the night's own if not given, and any for a base in a folder"
    )
    tags: tuple[str, ...] = ("lora",)
    author: str | None = None
    text: str | None = None
    limit: int = Field(default=1000, ge=1, le=100_000)


class SearchSource(_Source):
    """What a search of the Hub finds."""

    search: Search


def _kind_of(source: Any) -> str | None:
    kinds = ("folder", "repository", "search")
    present = [kind for kind in kinds if (kind in source if isinstance(source, dict) else hasattr(source, kind))]
    return present[0] if len(present) == 1 else None


Source = Annotated[
    Annotated[FolderSource, Tag("folder")]
    | Annotated[RepositorySource, Tag("repository")]
    | Annotated[SearchSource, Tag("search")],
    Discriminator(
        _kind_of,
        custom_error_type="source_kind",
        custom_error_message="a source has exactly one of folder, repository and search",
    ),
]


class Pairs(_Strict):
    """Which pairs of repository names are wanted: those that match an `include` and no `exclude`."""

    include: tuple[str, ...] = Field(default=("* x *",), description="patterns 'SUBJECT x STYLE'")
    exclude: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _are_pairs(self) -> "Pairs":
        for pattern in (*self.include, *self.exclude):
            if len(pattern.split(" x ")) != 2:
                raise ValueError(f"{pattern!r} is no pattern of pairs: write 'SUBJECT x STYLE', such as 'cat-* x *'")
        return self


class MethodSettings(_Strict):
    """One way to merge; what is left out is the method's own default."""

    method: Method
    parameters: Mapping[str, float | int | bool | str] = Field(default_factory=dict)


def _with_known_slots(prompt: str) -> str:
    try:
        parts = [(name, form or conversion) for _, name, form, conversion in Formatter().parse(prompt)]
    except ValueError:  # a brace without its partner opens a slot without a name
        parts = [("", None)]
    if any(name not in (None, *_SLOTS) or changed for name, changed in parts):
        raise ValueError(f"prompt {prompt!r} has a slot other than {{subject}} and {{style}}")
    return prompt


Template = Annotated[str, AfterValidator(_with_known_slots)]
"""A prompt in which `{subject}` and `{style}` stand for the adapters."""


class CalibrationSettings(_Strict):
    """What the methods that learn are shown of each adapter, and of both together."""

    samples: int = Field(default=16, ge=1, le=1024)
    seed: int = 0
    guidance: float = Field(default=5.0, ge=0, description="of the pictures that are drawn for lack of others")
    joint_prompts: tuple[Template, ...] = Field(
        default=(
            "{subject} {style}",
            "{subject} on a table {style}",
            "{subject} in a forest {style}",
            "{subject} on a street {style}",
        ),
        min_length=1,
        description="several surroundings, for the methods that learn from both adapters together",
    )


class ShortList(_Strict):
    """Further pictures of the best merges, drawn when all others of a night are done."""

    merges: int = Field(ge=1, le=10_000, description="how many of the best")
    seeds: tuple[int, ...] = Field(min_length=1, description="beyond those of every merge, with the same prompts")


class PreviewSettings(_Strict):
    """Pictures of every pair."""

    prompts: tuple[Template, ...] = Field(default=("{subject} {style}",), min_length=1)
    seeds: tuple[int, ...] = Field(default=(0, 1), min_length=1)
    short_list: ShortList | None = None
    steps: int = Field(default=30, ge=1, le=1000)
    guidance: float = Field(default=5.0, ge=0)
    side: int = Field(default=1024, ge=8, multiple_of=8, description="height and width in pixels")


class ScorerSettings(_Strict):
    """Folders or Hub ids of the encoders that score pictures."""

    text: str = Field(description="a CLIP model: text against picture")
    subject: str = Field(description="a DINO model: picture against the subject's pictures")
    style: str = Field(description="a CLIP image model: picture against the style's pictures")


class Limits(_Strict):
    """Where a night stops; what is left is done the next night."""

    pairs: int = Field(default=10_000, ge=1)
    seconds: float = Field(default=12 * 3600, gt=0)
    store_bytes: int = Field(default=500_000_000_000, gt=0, description="on this disk; free space is checked too")
    batch: int = Field(default=100, ge=1, le=100, description="merges of one warm worker, at most")
    silent_seconds: float = Field(
        default=3600,
        gt=0,
        le=1_000_000,
        description="a process that ends no stage and no step of a merge for so long hangs, and is ended",
    )
    free_gpu_bytes: int = Field(default=0, ge=0, description="a batch waits until so much memory of its card is free")


class PolicySettings(_Strict):
    """Which adapters are merged at all, whatever their licences allow."""

    trusted: tuple[str, ...] = Field(
        default=(),
        description="patterns of repositories that are yours or whose people agreed: neither tags nor "
        "words hold them back",
    )
    denied: tuple[str, ...] = Field(default=(), description="patterns of repositories that are never merged")
    denied_words: tuple[str, ...] = Field(
        default=DENIED_WORDS, description="in names, tags and trigger prompts, however they are spelt"
    )


class KeepSettings(_Strict):
    """What is let go at the end of a night, of a store in a folder; coefficients and rows are kept always."""

    least_score: float = Field(default=0.0, ge=0, le=1, description="pictures of merges that score less go")
    days: float | None = Field(default=None, gt=0, description="pictures of merges finished longer ago go")

    @property
    def everything(self) -> bool:
        """Whether nothing is let go."""
        return self.least_score == 0 and self.days is None


def _as_name_on_the_hub(pattern: str) -> str:
    try:
        name = pattern.format(style="x" * _LONGEST_SLUG, month="2026-01")
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{pattern!r} has a slot other than {{style}} and {{month}}") from error
    if not re.fullmatch(r"(?!.*(--|\.\.))[A-Za-z0-9]([\w.-]{0,94}[A-Za-z0-9])?", name, re.ASCII):
        raise ValueError(f"{pattern!r} is no name of a repository: letters, digits, and single - _ . between them")
    return pattern


NameOnTheHub = Annotated[str, AfterValidator(_as_name_on_the_hub)]
"""Of a repository, without its owner."""


class PublishSettings(_Strict):
    """What leaves this machine, and only when `enabled`."""

    enabled: bool = False
    namespace: str | None = Field(default=None, description="user or organisation of the Hub")
    private: bool = True
    least_score: float = Field(default=0.5, ge=0, le=1, description="harmonic mean of subject and style position")
    collection: NameOnTheHub | None = Field(
        default=None,
        description="a repository for many merges, in which {style} and {month} stand for those of a merge; "
        "without it each merge has its own",
    )
    dataset: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9][\w.-]*$", description="a data set of what is published or may be"
    )

    @model_validator(mode="after")
    def _know_where_to(self) -> "PublishSettings":
        if self.enabled and not self.namespace:
            raise ValueError("publishing needs a namespace")
        return self


class Settings(_Strict):
    """One night."""

    base_model: BaseModelSettings
    sources: tuple[Source, ...] = Field(min_length=1)
    pairs: Pairs = Pairs()
    methods: tuple[MethodSettings, ...] = Field(
        default=(MethodSettings(method="ziplora-joint"), MethodSettings(method="direct")), min_length=1
    )
    calibration: CalibrationSettings = CalibrationSettings()
    previews: PreviewSettings = PreviewSettings()
    scorers: ScorerSettings
    limits: Limits = Limits()
    policy: PolicySettings = PolicySettings()
    keep: KeepSettings = KeepSettings()
    publish: PublishSettings = PublishSettings()
    notify: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9-]+/[a-z0-9-]+$",
        description="a notification block of the Prefect server, such as slack-webhook/team, that tells of nights",
    )
    merge_unknown_licences: bool = Field(default=False, description="locally; they are never published")
    merge_outliers: bool = Field(default=False, description="adapters that change weights absurdly much")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    store: str = Field(
        default="store", description="a folder, or a URL such as s3://bucket/ziplora that several machines share"
    )
    store_cache: Path = Field(default=Path("store"), description="this machine's copies, when the store is at a URL")
    catalogue: str = "sqlite:///catalog.sqlite"
    snapshot: Path = Field(default=Path("catalog.duckdb"), description="the catalogue for readers, in DuckDB")
    gallery: Path = Path("gallery")

    @property
    def store_url(self) -> str | None:
        """Where machines share their results, if they do."""
        return self.store if "://" in self.store else None

    @property
    def store_folder(self) -> Path:
        """Where results are on this disk."""
        return self.store_cache if self.store_url else Path(self.store)


def _messages(error: ValidationError) -> Iterator[tuple[str, str, str]]:
    """Code, fact and next step of everything that is wrong."""
    found = error.errors(include_url=False)
    for one in found:
        if one["type"] == "too_short" and any(
            other["loc"][: len(one["loc"])] == one["loc"] != other["loc"] for other in found
        ):
            continue  # pydantic counts only the elements that are right
        place = ".".join(str(step) for step in one["loc"] if step not in ("folder", "search") or step == one["loc"][-1])
        if one["type"] == "extra_forbidden":
            unknown = str(one["loc"][-1])
            known = _keys_at(one["loc"][:-1])
            near = difflib.get_close_matches(unknown, known, n=1, cutoff=0.5)
            way_out = f"did you mean {near[0]!r}?" if near else f"the known keys are {', '.join(sorted(known))}."
            yield "CONFIG_UNKNOWN_KEY", f"{place} is no setting.", way_out
        elif one["type"] == "missing":
            yield "CONFIG_MISSING_KEY", f"{place} is not set.", "add it."
        else:
            said = str(one["msg"]).removeprefix("Value error, ").rstrip(".")
            yield "CONFIG_VALUE", f"{place or 'the file'}: {said}.", f"it is {_short(one['input'])} now; change it."


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    """The keys that the model at a place of the file knows."""
    model: type[BaseModel] = Settings
    tags: dict[str, type[BaseModel]] = {"folder": FolderSource, "repository": RepositorySource, "search": SearchSource}
    for step in location:
        if step in tags and model not in tags.values():
            model = tags[str(step)]
        elif isinstance(step, str) and step in model.model_fields:
            model = _model_in(model.model_fields[step].annotation) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model of a field, itself or as the element of a tuple."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


class Problems(Exception):  # noqa: N818 - several problems at once
    """Everything that is wrong with one input."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems
        self.exit_code = max(problem.exit_code for problem in problems)


def parse_settings(text: str, beside: Path) -> Settings:
    """The settings in a YAML text, relative paths taken from the folder `beside`; raises all Problems at once."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise Problems((Problem("CONFIG_YAML", f"It is no YAML: {reason}.", "mend the line it names."),)) from error
    if not isinstance(raw, dict):
        raise Problems((Problem("CONFIG_YAML", "It is no mapping of settings.", "see the README's example."),))
    try:
        settings = Settings.model_validate(raw)
    except ValidationError as error:
        raise Problems(tuple(Problem(*message) for message in _messages(error))) from error
    if re.match(r"[^/]+://[^/]*:[^/]*@", settings.store):
        fact = "store holds a password, and settings are kept and shown."
        raise Problems((Problem("STORE_PASSWORD", fact, "leave it out, and set what its package reads."),))
    return _placed(settings, beside)


def load_settings(path: Path) -> Settings:
    """The settings in a file."""
    if not path.is_file():
        raise Problems((Problem("CONFIG_MISSING", f"There is no file {path}.", "name a YAML file of settings."),))
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise Problems((Problem("CONFIG_YAML", f"{path} is larger than a megabyte.", "is it the right file?"),))
    return parse_settings(path.read_text(encoding="utf-8", errors="replace"), path.absolute().parent)


def _placed(settings: Settings, beside: Path) -> Settings:
    """Paths of the settings made absolute; ids of the Hub stay what they are."""

    def model(name: str) -> str:
        return str(beside / name) if (beside / name).is_dir() else name

    scorers = {role: model(name) for role, name in settings.scorers.model_dump().items()}
    sources = tuple(
        source.model_copy(update={"folder": beside / source.folder}) if isinstance(source, FolderSource) else source
        for source in settings.sources
    )
    scheme, separator, place = settings.catalogue.partition(":///")
    catalogue = f"{scheme}:///{beside / place}" if scheme == "sqlite" and separator else settings.catalogue
    return settings.model_copy(
        update={
            "base_model": settings.base_model.model_copy(update={"id": model(settings.base_model.id)}),
            "scorers": ScorerSettings(**scorers),
            "sources": sources,
            "store": settings.store_url or str(beside / settings.store),
            "store_cache": beside / settings.store_cache,
            "gallery": beside / settings.gallery,
            "snapshot": beside / settings.snapshot,
            "catalogue": catalogue,
        }
    )


def prefect_api_url() -> str | None:
    """The Prefect server that people watch, if there is one."""
    return os.environ.get("PREFECT_API_URL")


_SILENT_TASKS = {"PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL": "WARNING"}
"""A pair has a line of its own in the log: that its task ended would be one more."""


def worker_environment(card: int | None) -> dict[str, str]:
    """What a worker of ours hands on to its runs: their card, a heart that beats every 30 s, no word of each task."""
    usual = {
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        **_SILENT_TASKS,
    }
    own = {"CUDA_VISIBLE_DEVICES": str(card)} if card is not None else {}
    return usual | dict(os.environ) | own


def quiet_libraries() -> None:
    """Let Prefect and the model libraries say nothing in this terminal and tell nobody; comes before their import."""
    quiet = {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the log still goes to the server
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",  # its first start makes a database
        **_SILENT_TASKS,
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
