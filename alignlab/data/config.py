"""The configs of the `data` group. What is common: where the text is, and what happens to a row that does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from alignlab.data.files import find
from alignlab.errors import ConfigError
from alignlab.files import file_keys

CLASSED_BY = ("pairs", "labels", "scores", "attributes")
TOO_LONG = ("error", "drop", "cut_prompt_left", "cut_response")
ANSWERS = ("last", "all")
UNUSABLE = ("error", "drop")
HALVES = ("rm", "ppo")
"""The halves of a training split, the first and the second: as splits of their own, and as `part`."""


@dataclass
class PrefixConfig:
    """Instruction prefixes that ask for a good and for a bad answer (RAHF, HIR, LoRRA); null where there are none. `separator`:
    between a prefix and the prompt."""

    better: str | None
    worse: str | None
    separator: str

    def check(self) -> None:
        """Raises ConfigError for prefixes that cannot ask for two kinds of answers."""
        for key, text in (("better", self.better), ("worse", self.worse)):
            if text is not None and not text.strip():
                raise ConfigError(f"data.prefixes.{key}={text!r} is empty; give it a text, or null for both prefixes.")
        if (self.better is None) != (self.worse is None):
            raise ConfigError(
                f"data.prefixes: better={self.better!r} and worse={self.worse!r} go together; give both, or null for both."
            )
        if self.better is not None and self.better == self.worse:
            raise ConfigError(f"data.prefixes: better and worse are both {self.better!r}; give two texts, or null for both.")


@dataclass
class HalvesConfig:
    """The training split shuffled with `seed` and cut in halves. Records longer than max_tokens are left out first, whatever
    too_long says, and those with more than `max_prompt` tokens in front of a response, BOS and template included (null = any).
    `test`: so many records from the end are the test split, without a test_limit; null = the data's own."""

    seed: int
    test: int | None
    max_prompt: int | None

    def check(self) -> None:
        """Raises ConfigError for counts below 1 and a negative seed, which shuffles as its positive one does."""
        if self.seed < 0:
            raise ConfigError(f"data.halves.seed={self.seed} must not be negative.")
        refuse_below_one("data.halves", test=self.test, max_prompt=self.max_prompt)


@dataclass
class DataConfig:
    """`max_tokens` (prompt and response; null = the model's context) and what happens to a longer row: `too_long` = error |
    drop | cut_prompt_left | cut_response (its end, EOS with it). `limit`: at most so many training records, null = all.
    `flipped`: share of the training pairs whose labels are swapped. `part`: the half that is the training split, rm | ppo, null
    = both."""

    name: str
    max_tokens: int | None
    too_long: str
    limit: int | None
    test_limit: int | None
    prefixes: PrefixConfig
    flipped: float
    halves: HalvesConfig | None
    part: str | None

    def check(self) -> None:
        """Raises ConfigError for what can be seen without reading anything."""
        if self.too_long not in TOO_LONG:
            raise ConfigError(f"data.too_long={self.too_long!r} is not known; choose one of {', '.join(TOO_LONG)}.")
        refuse_below_one("data", limit=self.limit, test_limit=self.test_limit, max_tokens=self.max_tokens)
        self.prefixes.check()
        if not 0 <= self.flipped <= 1:
            raise ConfigError(f"data.flipped={self.flipped} is a share of the training pairs; it must lie between 0 and 1.")
        if self.part is not None and self.part not in HALVES:
            raise ConfigError(f"data.part={self.part!r} is not known; choose one of {', '.join(HALVES)}, or null.")
        if self.halves is not None:
            self.halves.check()
        elif self.part is not None:
            raise ConfigError(
                f"data.part={self.part} names a half, but data.halves is null; give data.halves={{seed: 42, test: null,"
                " max_prompt: null}, or data.part=null."
            )

    def tasks(self) -> Mapping[str, DataConfig]:
        """The configs of the sources that this is a mixture of, by name; none where it is one source."""
        return {}

    def cache_key(self) -> list[str]:
        """What changes when the files behind this config change: nothing, where there are none."""
        return []

    def expected(self, split: str) -> int | None:
        """About how many records a training split has, for estimates; None where nobody has counted them."""
        records = self.counted(split)
        if records is None:
            return None
        records = records if self.limit is None else min(records, self.limit)
        if self.halves is None:
            return records
        records = max(records - (self.halves.test or 0), 0)
        return (records + 1) // 2 if split in HALVES or self.part else records

    def counted(self, split: str) -> int | None:
        """How many there are to read, before any limit; None where nobody knows."""
        del split
        return None


@dataclass
class ToyConfig(DataConfig):
    """The embedded world: how many records of each split its grammar writes, and the seed of the world itself. `length_cues`:
    whether two thirds of the prompts ask for a length, short or long; the corpus always does."""

    pairs: int
    test_pairs: int
    corpus: int
    world_seed: int
    length_cues: bool

    def counted(self, split: str) -> int | None:
        """What the grammar is asked for."""
        return self.corpus if split == "corpus" else self.pairs


@dataclass
class ToyClassesConfig(ToyConfig):
    """Stories of the embedded world and what they are `told` to be: mood | length | both."""

    told: str

    def check(self) -> None:
        """Raises ConfigError for something that is not told."""
        super().check()
        if self.told not in ("mood", "length", "both"):
            raise ConfigError(f"data.told={self.told!r} is not known; choose mood, length or both.")


@dataclass
class FilesConfig(DataConfig):
    """Records in files. `path`: a folder or a file; `train`, `test`: file names or patterns inside the folder."""

    path: str | None
    train: str
    test: str

    def check(self) -> None:
        """Raises ConfigError for a path without its files."""
        super().check()
        if self.path is not None:
            self.files(self.train)
            self.files(self.test)

    def cache_key(self) -> list[str]:
        """Name, size and time of every local file that would be read."""
        found = [*self.files(self.train), *self.files(self.test)] if self.path else []
        return file_keys(found)

    def files(self, pattern: str) -> list[Path]:
        """The files that a pattern names; raises ConfigError where there are none."""
        root = Path(str(self.path))
        if not root.exists():
            raise ConfigError(f"data.path={self.path} does not exist; give a folder or file that does.")
        found = find(root, pattern)
        if not found.files:
            passed = f" (passed over: {', '.join(found.passed_over[:5])})" if found.passed_over else ""
            raise ConfigError(f"data.path={self.path} holds no file {pattern!r}{passed}; set data.train and data.test.")
        return list(found.files)


@dataclass
class HubConfig(FilesConfig):
    """Records on the hub unless `path` is given. `revision`: a commit hash of the hub, null until one is known. `records`: of
    the published training split, for estimates; null = not known."""

    hub: str
    revision: str | None
    records: int | None

    def counted(self, split: str) -> int | None:
        """What was published; a local folder may hold anything."""
        return None if self.path else self.records


@dataclass
class HhConfig(HubConfig):
    """HH-RLHF. `subsets`: folders of the hub's layout. `unusable_pairs` (prompts differ, an answer is
    empty): error | drop, counted."""

    subsets: list[str]
    unusable_pairs: str


@dataclass
class FramedConfig(HubConfig):
    """Plain questions on the hub, written into `frame` (one {prompt}). `train_split`, `test_split`: the hub's names for them; a
    null test split = there is none."""

    frame: str
    train_split: str
    test_split: str | None

    def check(self) -> None:
        """Raises ConfigError for a frame that does not hold the question."""
        super().check()
        if self.frame.count("{prompt}") != 1:
            raise ConfigError(f"data.frame={self.frame!r} must hold {{prompt}} exactly once.")


@dataclass
class SummariesConfig(HubConfig):
    """Summaries from feedback. `subset`: a folder of the hub's layout. `frame`: the prompt, with {subreddit}, {title} and one
    {post}. `revision` has to be one that holds files: the hub's main branch holds a script."""

    subset: str
    frame: str

    def check(self) -> None:
        """Raises ConfigError for a frame that does not hold the post."""
        super().check()
        if self.frame.count("{post}") != 1:
            raise ConfigError(f"data.frame={self.frame!r} must hold {{post}} exactly once.")


@dataclass
class JsonlConfig(FilesConfig):
    """A user's own rows, in any form of data/README.md. `columns`: what is looked for -> the column that has it, such as
    {prompt: question}. `answers`: of a conversation, the last answer is trained on, or all. `test_share`: share of the records
    that is held out where `train` and `test` name the same files, drawn with `split_seed`. `unusable_pairs`: error | drop."""

    columns: dict[str, str]
    answers: str
    test_share: float
    split_seed: int
    unusable_pairs: str

    def check(self) -> None:
        """Raises ConfigError for values outside their range, and for files that are partly in both splits."""
        from alignlab.data.rows import COLUMNS

        for key in self.columns:
            if key not in COLUMNS:
                raise ConfigError(f"data.columns.{key}: nothing of this name is looked for; choose of {', '.join(COLUMNS)}.")
        if len(set(self.columns.values())) < len(self.columns):
            raise ConfigError(f"data.columns={dict(self.columns)} names one column twice; give each its own.")
        for name, value, known in (("answers", self.answers, ANSWERS), ("unusable_pairs", self.unusable_pairs, UNUSABLE)):
            if value not in known:
                raise ConfigError(f"data.{name}={value!r} is not known; choose one of {', '.join(known)}.")
        if not 0 < self.test_share < 1:
            raise ConfigError(f"data.test_share={self.test_share} is a share of the records; it must lie between 0 and 1.")
        super().check()
        if self.path is not None:
            train, test = self.files(self.train), self.files(self.test)
            both = [file.name for file in train if file in test]
            if both and train != test:
                raise ConfigError(
                    f"data.train and data.test both name {', '.join(both)}; name other files, or the same for both."
                )


@dataclass
class TextClassificationConfig(FilesConfig):
    """Texts and what they are told to be. `text`, `second`, `label`: names of columns. `task`: classes | number. `labels`: the
    classes in their order. `test_share`: share of the rows of a single file that is held out, drawn with `split_seed`."""

    test_share: float | None
    split_seed: int
    text: str
    second: str | None
    label: str
    task: str
    labels: list[str] | None

    def check(self) -> None:
        """Raises ConfigError for values outside their range, and for a single file that is not to be shared out."""
        super().check()
        if self.task not in ("classes", "number"):
            raise ConfigError(f"data.task={self.task!r} is not known; choose classes or number.")
        if self.labels is not None and (self.task == "number" or len(set(self.labels)) < max(2, len(self.labels))):
            raise ConfigError(f"data.labels={self.labels} must name at least two classes, each once; or null.")
        if self.test_share is not None and not 0 < self.test_share < 1:
            raise ConfigError(f"data.test_share={self.test_share} is a share of the rows; it must lie between 0 and 1.")
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
    """What tells the classes of a control apart. `by`: pairs (chosen, rejected) | labels | scores (cut at quantiles of the
    training split into `bins`) | attributes (those named, crossed). `names`: the classes, best first; null = as found."""

    by: str
    names: list[str] | None
    bins: int
    attributes: list[str]

    def check(self) -> None:
        """Raises ConfigError for classes that cannot be told apart."""
        if self.by not in CLASSED_BY:
            raise ConfigError(f"control.classes.by={self.by!r} is not known; choose one of {', '.join(CLASSED_BY)}.")
        if self.names is not None and len(set(self.names)) < max(2, len(self.names)):
            raise ConfigError(f"control.classes.names={self.names} must name at least two classes, each once.")
        if self.by == "pairs" and len(self.names or ()) != 2:
            raise ConfigError(f"control.classes.names={self.names} must name two classes: of chosen and of rejected answers.")
        if self.by == "scores" and (self.bins < 2 or len(self.names or range(self.bins)) != self.bins):
            raise ConfigError(f"control.classes.bins={self.bins} must be at least 2, with as many names, or null.")
        if self.by == "attributes" and not self.attributes:
            raise ConfigError("control.classes.attributes is empty; name at least one attribute of the responses.")


def refuse_below_one(where: str, **counts: int | None) -> None:
    """Raises ConfigError for a count of which there must be at least one."""
    for key, value in counts.items():
        if value is not None and value < 1:
            raise ConfigError(f"{where}.{key}={value} must be at least 1, or null.")
