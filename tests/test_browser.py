"""The tests' browser notices what a reader would not see: errors in the console, and requests to other servers."""

import pytest

from tests.browser import needs_chromium, open_page, save_screenshot

pytestmark = needs_chromium


@pytest.fixture
def write_page(tmp_path):
    """A function that writes a page with this body and returns its address."""

    def write(body: str) -> str:
        path = tmp_path / "page.html"
        path.write_text(f"<!doctype html><meta charset=utf-8><title>页</title>{body}", encoding="utf-8")
        return path.as_uri()

    return write


def test_a_faultless_page_has_its_preferences_and_leaves_a_screenshot(write_page):
    text = "<p style='height:3000px'>long</p>"
    with open_page(write_page(text), width=400, dark=True) as page:
        assert page.evaluate("[innerWidth, matchMedia('(prefers-color-scheme: dark)').matches]") == [400, True]
        assert save_screenshot(page, "browser").read_bytes()[:4] == b"\x89PNG"


def test_errors_and_requests_to_other_servers_fail(write_page):
    scripts = "<script>console.error('broken plot')</script><script>undefinedFunction()</script>"
    with (
        pytest.raises(AssertionError) as error,
        open_page(write_page(scripts + "<img src='http://127.0.0.1:9/logo.png'>")) as page,
    ):
        page.wait_for_load_state("networkidle")
    for problem in ("broken plot", "undefinedFunction is not defined", "request http://127.0.0.1:9/logo.png"):
        assert problem in str(error.value)
