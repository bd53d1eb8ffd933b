"""The configuration of a run: one object for Python, parsed from the command line and YAML files."""

from __future__ import annotations

import argparse
import glob
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import (
    ArgumentError,
    ArgumentParser,
    DefaultHelpFormatter,
    set_parsing_settings,
)

from datamodules.config import DataConfig, say_missing
from models.config import ModelConfig
from serve.errors import SchemaError

HOME = Path(__file__).parents[1]
DEFAULT_CONFIG = HOME / "configs" / "grocery.yaml"
TEMPLATE = HOME / "configs" / "template.yaml"
SAMPLE = HOME / "datamodules" / "sample"
DESCRIPTION = f"""Train, export, evaluate and publish a two-tower recommender.

python train.py                                    the bundled grocery sample, into runs/grocery
python train.py --config my.yaml                   your own tables; copy {TEMPLATE}
python train.py --config F --tune.trials 30        search for better values of `model`, by validation alone
python train.py --help                             every option; with --trainer behind it, Lightning's too
"""
SET_BY_RUN = {
    "plugins",
    "strategy",
    "fast_dev_run",
    "enable_checkpointing",
    "max_epochs",
}
"""Arguments of the Trainer that the run sets, or that take away what it needs."""
PYTHON_ONLY = {
    "logger",
    "callbacks",
    "profiler",
}  # arguments of the Trainer that only Python can give
MAX_SEED = 2**32 - 1
NOT_OF_TUNED = {"tune", "overwrite", "ckpt_path", "config", "warm_start"}
"""Keys that the configuration left by a search does not have."""


@dataclass(frozen=True)
class TuneConfig:
    """A search for a better recipe, in place of a run."""

    trials: int | None = None
    """Trainings to judge by validation, those of an interrupted search included. Default: a run, no search."""

    def __post_init__(self) -> None:
        if self.trials is not None and not (
            isinstance(self.trials, int) and self.trials >= 1
        ):
            raise SchemaError(
                f"tune.trials is {self.trials!r}; allowed: an integer from 1"
            )


@dataclass(frozen=True)
class EvaluationConfig:
    """How the test is evaluated."""

    baselines: list[str] | None = None
    """Baselines to fit and to compare with; []: none. Default: all. EASE takes minutes on a large catalogue."""


@dataclass(frozen=True)
class Config:
    """A whole run."""

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
    tune: TuneConfig = field(default_factory=TuneConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        if self.warm_start and (self.previous is None or self.tune.trials is not None):
            raise SchemaError(
                "warm_start belongs to a run with a `previous` bundle; give that one, or leave it out"
            )
        for name, kind in (
            ("data", DataConfig),
            ("model", ModelConfig),
            ("out", Path),
            ("seed", int),
        ):
            if not isinstance(getattr(self, name), kind):
                raise SchemaError(
                    f"{name} is {getattr(self, name)!r}; allowed: a {kind.__name__}"
                )
        if not 0 <= self.seed <= MAX_SEED:
            raise SchemaError(f"seed is {self.seed}; allowed: 0 to {MAX_SEED}")
        for name in sorted(SET_BY_RUN & self.trainer.keys()):
            raise SchemaError(
                f"trainer.{name} is set by the run; the length of a training is model.max_epochs"
            )
        if self.evaluation.baselines is not None:
            from evaluation.baselines import (
                choose_baselines,
            )  # of pandas and scipy: help needs neither

            try:
                choose_baselines(self.data.repeats, self.evaluation.baselines)
            except SchemaError as error:
                raise SchemaError(f"evaluation.baselines: {error}") from error


def make_parser(program: str = "train.py") -> ArgumentParser:
    """Make the parser of a run, but for `trainer`, which `add_trainer` or `mention_trainer` adds."""
    set_parsing_settings(
        docstring_parse_attribute_docstrings=True
    )  # `--help` explains each key
    parser = ArgumentParser(
        prog=program,
        description=DESCRIPTION,
        formatter_class=_HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", action="config", help="YAML file; what is given after it wins"
    )
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="default: runs/<name of the config file>",
    )
    parser.add_argument(
        "--previous",
        type=str | None,
        default=None,
        help="earlier bundle whose codes are kept",
    )
    parser.add_argument(
        "--warm_start",
        action="store_true",
        help="train on from the weights of --previous",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--ckpt_path",
        type=str | None,
        default=None,
        help="'last': resume the run in --out",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a finished run in --out"
    )
    parser.add_argument("--data", type=DataConfig, default=DataConfig())
    parser.add_argument("--model", type=ModelConfig, default=ModelConfig())
    parser.add_argument(
        "--evaluation", type=EvaluationConfig, default=EvaluationConfig()
    )
    parser.add_argument("--tune", type=TuneConfig, default=TuneConfig())
    return parser


def add_trainer(parser: ArgumentParser) -> None:
    """Let every argument of Lightning's Trainer be given; this imports torch, which takes seconds."""
    from pytorch_lightning import Trainer

    parser.add_class_arguments(
        Trainer, "trainer", skip=SET_BY_RUN | PYTHON_ONLY, instantiate=False
    )


def mention_trainer(parser: ArgumentParser) -> None:
    """Stand in for `add_trainer` where no argument of the Trainer is given."""
    about = "--trainer.NAME VALUE: any argument of Lightning's Trainer; `--help --trainer` lists them"
    parser.add_argument(
        "--trainer", type=dict | None, default={}, metavar="CONFIG", help=about
    )


def gives_trainer(words: Sequence[str]) -> bool:
    """Return whether a command line, or YAML that it names, has arguments of the Trainer."""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        name, _, value = word.partition("=")
        if name.split(".")[0] == "--trainer":
            return True
        if name == "--config":
            value = value or after
            with suppress(
                OSError, ValueError, yaml.YAMLError
            ):  # the parser says what is wrong with it
                content = yaml.safe_load(
                    Path(value).read_text(encoding="utf-8")
                    if os.path.exists(value)
                    else value
                )
                if isinstance(content, dict) and content.get("trainer"):
                    return True
    return False


def parse(argv: Sequence[str], program: str = "train.py") -> tuple[Config, str]:
    """Parse the command line into a configuration and its YAML for `config.yaml`."""
    parser = make_parser(program)
    is_sample = not any(word.split("=")[0] == "--config" for word in argv)
    words = [*(sample_words() if is_sample else ()), *argv]
    (add_trainer if gives_trainer(words) else mention_trainer)(parser)
    try:
        given = parser.parse_args(words)
        made = parser.instantiate(given)
    except (ArgumentError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise SchemaError(" ".join(str(error).split())) from error
    if given.ckpt_path not in (None, "last"):
        raise SchemaError(f"--ckpt_path is '{given.ckpt_path}'; allowed: last")
    if given.ckpt_path is not None and made.tune.trials is not None:
        raise SchemaError(
            "--ckpt_path belongs to a run; a search resumes by itself: leave it out"
        )
    defaults = parser.get_defaults().trainer or {}
    named = [
        str(path) for path in given.config if path is not None
    ]  # None: YAML in place of a file
    check_paths(made.data, given.previous)
    config = Config(
        data=made.data,
        model=made.model,
        trainer={
            name: value
            for name, value in (given.trainer or {}).items()
            if value != defaults[name]
        },
        out=Path(given.out or f"runs/{Path(named[-1]).stem if named else 'run'}"),
        seed=made.seed,
        resume=given.ckpt_path == "last",
        overwrite=made.overwrite,
        previous=None if given.previous is None else Path(given.previous),
        warm_start=made.warm_start,
        tune=made.tune,
        evaluation=made.evaluation,
    )
    return config, parser.dump(given)


def sample_words() -> list[str]:
    """Return the words that stand for the bundled sample, which is found from any working directory."""
    tables = ("interactions", "users", "items")
    return [
        f"--config={DEFAULT_CONFIG}",
        *(f"--data.{name}.path={SAMPLE / name}.parquet" for name in tables),
    ]


def check_paths(data: DataConfig, previous: str | None) -> None:
    """Name a path that leads nowhere before anything slow is imported; patterns and addresses are read later."""
    paths = {
        f"data.{name}.path": getattr(table, "path", None)
        for name, table in vars(data).items()
    }
    paths |= {
        "data.split.validation": data.split.validation,
        "data.split.test": data.split.test,
    }
    paths["data.feedback"] = data.feedback
    for setting, path in {**paths, "--previous": previous}.items():
        if (
            path
            and not os.path.exists(path)
            and not glob.has_magic(path)
            and "://" not in path
        ):
            raise SchemaError(say_missing(path, setting))


def complete_text(text: str, config: Config) -> str:
    """Return the YAML of a configuration with the values of `model` that the data decided."""
    content = yaml.safe_load(text)
    content["model"] = asdict(config.model)
    return str(yaml.safe_dump(content, sort_keys=False))


def tuned_text(text: str, out: Path, model: Mapping[str, Any]) -> str:
    """Return the YAML of a configuration with other values of `model`, without what is left at its default."""
    parser = make_parser()
    add_trainer(parser)
    content = (
        yaml.safe_load(parser.dump(parser.parse_string(text), skip_default=True)) or {}
    )
    kept = {name: value for name, value in content.items() if name not in NOT_OF_TUNED}
    return str(
        yaml.safe_dump(
            {**kept, "out": str(out), "model": {**kept.get("model", {}), **model}},
            sort_keys=False,
        )
    )


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keep the lines of the description."""
