"""Print the lowest versions that pyproject.toml admits of what Bascule needs, as constraints of pip."""

import re
import tomllib
from itertools import chain
from pathlib import Path

_NEEDED = re.compile(r"(?P<name>[\w.-]+)(\[.*\])?>=(?P<version>[\d.]+)")

if __name__ == "__main__":
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = (project["optional-dependencies"][extra] for extra in ("http", "train", "tune"))
    for requirement in chain(project["dependencies"], *extras):
        found = _NEEDED.match(requirement)
        if found:  # but for our own extras
            version = found["version"] if "." in found["version"] else f"{found['version']}.0"
            print(f"{found['name']}=={version}.*")
