"""The site, as mkdocs builds it: strict, in two languages, and without requests to other servers."""

import functools
import http.server
import importlib.util
import re
import subprocess
import sys
import threading

import pytest

from tests.browser import needs_chromium, open_page, save_screenshot
from tests.common import REPOSITORY

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="no mkdocs: pip install -e .[docs]")
CHAPTERS = ("index", "imagenette", "photos", "pictures")  # in both languages


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site strictly; return its folder."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return folder


@pytest.fixture(scope="module")
def address(site):
    """Serve the site on a free port of this machine; return its address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Print nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def read_page(name: str) -> str:
    return (REPOSITORY / f"docs/{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_both_languages_of_a_chapter_have_the_same_commands_and_figures(site, chapter):
    english, chinese = (read_page(name) for name in (chapter, f"{chapter}.zh"))
    assert (site / f"zh/{chapter}.html").read_text(encoding="utf-8").count("<h2") == english.count("\n## ")
    commands = [
        [
            line.partition("  #")[0].strip()
            for line in re.findall(r"^ +(?:\$ )?(?:python|bash|py) .*", text, re.MULTILINE)
        ]
        for text in (english, chinese)
    ]
    assert len(commands[0]) > 2
    assert [line.replace(" --lang zh", "") for line in commands[1]] == [
        line.replace(" --lang zh", "") for line in commands[0]
    ]
    assert sorted(re.findall(r"\d+\.\d\d\b", chinese)) == sorted(re.findall(r"\d+\.\d\d\b", english))


@needs_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_start_page_has_the_colours_that_the_reader_prefers(address, dark):
    with open_page(f"{address}/index.html", dark=dark) as page:
        save_screenshot(page, f"site_{'dark' if dark else 'light'}")
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == dark


@needs_chromium
def test_each_page_fits_a_phone_and_asks_no_other_server(site, address):
    with open_page(f"{address}/index.html", width=400) as page:
        pages = [path.relative_to(site).as_posix().removesuffix(".html") for path in sorted(site.rglob("*.html"))]
        pages = [name for name in pages if name != "404" and (not name.startswith("zh/") or name[3:] in CHAPTERS)]
        assert {f"{folder}{name}" for name in CHAPTERS for folder in ("", "zh/")} < set(pages)
        for name in pages:
            page.goto(f"{address}/{name}.html")
            assert page.evaluate("document.documentElement.scrollWidth") <= 400, name
            assert page.locator("article h1").count() == 1, name
            if name in ("index", "zh/imagenette"):
                save_screenshot(page, f"site_narrow_{name.replace('/', '_')}")


@needs_chromium
@pytest.mark.parametrize(
    ("start", "words", "found"),
    [
        ("index", "unknown config key", "troubleshooting"),
        ("index", "rn50_4shots_ctx4", "imagenette"),
        ("zh/index", "龘靐", None),
        ("zh/index", "随机裁剪", "zh/imagenette"),
    ],
)
def test_search_finds_a_message_and_a_chinese_word(address, start, words, found):
    with open_page(f"{address}/{start}.html") as page:
        page.locator("input.md-search__input").click()
        page.keyboard.type(words)
        if found is None:
            page.locator(".md-search-result__meta").filter(has_not_text=re.compile("初始化|正在")).wait_for(
                timeout=20_000
            )
            assert page.locator(".md-search-result__item").count() == 0
            return
        item = page.locator(".md-search-result__item").filter(
            has=page.locator(f".md-search-result__link[href*='{address}/{found}.html']")
        )
        item.wait_for(timeout=20_000)
        assert words.split()[0].lower() in item.text_content().lower()


@needs_chromium
def test_the_language_can_be_changed_on_each_page(address):
    with open_page(f"{address}/photos.html") as page:
        page.locator("button[aria-label='Select language']").hover()
        page.locator(".md-select__link[hreflang=zh]").click()
        page.wait_for_url("**/zh/photos.html*")
        assert page.locator("h1").inner_text().startswith("自己的照片")
