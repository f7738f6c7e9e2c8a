"""Writes the pages under docs/ that follow from the code; not part of what is installed.

python -m docs_pages.configuration    writes docs/configuration.md from the settings
python -m docs_pages.planning         writes docs/planning.md from the published repositories
"""
