"""Print the lowest versions that pyproject.toml admits of what Bascule needs, as constraints of pip."""

import re
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[1]
_NEEDED = re.compile(r"(?P<name>[\w.-]+)(\[.*\])?>=(?P<version>[\d.]+)")

if __name__ == "__main__":
    files = (
        path.read_text(encoding="utf-8").splitlines()
        for path in sorted((ROOT / "requirements").glob("*.txt"))
    )
    for requirement in chain(*files):
        found = _NEEDED.match(requirement)
        if found:  # but for comments
            version = found["version"] if "." in found["version"] else f"{found['version']}.0"
            print(f"{found['name']}=={version}.*")
