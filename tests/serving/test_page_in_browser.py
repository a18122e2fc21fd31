"""The chat in a headless browser, on a desk and on a phone."""

import time

import pytest

import browser

pytestmark = browser.MARKS
PUZZLE = "1...2...3...4...="


@pytest.fixture
def opened(tab, server):
    tab.errors.clear()
    tab.open(f"http://127.0.0.1:{server.port}/")
    tab.wait("document.body.dataset.ready === 'yes'")
    return tab


def ask(tab, text=PUZZLE):
    before = int(tab.run("document.body.dataset.answers") or 0)
    tab.run(
        f"document.querySelector('#prompt').value = '{text}';"
        "document.querySelector('#ask').requestSubmit()"
    )
    for _ in range(4):  # A policy's first answer compiles.
        try:
            return tab.wait(f"document.body.dataset.answers === '{before + 1}'")
        except AssertionError:
            continue


def choose(tab, policy, place):
    """Chooses the first side's policy, by its name on the page, and a place of its slider."""
    tab.run(
        "(() => { const side = document.querySelector('.side'), set = (node, value) => { "
        "node.value = value; node.dispatchEvent(new Event('input', {bubbles: true})); }; "
        "const names = [...side.querySelectorAll('option')].map((each) => each.textContent); "
        f"set(side.querySelector('select'), names.indexOf('{policy}')); "
        f"set(side.querySelector('input[type=range]'), {place}); }})()"
    )


def test_an_answer_appears_as_it_is_unmasked(opened):
    """Holes become fewer, down to none, while the answer is drawn."""
    opened.run(
        "window.holes = []; new MutationObserver(() => { "
        "const found = document.querySelectorAll('.canvas span.hole').length; "
        "if (document.querySelector('.canvas span') && holes.at(-1) !== found) holes.push(found); "
        "}).observe(document.querySelector('#talk'), {childList: true, subtree: true})"
    )
    choose(opened, "top_confidence", 100)
    ask(opened)
    assert opened.run("holes") == list(range(15, -1, -1))
    assert opened.run("[...document.querySelectorAll('.canvas .new')].length") == 0
    assert not opened.errors


def test_an_answer_is_coloured_by_step_and_says_what_it_took(opened, server):
    ask(opened)
    _, whole = server.ask({"prompt": PUZZLE})
    tokens = opened.run(
        "[...document.querySelectorAll('.canvas span')].map((each) => [each.textContent, "
        "each.title, each.style.getPropertyValue('--hue')])"
    )
    assert "".join(token for token, _, _ in tokens) == whole["choices"][0]["text"]
    nfe = whole["unmasking"]["nfe"][0]
    assert {title for _, title, _ in tokens} == {f"step {step + 1}" for step in range(nfe)}
    assert len({hue for _, _, hue in tokens}) == nfe
    cost = opened.run("document.querySelector('.cost').textContent")
    assert cost.startswith(f"{nfe} forwards")
    assert "one token per step: 16 forwards" in cost
    assert not opened.errors


def test_the_slider_goes_from_fast_to_careful(opened):
    # It begins where the server's policy is.
    assert opened.run("document.querySelector('.side output').textContent") == "threshold 0.9"

    def forwards(place):
        choose(opened, "threshold", place)
        ask(opened)
        return int(
            opened.run("[...document.querySelectorAll('.cost b')].at(-1).textContent.split(' ')[0]")
        )

    assert forwards(0) < forwards(100)


def test_two_policies_side_by_side(opened):
    opened.run("document.querySelector('#two').click()")
    ask(opened)
    names = opened.run(
        "[...document.querySelectorAll('.answer h2')].map((each) => each.textContent)"
    )
    assert len(names) == 2
    assert names[1] == "sudoku-seed0"
    boxes = opened.run(
        "[...document.querySelectorAll('.answer')].map((each) => each.getBoundingClientRect().top)"
    )
    assert boxes[0] == boxes[1]
    assert not opened.errors


def test_mistakes_are_shown(opened):
    for _ in range(4):  # Below answers that fill the page.
        ask(opened)
    ask(opened, "hello")
    assert "'hello'" in opened.run("document.querySelector('.error').textContent")
    bottom = "document.querySelector('.error').getBoundingClientRect().bottom"
    assert opened.run(f"{bottom} <= document.querySelector('main').getBoundingClientRect().bottom")


def test_an_answer_can_be_stopped(opened, server):
    """Stop ends the request on the server too."""
    choose(opened, "top_confidence", 100)
    opened.run(
        f"document.querySelector('#prompt').value = '{PUZZLE}';"
        "document.querySelector('#ask').requestSubmit();"
        "document.querySelector('#stop').click()"
    )
    opened.wait("document.querySelector('.error')?.textContent === 'stopped'")
    engine, end = server.service.engine, time.monotonic() + 30
    while engine.running + engine.waiting:  # It takes the server a moment to hear of it.
        assert time.monotonic() < end
        time.sleep(0.01)
    ask(opened)
    assert "16 forwards" in opened.run("[...document.querySelectorAll('.cost')].at(-1).textContent")


def test_fits_a_phone(tab, server):
    tab.open(f"http://127.0.0.1:{server.port}/", width=390, height=760, dark=True)
    tab.wait("document.body.dataset.ready === 'yes'")
    ask(tab)
    assert tab.run("document.documentElement.scrollWidth") <= 390
    assert tab.run("document.querySelector('#send').getBoundingClientRect().bottom") <= 760
