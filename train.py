"""Train, export, evaluate and publish a two-tower recommender; the run is `pipeline/run.py`.

Options are read before torch is imported, so that help and a mistake answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline.config import parse
from serve.errors import BundleError, SchemaError, say
from service.command_line import ENDED, FAULT, ending_on_signals


def main(argv: Sequence[str], program: str = "train.py") -> int:
    """Run the command and return its exit status."""
    try:
        with ending_on_signals():
            words = [word for word in argv if word != "--check"]
            config, text = parse(words, program)
            from pipeline.run import check, run_command

            if len(words) < len(argv):
                check(config)
                return 0
            run_command(config, text)
    except (SchemaError, BundleError, OSError) as error:
        print(f"{program}: {say(error)}", file=sys.stderr)
        return FAULT
    except SystemExit as end:
        if end.code in ENDED:
            print(
                f"{program}: stopped by a signal: nothing is published; --ckpt_path last resumes",
                file=sys.stderr,
            )
        raise

    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
