"""The web page in headless Chromium, by clicking and typing. Needs the extra `app`, playwright and a `chromium` on the
path; UNIWETOK_SCREENSHOTS names a folder in which to leave pictures of the page."""

import os
import shutil
from pathlib import Path

import pytest
from gradio_leftovers import collected  # noqa: F401


pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),  # gradio's sockets and event loops
]
gradio = pytest.importorskip("gradio", reason="needs the extra `app`")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("needs a chromium on the path", allow_module_level=True)

PICTURES = Path(__file__).parent.parent / "src" / "uniwetok_hf" / "embedded" / "pictures"
WAIT = 60_000  # ms


@pytest.fixture(scope="module")
def address():
    import torch

    from uniwetok_hf import UniWeTokPipeline, embedded_path
    from uniwetok_hf.web_app import build_app, launch_options

    pipe = UniWeTokPipeline.from_pretrained(embedded_path("uniwetok-emoji"), dtype=torch.float32)
    page = build_app(pipe, "uniwetok-emoji")
    _, local, _ = page.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    yield local
    page.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[1200, 420], ids=["wide", "narrow"])
def page(request, browser, address):
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    page.set_default_timeout(WAIT)
    strangers = []
    page.on("request", lambda sent: strangers.append(sent.url) if not sent.url.startswith(OWN) else None)
    page.goto(address)
    yield page
    page.close()
    assert strangers == []  # the page asks no other machine for anything


OWN = ("http://127.0.0.1", "http://localhost", "data:", "blob:")


def keep_picture(page, name: str) -> None:
    if folder := os.environ.get("UNIWETOK_SCREENSHOTS"):
        window = "wide" if page.viewport_size["width"] > 800 else "narrow"
        page.screenshot(path=Path(folder) / f"app-{name}-{window}.png", full_page=True)


def upload(page, button: str) -> None:
    """A pizza, into the tab that has the button: its parts come one by one."""
    page.get_by_role("button", name=button).wait_for()
    panel = page.locator("[role=tabpanel]:visible")
    panel.locator("input[type=file]").set_input_files(PICTURES / "noto-pizza.png")
    panel.locator("img[src*='/file=']").first.wait_for()


def open_tab(page, name: str) -> None:
    """By the keyboard alone where the tab is in sight, else (narrow window) by the menu of the others."""
    page.get_by_role("tab", name="Conversation").wait_for()
    tab = page.get_by_role("tab", name=name)
    if not tab.is_visible():
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown button", has_text=name).click()
        return
    tab.focus()
    page.keyboard.press("Enter")


def test_generate(page):
    open_tab(page, "Generate")
    page.get_by_label("What to generate").fill("a fluent flat emoji of blue heart")
    page.keyboard.press("Enter")
    page.get_by_text("128 x 128 pixels in").wait_for()
    assert page.locator("img[src*='/file=']:visible").count() == 1
    keep_picture(page, "generate")


def test_edit_and_bad_uploads(page, tmp_path):
    open_tab(page, "Edit")
    page.get_by_role("button", name="Edit").click()
    page.get_by_text("Choose a picture first.").wait_for()
    upload(page, "Edit")
    page.get_by_label("What to change").fill("redraw in fluent flat style")
    page.keyboard.press("Enter")
    page.get_by_text("128 x 128 pixels in").wait_for()
    keep_picture(page, "edit")


def test_describe(page):
    open_tab(page, "Describe")
    upload(page, "Ask")
    page.get_by_role("button", name="Ask").click()
    page.wait_for_function("[...document.querySelectorAll('textarea')].some(box => box.disabled && box.value)")
    keep_picture(page, "describe")


def test_reconstruct(page):
    open_tab(page, "Reconstruct")
    upload(page, "Reconstruct")
    page.get_by_role("button", name="Reconstruct").click()
    page.get_by_text("128 x 128 pixels, 4 x 4 tokens, 256 bytes").wait_for()
    page.wait_for_function(
        "[...document.querySelectorAll('img[src*=\"/file=\"]')].filter(i => i.offsetParent).length == 3"
    )
    keep_picture(page, "reconstruct")


def test_converse(page, browser, address):
    box = page.get_by_placeholder("draw blue heart in fluent style")
    box.fill("draw blue heart in fluent style")
    page.keyboard.press("Enter")
    page.locator(".bot img").first.wait_for()
    box.fill("which style is this?")
    while page.locator("[data-testid=user]").count() < 2:  # not sent while the first answer is being generated
        page.keyboard.press("Enter")
        page.wait_for_timeout(500)
        assert box.input_value() in ("", "which style is this?")
    page.locator("[data-testid=bot]").nth(1).wait_for()
    keep_picture(page, "converse")
    other = browser.new_page()
    other.goto(address)
    other.get_by_placeholder("draw blue heart in fluent style").wait_for()
    assert other.locator(".bot img").count() == 0  # nobody sees another's pictures
    other.close()
    page.get_by_role("button", name="Start over").click()
    page.locator("[data-testid=bot]").first.wait_for(state="detached")
