"""Colours that survive colour blindness and grey printing: categories, and maps of even lightness steps in OKLab."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headwork.draw.checks import Array

INK, MUTED, FAINT, PAPER = "#1a1a1a", "#666666", "#d9d9d9", "#ffffff"
# Okabe & Ito (2008), in the order that keeps the first few furthest apart; yellow is left out: it is lost on paper.
CATEGORIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
POSITIVE, NEGATIVE, MARK = CATEGORIES[0], CATEGORIES[1], "#D55E00"

# Anchors in OKLCh (lightness, chroma, hue in degrees); lightness falls evenly between them.
_WHITE_TO_BLUE = ((0.99, 0.005, 230.0), (0.64, 0.135, 245.0), (0.29, 0.09, 262.0))
_WHITE_TO_RED = ((0.99, 0.005, 60.0), (0.68, 0.165, 47.0), (0.37, 0.115, 38.0))
_NIGHT_TO_SKY = ((0.26, 0.015, 255.0), (0.58, 0.12, 245.0), (0.92, 0.06, 215.0))


def _srgb(lch: Array) -> Array:
    """OKLCh [..., 3] to sRGB in 0–1, clipped to the gamut (Ottosson 2020)."""
    lightness, chroma, hue = lch[..., 0], lch[..., 1], np.deg2rad(lch[..., 2])
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    cone = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ],
        axis=-1,
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(cone**3 @ to_linear.T, 0.0, 1.0)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _ramp(anchors: Sequence[tuple[float, float, float]], steps: int) -> Array:
    places = np.linspace(0.0, 1.0, len(anchors))
    at = np.linspace(0.0, 1.0, steps)
    table = np.asarray(anchors)
    return _srgb(np.stack([np.interp(at, places, table[:, i]) for i in range(3)], axis=-1))


def sequential(steps: int = 256) -> Array:
    """sRGB [step, 3] in 0–1 from near white (least) to dark blue (most)."""
    return _ramp(_WHITE_TO_BLUE, steps)


def sequential_dark(steps: int = 256) -> Array:
    """sRGB [step, 3] in 0–1 from near black (least) to pale blue (most), for dark pages."""
    return _ramp(_NIGHT_TO_SKY, steps)


def diverging(steps: int = 257) -> Array:
    """sRGB [step, 3] in 0–1 from dark red (negative) over near white (the centre) to dark blue (positive)."""
    half = (steps + 1) // 2
    return np.concatenate([_ramp(_WHITE_TO_RED, half)[::-1], _ramp(_WHITE_TO_BLUE, half)[1:]])


def readable_on(rgb: Array) -> str:
    """Ink or paper, whichever has more contrast on this background (WCAG relative luminance)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return INK if float(linear @ np.array([0.2126, 0.7152, 0.0722])) > 0.2 else PAPER
