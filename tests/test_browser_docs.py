"""Can the docs site be read as it lies on a disk, at any width, light and dark, and searched without a network?"""

import re

import pytest
from browsing import CHROMIUM, PATIENCE, WIDTHS
from docs_site import WITH_MKDOCS

pytestmark = [
    pytest.mark.slow,
    WITH_MKDOCS,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to drive; on Debian: apt install chromium"),
]
PAGES = (
    "index.html",
    "tutorial/index.html",
    "explanation/scores/repetition.html",
    "reference/cli.html",
    "reference/probes.html",
    "reference/python/scores.html",
)


@pytest.fixture
def opened(chromium, site):
    """Open pages of the site as files, in a browser that must not complain and has nobody to ask; gives a function of address, width and scheme."""
    contexts, wrong = [], []

    def asked(request):
        if not re.match(r"(data|blob|file|about):", request.url):
            wrong.append(request.url)

    def open_page(address, width=1000, scheme="light"):
        context = chromium.new_context(viewport={"width": width, "height": 1100}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", asked)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"{site.as_uri()}/{address}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def test_search_finds_a_probe_without_server_and_network(opened):
    page = opened("index.html")
    page.get_by_role("textbox", name="Search").fill("razor_echo")
    first = page.locator(".md-search-result__item a").first
    first.wait_for()
    assert page.locator(".md-search-result__item").count() > 1
    page.locator(".md-search-result__item a[href*='repetition.html']").first.click()
    page.wait_for_url(re.compile(r"explanation/scores/repetition\.html"))
    assert page.locator("#probe-razor_echo").is_visible()


def test_a_link_of_the_reference_leads_to_the_explanation(opened):
    page = opened("reference/probes.html")
    page.locator("td a", has_text=re.compile("^induction$")).click()
    page.wait_for_url(re.compile(r"explanation/scores/repetition\.html#probe-induction$"))
    assert page.locator("#probe-induction").is_visible()
    assert page.locator("figure.ideal svg").first.bounding_box()["width"] == 22 * 7


def test_the_button_turns_the_page_dark(opened):
    page = opened("index.html", scheme="light")
    light = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    for _ in range(2):  # from what the system says, to light, to dark
        page.locator("form[data-md-component=palette] label:not([hidden])").click()
    assert page.evaluate("() => document.body.dataset.mdColorScheme") == "slate"
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") != light


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_pages_fit_and_are_kept_as_pictures(opened, pictures, width, scheme):
    for address in PAGES:
        page = opened(address, width, scheme)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        assert page.evaluate("() => document.body.dataset.mdColorScheme") == {"light": "default", "dark": "slate"}[scheme]
        page.screenshot(path=pictures / f"docs_{address.removesuffix('.html').replace('/', '_')}_{width}_{scheme}.png")
        page.context.close()
