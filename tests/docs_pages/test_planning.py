"""The page of plans, which is generated."""

from __future__ import annotations

from docs_pages import planning
from docs_pages.planning import CASES, PAGE, main, render_page


def test_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == render_page(), (
        "write it with: python -m docs_pages.planning"
    )


def test_page_shows_every_repository_and_says_what_is_unverified():
    page = render_page()
    for repo, _, devices in CASES:
        assert f"### {repo}" in page
        for device in devices:
            assert f"| {device} | 16 |" in page
    assert "**unverified**" in page


def test_check_tells_a_stale_page(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(planning, "PAGE", tmp_path / "planning.md")
    assert main(["--check"]) == 1
    assert "not up to date" in capsys.readouterr().err
    assert main([]) == 0
    assert main(["--check"]) == 0
    assert main(["--nonsense"]) == 2
