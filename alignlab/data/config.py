"""The configs of the `data` group. What is common: where the text is, and what happens to a row that does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from alignlab.commits import hub_commit
from alignlab.data.files import FORMS, PLAIN, find
from alignlab.data.halves import HALVES, HalvesConfig, PrefixConfig
from alignlab.errors import ConfigError
from alignlab.files import content_keys
from alignlab.registry import number, one_of, path, pattern, random_seed, text

MOST_STORIES = 10_000_000
"""Records of a split of the embedded world, which stands in memory."""

HELD_OUT = 1000
"""Rows that a protocol of GLUE holds out of a large split."""
GLUE_ROWS = {
    **{"cola": 8551, "sst2": 67349, "mrpc": 3668, "qqp": 363846},
    **{"stsb": 5749, "mnli": 392702, "qnli": 104743, "rte": 2490},
}
"""Rows of the training split of each of GLUE's tasks; WNLI is not used."""
QUESTION_ROWS = {
    **{"boolq": 9427, "cb": 250, "multirc": 26243, "wic": 5428, "wsc": 554},
    **{"record": 137854, "squad": 86599},
}
"""Training records of SuperGLUE's tasks and SQuAD, without what is held out; of ReCoRD one for each answer."""
HELD_OUT_OF_TRAINING = ("mnli", "qnli", "qqp", "sst2")
"""Tasks whose validation rows are training rows under T5's protocol."""


@dataclass
class DataConfig:
    """`max_tokens` (prompt and response; null = the model's context) and what happens to a longer row: `too_long` = error |
    drop | cut_prompt_left | cut_response (its end, EOS with it). `limit`: at most so many training records, null = all.
    `flipped`: share of the training pairs whose labels are swapped. `part`: the half that is the training split, rm | ppo, null
    = both."""

    name: str
    max_tokens: Annotated[int | None, number(minimum=1)]
    too_long: Annotated[str, one_of("error", "drop", "cut_prompt_left", "cut_response")]
    limit: Annotated[int | None, number(minimum=1, smoke=128, null_is_all=True)]
    test_limit: Annotated[int | None, number(minimum=1, smoke=32, null_is_all=True)]
    prefixes: PrefixConfig
    flipped: Annotated[float, number(minimum=0, maximum=1, note="a share of the training pairs")]
    halves: HalvesConfig | None
    part: Annotated[
        str | None,
        one_of(*HALVES, needs=("halves", "give data.halves={seed: 42, test: null, max_prompt: null}, or data.part=null")),
    ]

    @property
    def from_hub(self) -> bool:
        """Whether its records would be read from the hub."""
        return False

    def expected(self, split: str) -> int | None:
        """About how many records a training split has, for estimates; None where that is not known."""
        return self.drawn(split, self.counted(split))

    def drawn(self, split: str, records: int | None) -> int | None:
        """How many of so many records a training split has at most, behind the limit and in its half; None of None."""
        if records is None:
            return None
        records = records if self.limit is None else min(records, self.limit)
        if self.halves is None:
            return records
        records = max(records - (self.halves.test or 0), 0)
        return (records + 1) // 2 if split in HALVES or self.part else records

    def counted(self, split: str) -> int | None:
        """The number of records before any limit; None where that is not known."""
        del split
        return None


@dataclass
class ToyConfig(DataConfig):
    """The embedded world: how many records of each split its grammar writes, and the seed of the world itself. `length_cues`:
    whether two thirds of the prompts ask for a length, short or long; the corpus always does."""

    pairs: Annotated[int, number(minimum=1, maximum=MOST_STORIES, smoke=128)]
    test_pairs: Annotated[int, number(minimum=1, maximum=MOST_STORIES, smoke=32)]
    corpus: Annotated[int, number(minimum=1, maximum=MOST_STORIES, smoke=128)]
    world_seed: Annotated[int, random_seed()]
    length_cues: bool

    def counted(self, split: str) -> int | None:
        """The number of records that the grammar writes."""
        return self.corpus if split == "corpus" else self.pairs


@dataclass
class ToyClassesConfig(ToyConfig):
    """Stories of the embedded world, labelled by what `told` says: mood | length | both."""

    told: Annotated[str, one_of("mood", "length", "both")]


@dataclass
class LocalConfig(DataConfig):
    """Records in files. `path`: a folder or a file."""

    path: Annotated[str | None, path()]
    named_by: ClassVar[Sequence[str]] = ()
    """The fields that are file names or patterns inside the folder."""
    forms: ClassVar[Sequence[str]] = FORMS
    """Endings of the files that are read."""
    one_file: ClassVar[str] = ""
    """What a refusal says of giving a single file."""

    def check(self, where: str) -> None:
        """Raises ConfigError for a path without its files."""
        del where
        self._every_file()

    def cache_key(self) -> list[str]:
        """The content of every local file that would be read."""
        return content_keys(self._every_file())

    def _every_file(self) -> list[Path]:
        if self.path is None:
            return []
        return [file for field in self.named_by for file in self.files(getattr(self, field))]

    def places(self) -> tuple[str, ...]:
        """Where the files lie."""
        return ("path",)

    def files(self, pattern: str) -> list[Path]:
        """The files that a pattern names; raises ConfigError where there are none."""
        root = Path(str(self.path))
        if not root.exists():
            raise ConfigError(f"data.path={self.path} does not exist; give a folder or file that does.")
        found = find(root, pattern, self.forms)
        if not found.files:
            keys = " and ".join(f"data.{field}" for field in self.named_by)
            passed = f" (passed over: {', '.join(found.passed_over[:5])})" if found.passed_over else ""
            others = sorted(file.name for file in root.iterdir() if file.is_file())[:5] if root.is_dir() else []
            there = f" but {', '.join(others)}" if others and not passed else ""
            raise ConfigError(f"data.path={self.path} holds no file {pattern!r}{passed}{there}; set {keys}{self.one_file}.")
        return list(found.files)


@dataclass
class FilesConfig(LocalConfig):
    """Records of two splits. `train`, `test`: file names or patterns inside the folder."""

    train: Annotated[str, pattern()]
    test: Annotated[str, pattern()]
    named_by = ("train", "test")


@dataclass
class TextsConfig(LocalConfig):
    """Texts to pretrain on. `corpus`: file names or patterns. `separator`: a line that stands between two texts of a plain
    file, null = a file is one text. `text`: the column of the text in files of rows. `words`: of a longer text so many words
    are a record."""

    corpus: Annotated[str, pattern()]
    separator: str | None
    text: str
    words: Annotated[int, number(minimum=2)]
    named_by = ("corpus",)
    forms = (*FORMS, PLAIN)

    def check(self, where: str) -> None:
        """Raises ConfigError where no file is named."""
        if self.path is None:
            raise ConfigError("data=texts needs data.path: a folder that holds the files named by data.corpus, or a file.")
        super().check(where)


@dataclass
class HubConfig(FilesConfig):
    """Records on the hub unless `path` is given. `revision`: a commit hash of the hub, null until one is known. `records`: of
    the published training split, for estimates; null = not known."""

    hub: str
    revision: str | None
    records: Annotated[int | None, number(minimum=1)]

    def cache_key(self) -> list[str]:
        """The content of the local files; of the hub, the commit."""
        return super().cache_key() if self.path else [str(self.commit)]

    @property
    def commit(self) -> str | None:
        """The commit of the hub that is read."""
        return hub_commit("dataset", self.hub, self.revision)

    @property
    def from_hub(self) -> bool:
        """Unless there is a folder."""
        return self.path is None

    def counted(self, split: str) -> int | None:
        """What was published; a local folder may hold anything."""
        return None if self.path else self.records


@dataclass
class GlueConfig(HubConfig):
    """One of GLUE's tasks. `path`: a folder with the files of this task. `protocol`: how the labelled rows that are not trained
    on become a validation and a test split, clean | t5; `split_seed` draws them. `answers`: classes are told by their names, or
    as T5 is asked (arXiv 2402.15179, appendix B.3) by their numbers, a similarity with one decimal. `frames`: by task, a text
    with {column} in the place of each text; null = the texts one behind the other."""

    task: Annotated[str, one_of(*GLUE_ROWS)]
    protocol: Annotated[str, one_of("clean", "t5")]
    split_seed: Annotated[int, random_seed()]
    answers: Annotated[str, one_of("names", "numbers")]
    frames: dict[str, str] | None

    def check(self, where: str) -> None:
        """Raises ConfigError where frames are given, and none for this task."""
        super().check(where)
        if self.frames is not None and self.task not in self.frames:
            raise ConfigError(f"{where}.frames has none for task {self.task}; add one, or set {where}.frames=null.")

    def counted(self, split: str) -> int | None:
        """What GLUE's training split has, without what the protocol holds out of it."""
        held_out = HELD_OUT if self.protocol == "t5" and self.task in HELD_OUT_OF_TRAINING else 0
        return None if self.path else GLUE_ROWS[self.task] - held_out

    def files(self, pattern: str) -> list[Path]:
        """Without MNLI's second validation set, of other genres than the training rows, which RED's paper does not use."""
        return [file for file in super().files(pattern) if "mismatched" not in file.name]


@dataclass
class QuestionsConfig(HubConfig):
    """One of SuperGLUE's tasks, or SQuAD. `path`: a folder with the files of this task. `split_seed` draws the rows that are
    held out. `frames`: by task, a text with {column} in the place of each text."""

    task: Annotated[str, one_of(*QUESTION_ROWS)]
    split_seed: Annotated[int, random_seed()]
    frames: dict[str, str]

    def check(self, where: str) -> None:
        """Raises ConfigError where there is no frame for this task."""
        super().check(where)
        if self.task not in self.frames:
            raise ConfigError(f"{where}.frames has none for task {self.task}; add one.")

    @property
    def frame(self) -> str:
        """That of the task."""
        return self.frames[self.task]

    def counted(self, split: str) -> int | None:
        """What the training split has, a row for each answer."""
        return None if self.path else QUESTION_ROWS[self.task]


@dataclass
class E2eConfig(HubConfig):
    """E2E NLG: what to say of a restaurant, and what people wrote. `path`: the release's archive, or a folder with its files.
    `validation`: as `train` and `test`. `linearisation` of what is to be said: raw, as it stands, `name[Aromi], area[city]`; or
    fields, `name : Aromi | area : city`."""

    validation: str
    linearisation: Annotated[str, one_of("raw", "fields")]


@dataclass
class HhConfig(HubConfig):
    """HH-RLHF. `subsets`: folders of the hub's layout. `unusable_pairs` (prompts differ, an answer is
    empty): error | drop, counted."""

    subsets: list[str]
    unusable_pairs: Annotated[str, one_of("error", "drop")]


@dataclass
class FramedConfig(HubConfig):
    """Plain questions on the hub, written into `frame` (one {prompt}). `train_split`, `test_split`: the hub's names for them; a
    null test split = there is none."""

    frame: Annotated[str, text(holds="{prompt}")]
    train_split: str
    test_split: str | None


@dataclass
class SummariesConfig(HubConfig):
    """Summaries from feedback. `subset`: a folder of the hub's layout. `frame`: the prompt, with {subreddit}, {title} and one
    {post}. `revision` has to be one that holds files: the hub's main branch holds a script."""

    subset: str
    frame: Annotated[str, text(holds="{post}")]


@dataclass
class JsonlConfig(FilesConfig):
    """A user's own rows, in any form of data/README.md. `columns`: what is looked for -> the column that has it, such as
    {prompt: question}. `answers`: of a conversation, the last answer is trained on, or all. `repeated_prompt`: what happens to
    a prompt that all answers of its row repeat: keep | cut, counted either way. `test_share`: share of the records that is held
    out where `train` and `test` name the same files, drawn with `split_seed`. `unusable_pairs`: error | drop."""

    one_file = ", or data.path to one file, of which a part is held out"

    columns: dict[str, str]
    answers: Annotated[str, one_of("last", "all")]
    repeated_prompt: Annotated[str, one_of("keep", "cut")]
    test_share: Annotated[float, number(above=0, below=1, note="a share of the records")]
    split_seed: Annotated[int, random_seed()]
    unusable_pairs: Annotated[str, one_of("error", "drop")]

    def check(self, where: str) -> None:
        """Raises ConfigError for an unknown key of `columns`, a column named twice, and files that are partly in both
        splits."""
        from alignlab.data.rows import COLUMNS

        for key in self.columns:
            if key not in COLUMNS:
                raise ConfigError(f"data.columns.{key} is not known; choose one of {', '.join(COLUMNS)}.")
        if len(set(self.columns.values())) < len(self.columns):
            raise ConfigError(f"data.columns={dict(self.columns)} names one column twice; give each its own.")
        super().check(where)
        if self.path is not None:
            train, test = self.files(self.train), self.files(self.test)
            both = [file.name for file in train if file in test]
            if both and train != test:
                raise ConfigError(
                    f"data.train and data.test both name {', '.join(both)}; name other files, or the same for both."
                )


@dataclass
class TextClassificationConfig(FilesConfig):
    """Texts with a label each. `text`, `second`, `label`: names of columns. `task`: classes | number. `labels`: the classes in
    their order. `answers`: classes are told by their names or by their numbers. `frame`: a text with {text} and {second} in the
    place of the texts, null = as they are. `test_share`: share of the rows of a single file that is held out, drawn with
    `split_seed`."""

    test_share: Annotated[float | None, number(above=0, below=1, note="a share of the rows")]
    split_seed: Annotated[int, random_seed()]
    text: str
    second: str | None
    label: str
    task: Annotated[str, one_of("classes", "number")]
    labels: list[str] | None
    answers: Annotated[str, one_of("names", "numbers")]
    frame: Annotated[str | None, text(holds="{text}")]

    def check(self, where: str) -> None:
        """Raises ConfigError for fewer than two different labels, and for a single file without a test share."""
        super().check(where)
        if self.labels is not None and (self.task == "number" or len(set(self.labels)) < max(2, len(self.labels))):
            raise ConfigError(f"data.labels={self.labels} must name at least two classes, each once; or null.")
        if self.path is None:
            raise ConfigError(
                "data=text_classification needs data.path: a folder that holds data.train and data.test, or a file."
            )
        same = self.files(self.train) == self.files(self.test)
        if same != (self.test_share is not None):
            raise ConfigError(
                f"data.train={self.train} and data.test={self.test} name {'the same' if same else 'different'} files; "
                + ("set data.test_share, such as 0.2, to hold rows out." if same else "set data.test_share=null.")
            )


@dataclass
class ClassesConfig:
    """How the classes of a control are made. `by`: pairs (chosen, rejected) | labels | scores (cut at quantiles of the training
    split into `bins`) | attributes (those named, crossed). `names`: the classes, best first; null = as found."""

    by: Annotated[str, one_of("pairs", "labels", "scores", "attributes")]
    names: list[str] | None
    bins: Annotated[int, number(minimum=2, maximum=1000)]
    attributes: list[str]

    def check(self, where: str) -> None:
        """Raises ConfigError for too few names, a name given twice, names that do not match the bins, and missing
        attributes."""
        if self.names is not None and len(set(self.names)) < max(2, len(self.names)):
            raise ConfigError(f"{where}.names={self.names} must name at least two classes, each once.")
        if self.by == "pairs" and len(self.names or ()) != 2:
            raise ConfigError(f"{where}.names={self.names} must name two classes: of chosen and of rejected answers.")
        if self.by == "scores" and len(self.names or range(self.bins)) != self.bins:
            raise ConfigError(f"{where}.names={self.names} must be as many as {where}.bins={self.bins}, or null.")
        if self.by == "attributes" and not self.attributes:
            raise ConfigError(f"{where}.attributes is empty; name at least one attribute of the responses.")
