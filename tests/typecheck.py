"""The type checker that watches the package while its tests run."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

# An int where a float is asked for is fine, as it is to pyright.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
