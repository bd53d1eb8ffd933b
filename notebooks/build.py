"""Run the walk-through from top to bottom and write its outputs into it: `make notebook`.

`python notebooks/build.py FILE` writes another file. The cells run in a temporary folder.
"""

import ast
import base64
import contextlib
import io
import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["MPLBACKEND"] = "Agg"  # pictures go into the notebook, and no window opens
import matplotlib.pyplot as plt

NOTEBOOK = Path(__file__).with_name("walkthrough.ipynb")


def run_all(notebook: dict) -> None:
    """Run the cells in one namespace, and put their outputs in place of the old ones."""
    names: dict = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, start=1):
        cell["execution_count"] = number
        cell["outputs"] = run_cell("".join(cell["source"]), names, number)


def run_cell(source: str, names: dict, number: int) -> list[dict]:
    """Run a cell as Jupyter does, and return what it prints, its pictures and its last value."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    value = None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), "cell", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)

    outputs: list[dict] = []
    if printed.getvalue():
        text = split(printed.getvalue())
        outputs.append({"name": "stdout", "output_type": "stream", "text": text})
    for picture in map(plt.figure, plt.get_fignums()):
        outputs.append(show(picture))
    plt.close("all")

    if value is not None:
        data = {"text/plain": split(repr(value))}
        if hasattr(value, "_repr_html_"):
            data["text/html"] = split(value._repr_html_())
        result = {"data": data, "metadata": {}, "output_type": "execute_result"}
        outputs.append(result | {"execution_count": number})

    return outputs


def show(picture) -> dict:
    content = io.BytesIO()
    picture.savefig(content, dpi=80, metadata={"Software": None})
    data = {"image/png": base64.b64encode(content.getvalue()).decode()}
    return {"data": data, "metadata": {}, "output_type": "display_data"}


def split(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main() -> None:
    target = Path(sys.argv[1] if sys.argv[1:] else NOTEBOOK).absolute()
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    with TemporaryDirectory() as folder, contextlib.chdir(folder):
        run_all(notebook)
    text = json.dumps(notebook, indent=1, ensure_ascii=False)
    target.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
