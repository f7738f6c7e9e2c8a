"""The page of settings, which is generated."""

from __future__ import annotations

from docs_pages import configuration
from docs_pages.configuration import PAGE, main, render_page
from service.settings import Settings


def test_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == render_page(), (
        "write it with: python -m docs_pages.configuration"
    )


def test_page_has_every_setting():
    page = render_page()
    for name in Settings.model_fields:
        assert f"| `{name}` |" in page


def test_check_tells_a_stale_page(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(configuration, "PAGE", tmp_path / "configuration.md")
    assert main(["--check"]) == 1
    assert "not up to date" in capsys.readouterr().err
    assert main([]) == 0
    assert main(["--check"]) == 0
    assert main(["--nonsense"]) == 2
