"""What holds for every picture: same bytes, alt text, no markup from data, no trace in matplotlib's settings."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib
import pytest
from tests.draw.examples import every_picture

from headwork import draw
from headwork.errors import UserError


@pytest.fixture(scope="module")
def pictures() -> dict[str, draw.Picture]:
    """Each kind of picture with plain words."""
    return every_picture("What it shows.")


SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '--> </svg><script>alert("1")</script> $x_1$ & \x00\x1b \u202e'


def test_importing_the_package_imports_no_matplotlib() -> None:
    code = "import sys, headwork.draw; print('matplotlib' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_drawing_imports_neither_torch_nor_pyplot() -> None:
    code = (
        "import sys; from headwork import draw; draw.heatmap([[1.0]], rows=['a'], columns=['b'], alt='x');"
        "print('torch' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_every_public_name_is_there_and_none_is_hidden_by_a_module() -> None:
    for name in draw.__all__:
        assert callable(getattr(draw, name))


def test_the_same_data_gives_the_same_bytes(pictures: dict[str, draw.Picture]) -> None:
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        again = every_picture("What it shows.")
    assert {name: p.svg for name, p in again.items()} == {name: p.svg for name, p in pictures.items()}


def test_drawing_leaves_the_users_settings_alone() -> None:
    before = dict(matplotlib.rcParams)
    every_picture("x")
    assert dict(matplotlib.rcParams) == before


def test_the_alt_text_is_the_name_of_the_picture(pictures: dict[str, draw.Picture]) -> None:
    for name, picture in pictures.items():
        root = ET.fromstring(picture.svg)  # noqa: S314
        description = root.find(f"{SVG}desc")
        assert root.get("role") == "img", name
        assert root.get("aria-label") == "What it shows.", name
        assert description is not None
        assert description.text == "What it shows."
        assert picture.alt == "What it shows."


def test_empty_alt_text_is_refused() -> None:
    with pytest.raises(UserError, match="needs alt text"):
        draw.heatmap([[1.0]], rows=["a"], columns=["b"], alt="  ")
    with pytest.raises(UserError, match="needs alt text"):
        draw.attention_view([[[1.0]]], tokens=["a"], heads=["0.0"], alt="")


def test_text_from_outside_never_becomes_markup() -> None:
    for name, picture in every_picture(HOSTILE, HOSTILE).items():
        root = ET.fromstring(picture.svg)  # noqa: S314
        tags = {node.tag for node in root.iter()}
        assert f"{SVG}script" not in tags, name
        assert "<script" not in picture.svg, name
        assert "--> </svg>" not in picture.svg, name


def test_ids_are_used_and_not_shared_between_pictures(pictures: dict[str, draw.Picture]) -> None:
    seen: set[str] = set()
    for picture in pictures.values():
        ids = [value for node in ET.fromstring(picture.svg).iter() if (value := node.get("id"))]  # noqa: S314
        assert len(ids) == len(set(ids))
        assert not seen & set(ids)
        assert all(f"#{name}" in picture.svg for name in ids)
        seen |= set(ids)


def test_pictures_are_modest_in_size_and_ask_for_nothing(pictures: dict[str, draw.Picture]) -> None:
    for picture in pictures.values():
        rest = picture.svg.replace("http://www.w3.org/2000/svg", "").replace("http://www.w3.org/1999/xlink", "")
        assert "http" not in rest
        assert len(picture.svg) < 150_000


def test_saving_writes_whole_files_or_says_why_not(tmp_path: Path, pictures: dict[str, draw.Picture]) -> None:
    path = pictures["heatmap"].save(tmp_path / "map.svg")
    ET.parse(path)  # noqa: S314
    assert [p.name for p in tmp_path.iterdir()] == ["map.svg"]
    with pytest.raises(UserError, match=r"Cannot write the picture to .*No such file"):
        pictures["heatmap"].save(tmp_path / "missing" / "map.svg")


def test_a_picture_too_small_for_its_text_is_refused() -> None:
    with pytest.raises(UserError, match="leaves no room"):
        draw.heatmap([[1.0]], rows=["a long row name " * 4], columns=["b"], width_cm=2, height_cm=2, alt="x")
    with pytest.raises(UserError, match="1 to 100 cm"):
        draw.heatmap([[1.0]], rows=["a"], columns=["b"], width_cm=0.1, alt="x")
