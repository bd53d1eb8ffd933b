"""The walk-through runs as it stands, from any folder, and shows outputs of these cells."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.service.pages import check_printed

BUILD = Path(__file__).parents[2] / "notebooks" / "build.py"
NOTEBOOK = BUILD.with_name("walkthrough.ipynb")


def list_outputs(notebook):
    """Return the source of each code cell with its outputs, by kind."""
    listed = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            outputs = {}
            for output in cell["outputs"]:
                outputs |= output.get("data") or {"stdout": output["text"]}
            listed["".join(cell["source"])] = outputs
    return listed


def read_table(outputs):
    """Return the rows of a table of HTML as dictionaries."""
    page = "".join(outputs["text/html"])
    rows = [
        re.findall(r"<t[hd]>(.*?)</t[hd]>", row)
        for row in re.findall(r"(?s)<tr[^>]*>(.*?)</tr>", page)
    ]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def test_the_walk_through_runs_and_its_outputs_are_those_of_its_cells(tmp_path):
    target = tmp_path / "executed.ipynb"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(BUILD), str(target)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [target.name]

    stored = list_outputs(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    fresh = list_outputs(json.loads(target.read_text(encoding="utf-8")))
    assert len(fresh) > 12
    for source, outputs in fresh.items():
        assert {*outputs} == {*stored[source]}, f"make notebook: {source}"
        for kind in outputs.keys() - {"image/png"}:
            check_printed("".join(outputs[kind]), "".join(stored[source][kind]))

    def table_of(call):
        (source,) = [source for source in fresh if source.endswith(call)]
        return read_table(fresh[source])

    listed = table_of("recommender.recommend(household, k=5)")
    assert len(listed) == 5
    assert {row["name"] for row in listed} >= {
        row["name"] for row in table_of("explain(household, k=5)")
    }
    unlike = table_of("diversity=0.5)")
    assert not {row["item_id"] for row in unlike} & {row["item_id"] for row in listed}
    filtered = [row["name"].split(" · ")[0] for row in table_of("filters=filters)")]
    assert len(filtered) == len({*filtered}) == 5
    newcomers = table_of("recommender.recommend([newcomer, [*basket, 123]], k=4)")
    assert [row["request"] for row in newcomers] == ["0"] * 4 + ["1"] * 4
    (purchase,) = [source for source in fresh if "taken = " in source]
    taken = "".join(fresh[purchase]["stdout"]).removeprefix("They take ").strip()
    lists = re.findall(r"<td>(.*?)</td>\s*<td>(.*?)</td>", "".join(fresh[purchase]["text/html"]))
    before, after = zip(*lists, strict=True)
    assert taken == before[0]
    assert taken not in after
    assert {*after} - {*before}
    assert sum("SOFT DRINKS" in row["name"] for row in table_of("similar_items(launch, k=5)")) > 2
    (picture,) = [outputs["image/png"] for outputs in fresh.values() if "image/png" in outputs]
    assert len(picture) > 10_000
    assert [*fresh.values()][-1]["text/plain"] == ["True"]
