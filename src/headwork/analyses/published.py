"""Publishing an analysis: pictures as SVG and PNG, the dataset, and the summary that names them, last."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typst

from headwork.draw.picture import Picture
from headwork.store.atomic import plain_errors
from headwork.store.publish import publish

if TYPE_CHECKING:
    import xarray

RESULTS, SUMMARY = "results.h5", "summary.json"
_PPI = 220.0
_PAGE = '#set page(width: auto, height: auto, margin: 0pt, fill: white)\n#image("picture.svg")\n'


@dataclass(frozen=True)
class Published:
    """A finished analysis: its summary, and its files by name in `folder`."""

    folder: Path
    summary: Mapping[str, Any]
    files: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The summary with absolute paths, for JSON."""
        return {**self.summary, "files": {name: str(self.folder / name) for name in self.files}}


def publish_analysis(
    out: Path, datasets: Mapping[str, xarray.Dataset], pictures: Mapping[str, Picture], summary: Mapping[str, Any]
) -> Published:
    """Write everything into `out`: each picture twice, the datasets as groups of one file, the summary last.

    Raises `UserError` where nothing can be written; then nothing is half-written.
    """
    import xarray

    with tempfile.TemporaryDirectory(prefix="headwork-") as name:
        staging = Path(name)
        with plain_errors(staging):
            for stem, picture in pictures.items():
                picture.save(staging / f"{stem}.svg")
                (staging / f"{stem}.png").write_bytes(png(picture))
            tree = xarray.DataTree.from_dict(dict(datasets))
            # Made in memory: the HDF5 library reports a full disk by a traceback of its own.
            (staging / RESULTS).write_bytes(tree.to_netcdf(engine="h5netcdf"))
            files = [*(f"{stem}.{kind}" for stem in pictures for kind in ("svg", "png")), RESULTS, SUMMARY]
            text = json.dumps({**summary, "files": files}, indent=1, ensure_ascii=False, allow_nan=False)
            (staging / SUMMARY).write_text(text + "\n", encoding="utf-8")
        publish({file: staging / file for file in files}, out, last=SUMMARY)
    return Published(out, summary, tuple(files))


def png(picture: Picture) -> bytes:
    """The picture as a PNG, 220 pixels an inch."""
    with tempfile.TemporaryDirectory(prefix="headwork-") as name:
        page = Path(name) / "page.typ"
        (Path(name) / "picture.svg").write_text(picture.svg, encoding="utf-8")
        page.write_text(_PAGE, encoding="utf-8")
        found = typst.compile(page, root=Path(name), ignore_system_fonts=True, format="png", ppi=_PPI)
    assert isinstance(found, bytes)  # noqa: S101 – several only where there are several pages
    return found
