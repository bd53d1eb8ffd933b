"""The configuration of a run: one object, parsed from the command line and YAML files."""

from __future__ import annotations

import argparse
import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import (
    ArgumentError,
    ArgumentParser,
    DefaultHelpFormatter,
    set_parsing_settings,
)

from datamodules.config import DataConfig
from models.config import ModelConfig
from pipeline.config_check import check_words
from serve.errors import SchemaError, say_missing

HOME = Path(__file__).parents[1]
TEMPLATE = HOME / "configs" / "template.yaml"
SAMPLES = {
    "grocery": HOME / "datamodules" / "sample",
    "library": HOME / "datamodules" / "sample" / "library",
}
"""The bundled samples: a configuration has the name, a folder the tables."""
DESCRIPTION = f"""Train, export, evaluate and publish a two-tower recommender.

bascule train                                the bundled grocery sample, into runs/grocery
bascule train --sample library               the other bundled sample, into runs/library
bascule train --config my.yaml               your own tables; copy {TEMPLATE}
bascule train --config my.yaml --quick       a first look in a fraction of the time
bascule train --config my.yaml --check       read and check the data, without training
bascule train --help                         every option; with --trainer behind it, Lightning's too
"""
SET_BY_RUN = {
    "plugins",
    "strategy",
    "num_nodes",
    "fast_dev_run",
    "enable_checkpointing",
    "max_epochs",
}
"""Arguments of the Trainer that the run sets, or that take away what it needs."""
PYTHON_ONLY = {"logger", "callbacks", "profiler"}
"""Arguments of the Trainer that only Python can give."""
MAX_SEED = 2**32 - 1
_SAME_KEYS = (
    "data",
    "model",
    "seed",
    "overwrite",
    "warm_start",
    "quick",
    "refit",
    "evaluation",
    "index",
    "privacy",
)
_TYPES = {"data": DataConfig, "model": ModelConfig, "out": Path, "seed": int}


@dataclass(frozen=True)
class EvaluationConfig:
    """How the test is evaluated."""

    baselines: list[str] | None = None
    """Baselines to fit and to compare with; []: none. Default: all. EASE takes minutes on a large
    catalogue."""
    audit_users: float = 0.0
    """Least ratio of the figures of a group of users to those of all others, such as 0.8: a run
    whose audit surely finds less publishes nothing. Default: any."""
    audit_items: float = 0.0
    """The same of the exposure of a group of items to its share of what users took."""

    def __post_init__(self) -> None:
        for name in ("audit_users", "audit_items"):
            ratio = getattr(self, name)
            if not 0 <= ratio <= 1:
                raise SchemaError(f"evaluation.{name} is {ratio}; allowed: from 0 to 1")


@dataclass(frozen=True)
class IndexConfig:
    """The search of a large catalogue."""

    recall: float = 0.98
    """Least share of the exact lists that a search finds, from 100,000 items on; 1: the search is
    exact. Fewer items are always searched exactly."""

    def __post_init__(self) -> None:
        if not 0.5 <= self.recall <= 1:
            raise SchemaError(f"index.recall is {self.recall}; allowed: from 0.5 to 1")


@dataclass(frozen=True)
class PrivacyConfig:
    """Differential privacy of everything in the bundle."""

    epsilon: float | None = None
    """Bound for each user, all of whose events count as one. The run then releases noised counts in
    place of training. Default: no bound."""
    delta: float = 1e-5
    """Chance that the bound does not hold; below one over the number of users."""

    def __post_init__(self) -> None:
        if self.epsilon is not None and not 0.01 <= self.epsilon <= 100:
            raise SchemaError(
                f"privacy.epsilon is {self.epsilon}; allowed: from 0.01 to 100"
            )
        if not 1e-12 <= self.delta < 0.1:
            raise SchemaError(
                f"privacy.delta is {self.delta}; allowed: from 1e-12 to below 0.1"
            )


@dataclass(frozen=True)
class Config:
    """A whole run.

    Example:
        config = Config(data=DataConfig(...), model=ModelConfig(dim=64), out=Path("runs/my"))

    Raises:
        SchemaError: a value is not allowed.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `pytorch_lightning.Trainer` that are not its defaults."""
    out: Path = Path("runs/run")  # folder of the run's outputs
    seed: int = 0
    resume: bool = False  # resume from the last checkpoint in `out`
    overwrite: bool = False  # replace a finished run in `out`
    previous: Path | None = None
    """Bundle of an earlier run whose codes are kept; new values of features come after them."""
    warm_start: bool = False  # start from the weights of `previous`
    quick: bool = False  # hardly train, or not at all: item-item weights, content
    refit: Literal["all", "profiles"] | None = None
    """What of the published bundle learns from the test too, after the figures are made: all, or
    profiles alone. Default: all where that costs less than a fifth of the training."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)

    def __post_init__(self) -> None:
        if self.warm_start and self.previous is None:
            raise SchemaError(
                "warm_start belongs to a run with a `previous` bundle; give that one, "
                "or leave it out"
            )

        if self.quick and self.warm_start:
            raise SchemaError(
                "quick hardly trains, so there is nothing to start from; "
                "leave warm_start out, or quick"
            )

        if self.privacy.epsilon is not None:
            self._check_private()
        is_fixed = self.data.on_disk or self.privacy.epsilon is not None
        if self.refit == "all" and is_fixed:
            raise SchemaError(
                "refit is all; with data.on_disk or privacy.epsilon allowed: profiles"
            )

        for name, kind in _TYPES.items():
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise SchemaError(f"{name} is {value!r}; allowed: a {kind.__name__}")

        if not 0 <= self.seed <= MAX_SEED:
            raise SchemaError(f"seed is {self.seed}; allowed: 0 to {MAX_SEED}")
        for name in sorted(SET_BY_RUN & self.trainer.keys()):
            raise SchemaError(
                f"trainer.{name} is set by the run; the length of a training is model.max_epochs"
            )

        if self.evaluation.baselines is not None:
            # This imports pandas and scipy, which help needs not.
            from evaluation.baselines import choose_baselines

            choose_baselines(self.data.repeats, self.evaluation.baselines)

    def _check_private(self) -> None:
        """Refuse what would tell more of people than the noised counts."""
        is_refused = {
            "data.repeats: allow": self.data.repeats == "allow",
            "data.on_disk": self.data.on_disk,
            "previous": self.previous is not None,
        }
        for name, is_given in is_refused.items():
            if is_given:
                raise SchemaError(
                    f"privacy.epsilon is given with {name}, which is not noised; leave that out"
                )


def make_parser(program: str = "bascule train") -> ArgumentParser:
    """Make the parser of a run, without `trainer`."""
    # `--help` explains each key by its docstring.
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=program,
        description=DESCRIPTION,
        formatter_class=_HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", action="config", help="YAML file; later words override it"
    )

    about = "default: runs/<name of the config file>"
    parser.add_argument("--out", type=str | None, help=about)
    about = "earlier bundle whose codes are kept"
    parser.add_argument("--previous", type=str | None, help=about)
    about = "resume the run in --out"
    parser.add_argument("--ckpt_path", type=Literal["last"] | None, help=about)
    about = "train on from the weights of --previous"
    parser.add_argument("--warm_start", action="store_true", help=about)
    about = "a first look in a fraction of the time, with hardly any training"
    parser.add_argument("--quick", action="store_true", help=about)
    about = (
        "what of the published bundle learns from the test too, after the figures are made; "
        "default: all where that costs less than a fifth of the training"
    )
    parser.add_argument("--refit", type=Literal["all", "profiles"] | None, help=about)
    about = "replace a finished run in --out"
    parser.add_argument("--overwrite", action="store_true", help=about)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=DataConfig, default=DataConfig())
    parser.add_argument("--model", type=ModelConfig, default=ModelConfig())
    parser.add_argument(
        "--evaluation", type=EvaluationConfig, default=EvaluationConfig()
    )
    parser.add_argument("--index", type=IndexConfig, default=IndexConfig())
    parser.add_argument("--privacy", type=PrivacyConfig, default=PrivacyConfig())

    return parser


def add_trainer(parser: ArgumentParser) -> None:
    """Add every argument of Lightning's Trainer; this imports torch, which takes seconds."""
    from pytorch_lightning import Trainer

    parser.add_class_arguments(
        Trainer, "trainer", skip=SET_BY_RUN | PYTHON_ONLY, instantiate=False
    )


def _name_config(words: Sequence[str]) -> list[str]:
    """Name the files of a bundled sample, from any working directory, if there is no `--config`."""
    if any(word.split("=")[0] == "--config" for word in words):
        return list(words)

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--sample", default="grocery")
    options, others = parser.parse_known_args(words)
    sample = options.sample
    if sample not in SAMPLES:
        raise SchemaError(f"--sample {sample}: allowed are {', '.join(SAMPLES)}")

    tables = ("interactions", "users", "items")
    paths = [f"--data.{name}.path={SAMPLES[sample] / name}.parquet" for name in tables]
    return [f"--config={HOME / 'configs' / sample}.yaml", *paths, *others]


def parse(argv: Sequence[str], program: str = "bascule train") -> tuple[Config, str]:
    """Parse the command line.

    Args:
        argv: the words after the program; without `--config` the bundled sample is meant.
        program: its name in messages.

    Returns:
        the configuration, and its YAML for `config.yaml`.

    Raises:
        SchemaError: an option or a value is not allowed.
    """
    words = _name_config(argv)
    parser = make_parser(program)
    if "trainer" in check_words(words, Config) or "--trainer" in words:
        add_trainer(parser)
    else:
        parser.add_argument(
            "--trainer",
            type=dict | None,
            default={},
            metavar="CONFIG",
            help="--trainer.NAME VALUE: any argument of Lightning's Trainer; "
            "`--help --trainer` lists them",
        )

    try:
        return _make_config(parser, words)
    except ArgumentError as error:
        message = " ".join(str(error).split())
        # What stands between the key and its value names types of Python.
        message = re.sub(
            r'Parser key "([\w.]+)": .* value: ', r"\1 may not be ", message
        )
        raise SchemaError(f"{message}; see {program} --help") from error


def _make_config(parser: ArgumentParser, words: Sequence[str]) -> tuple[Config, str]:
    values = parser.parse_args(words)
    made = parser.instantiate(values)
    if made.data.keys:  # the run keeps this configuration
        names = map(made.data.keys.name, made.data.exclude_users)
        values.data.exclude_users = list(names)
        made = parser.instantiate(values)
    resume = values.ckpt_path == "last"

    defaults = parser.get_defaults().trainer or {}
    arguments = values.trainer or {}
    trainer = {
        name: value for name, value in arguments.items() if value != defaults.get(name)
    }

    files = [path for path in values.config if path]  # None: YAML itself
    name = Path(str(files[-1])).stem if files else "run"
    same = {key: made[key] for key in _SAME_KEYS}
    out = Path(values.out or f"runs/{name}")
    check_paths(made.data, values.previous)
    config = Config(
        **same,
        trainer=trainer,
        out=out,
        resume=resume,
        previous=Path(values.previous) if values.previous else None,
    )

    return config, parser.dump(values)


def check_paths(data: DataConfig, previous: str | None) -> None:
    """Name a path that leads nowhere before torch is imported.

    Raises:
        SchemaError: no such file; patterns and addresses are read later.
    """
    paths = {"--previous": previous, "data.feedback": data.feedback}
    paths["data.split.validation"] = data.split.validation
    paths["data.split.test"] = data.split.test

    for name in ("interactions", "users", "items"):
        table = getattr(data, name)
        paths[f"data.{name}.path"] = table and table.path

    for setting, path in paths.items():
        if not path or glob.has_magic(path) or "://" in path:
            continue
        if not os.path.exists(path):
            raise SchemaError(say_missing(path, setting))


def complete_text(text: str, config: Config) -> str:
    """Return the YAML of a configuration with the values of `model` that the data decided."""
    content = yaml.safe_load(text)
    content["model"] = asdict(config.model)
    return str(yaml.safe_dump(content, sort_keys=False))


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keep the lines of the description."""
