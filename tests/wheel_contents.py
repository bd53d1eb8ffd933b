"""What `make wheel` built; not collected by default."""

from pathlib import Path
from zipfile import ZipFile

REQUIRED = {
    "datamodules/sample/interactions.parquet",
    "datamodules/sample/README.md",
    "evaluation/templates/report.html",
    "evaluation/templates/report.css",
    "evaluation/templates/MODEL_CARD.md",
}
PACKAGES = {"datamodules", "evaluation", "models", "pipeline", "serve"}


def test_the_wheel_holds_our_packages_and_the_sample_and_nothing_else():
    (wheel,) = Path("build/wheel").glob("bascule-*.whl")
    names = ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES
    assert set(names) >= REQUIRED
