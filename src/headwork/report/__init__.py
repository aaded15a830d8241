"""The report of a reproduction: the same pages as PDF (Typst) and as one self-contained HTML file."""
