"""Induction heads (Elhage et al. 2021; Olsson et al. 2022)."""
