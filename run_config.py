"""What a run is told: one object for Python, the command line for everybody else."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from datamodules.config import DataConfig
from datamodules.config_errors import parse_config
from datamodules.config_files import check_config_files
from evaluation.tuning import choose_baselines
from models.config import ModelConfig
from serve.declared_types import take_declared_types
from serve.errors import SchemaError, passes

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "grocery.yaml"
DESCRIPTION = """Train, export, evaluate and publish a two-tower recommender.

python train.py                                    the bundled grocery sample, into runs/grocery
python train.py --config configs/template.yaml     your own tables
python train.py --config F --tune.trials 30        search for better values of `model`, by validation alone
python train.py --help                             every option
"""
SAMPLE_NOTE = f"# the bundled sample's config, configs/{DEFAULT_CONFIG.name}: what runs where no --config is given"
OF_THE_RUN = {"plugins", "strategy", "fast_dev_run", "enable_checkpointing", "max_epochs"}
"""Arguments of the Trainer that are set here or in `model`, or that take away what a run needs."""
OBJECTS = {"logger", "callbacks", "profiler"}
"""Arguments of the Trainer that only Python can give."""

LARGEST_SEED = 2**32 - 1
"""That every generator takes: those of numpy's older interface, which Lightning seeds too, take no larger one."""

OF_A_SEARCH = {"tune", "overwrite", "ckpt_path"}
"""Keys that the configuration which a search leaves does not have."""


@dataclass(frozen=True)
class TuneConfig:
    """A search for a better recipe, in place of a run."""

    trials: int | None = None
    """Trainings to judge by validation, those of an interrupted search included. Default: a run, no search."""

    def __post_init__(self) -> None:
        take_declared_types(self, "tune")
        if self.trials is not None and not passes(self.trials, lambda trials: trials >= 1):
            raise SchemaError(f"tune.trials is {self.trials}; allowed: 1 or more")


@dataclass(frozen=True)
class EvaluationConfig:
    """What the test is used for, beside the bundle."""

    baselines: list[str] | None = None
    """Baselines to fit and to compare with; []: none. Default: all. EASE takes minutes on a large catalogue."""

    def __post_init__(self) -> None:
        take_declared_types(self, "evaluation")


@dataclass(frozen=True)
class Config:
    """A whole run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `pytorch_lightning.Trainer` that are not its defaults."""
    out: Path = Path("runs/run")
    """Folder of the run's outputs."""
    seed: int = 0
    resume: bool = False
    """Go on from the last checkpoint in `out`."""
    overwrite: bool = False
    """Replace what a finished run left in `out`."""
    previous: Path | None = None
    """Bundle of an earlier run whose codes stay what they were; new values of features come after them."""
    tune: TuneConfig = field(default_factory=TuneConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        take_declared_types(self, "")
        if not passes(self.seed, lambda seed: 0 <= seed <= LARGEST_SEED):
            raise SchemaError(f"seed is {self.seed}; allowed: 0 to {LARGEST_SEED}")
        given = sorted(OF_THE_RUN & self.trainer.keys())
        if given:
            raise SchemaError(
                f"trainer.{given[0]} is set by the run; allowed: other arguments of the Trainer. How long a training "
                "lasts is model.max_epochs"
            )
        try:
            choose_baselines(self.data.repeats, self.evaluation.baselines)
        except SchemaError as error:
            raise SchemaError(f"evaluation.baselines: {error}") from error


def complete_text(text: str, config: Config) -> str:
    """Return the YAML of a configuration with what the data decided since: whoever runs it again gets the same."""
    content = yaml.safe_load(text)
    content["model"] = asdict(config.model)
    return str(yaml.safe_dump(content, sort_keys=False))


def tuned_text(text: str, out: Path, model: Mapping[str, Any]) -> str:
    """Return the YAML of a configuration with other values of the model, without what is left at its default."""
    parser = make_parser()
    content = yaml.safe_load(parser.dump(parser.parse_string(text), skip_default=True)) or {}
    kept = {name: value for name, value in content.items() if name not in OF_A_SEARCH}
    return str(yaml.safe_dump({**kept, "out": str(out), "model": {**kept.get("model", {}), **model}}, sort_keys=False))


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Leave the lines of the description as they are."""


def make_parser() -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # or `--help` names keys without a word on them
    parser = ArgumentParser(
        prog="train.py",
        description=DESCRIPTION,
        formatter_class=_HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file; what is given after it wins")
    parser.add_argument("--out", type=str | None, default=None, help="default: runs/<name of the config file>")
    parser.add_argument("--previous", type=str | None, default=None, help="earlier bundle whose codes are kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ckpt_path", type=str | None, default=None, help="'last': go on where --out stopped")
    parser.add_argument("--overwrite", action="store_true", help="replace a finished run in --out")
    parser.add_argument("--data", type=DataConfig, default=DataConfig())
    parser.add_argument("--model", type=ModelConfig, default=ModelConfig())
    parser.add_argument("--evaluation", type=EvaluationConfig, default=EvaluationConfig())
    parser.add_argument("--tune", type=TuneConfig, default=TuneConfig())
    parser.add_class_arguments(pl.Trainer, "trainer", skip=OF_THE_RUN | OBJECTS, instantiate=False)
    return parser


def parse(argv: Sequence[str]) -> tuple[Config, str]:
    """Parse the command line.

    Returns:
        The configuration, and its YAML for `config.yaml`.
    """
    parser = make_parser()
    check_config_files(argv)
    is_sample = not any(word.split("=")[0] == "--config" for word in argv)
    prints = any(word.split("=")[0] == "--print_config" for word in argv)
    with _headed(SAMPLE_NOTE) if is_sample and prints else nullcontext():
        words = [f"--config={DEFAULT_CONFIG}", *argv] if is_sample else argv
        given, made = parse_config(parser, words, ("data", "model", "trainer", "tune", "evaluation"))
    if given.ckpt_path not in (None, "last"):
        raise SchemaError(f"--ckpt_path is '{given.ckpt_path}'; allowed: last")
    if given.ckpt_path is not None and made.tune.trials is not None:
        raise SchemaError("--ckpt_path belongs to a run; a search goes on where it stopped by itself: leave it out")
    defaults = parser.get_defaults().trainer
    trainer = {name: value for name, value in given.trainer.items() if value != defaults[name]}
    named = [str(path) for path in given.config if path is not None]  # None: YAML in place of a file
    out = Path(given.out or f"runs/{Path(named[-1]).stem if named else 'run'}")
    previous = None if given.previous is None else Path(given.previous)
    resume = given.ckpt_path == "last"
    config = Config(
        made.data, made.model, trainer, out, made.seed, resume, made.overwrite, previous, made.tune, made.evaluation
    )
    return config, parser.dump(given)


@contextmanager
def _headed(line: str) -> Iterator[None]:
    """Put a line above what is printed where printing it ends the process."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            yield
    except SystemExit:
        sys.stdout.write(f"{line}\n{printed.getvalue()}")
        raise
