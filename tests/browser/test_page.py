"""What a person does on the page, in a browser: pick somebody, take, dismiss, turn dials, search, also by keys."""

import re
import shutil
from contextlib import contextmanager

import pytest
from tests.http.services import publish_served
from tests.http.test_access import KEYS, write_line
from tests.linear_bundle import FILMS, SHOP
from tests.served import serving

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright",
    reason="axe-playwright-python is not installed",
)
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
SIZES = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return publish_served(tmp_path_factory.mktemp("browser"), SHOP)


@pytest.fixture(scope="module")
def server(bundle):
    """Run a service that all tests ask; those that change what is known of a user have one each."""
    with serving("--bundle", bundle) as server:
        yield server


@contextmanager
def opened(browser, server, path="/", width=1280, scheme="light", faults=0):
    """Open a page; at the end it must have reported nothing but answers that are faults."""
    page = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme
    ).new_page()
    said = []
    page.on(
        "console",
        lambda message: said.append(message.text) if message.type in ("error", "warning") else None,
    )
    page.on("pageerror", lambda error: said.append(str(error)))
    page.set_default_timeout(8000)
    page.goto(f"http://127.0.0.1:{server.port}{path}")
    yield page
    unexpected = [text for text in said if "status of" not in text]
    assert (unexpected, len(said) - len(unexpected)) == ([], faults)
    page.context.close()


@pytest.fixture
def page(browser, server):
    with opened(browser, server) as page:
        settle(page)
        yield page


def until(page, check):
    """Wait until something is so; the policy of the page lets no browser wait for it."""
    for _ in range(500):
        if check():
            return
        page.wait_for_timeout(20)
    raise AssertionError(page.locator("main").inner_text())


def settle(page):
    """Return the names of the items, after an answer."""
    page.locator("#list[aria-busy=false] > li").first.wait_for()
    return page.locator("#list .name").all_inner_texts()


def pick(page, name):
    page.get_by_role("radio", name=name).check()
    until(
        page,
        lambda: name.removeprefix("User ").lower() in page.locator("#list-title").inner_text(),
    )
    return settle(page)


def changed(page, before):
    until(page, lambda: settle(page) != before)
    return settle(page)


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_nothing_is_cut_hard_to_read_or_without_a_name(browser, server, width, scheme):
    for path in ("/", "/docs"):
        with opened(browser, server, path, width, scheme) as page:
            page.emulate_media(reduced_motion="reduce")
            page.locator("#list li, #docs article").first.wait_for()
            if path == "/":
                settle(page)
                page.get_by_role("button", name="Similar:").nth(1).click()
                page.get_by_role("heading", name="Similar items").wait_for()
                while page.locator("details:not([open]) > summary:visible").count():
                    page.locator("details:not([open]) > summary:visible").first.click()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            found = axe.Axe().run(page).response["violations"]
            assert [
                (one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] != "minor"
            ] == []


@pytest.mark.parametrize(("width", "height", "n_rows"), [(1280, 900, 4), (390, 844, 2)])
def test_the_first_screen_shows_rows_and_what_is_said_of_the_list_is_folded(
    browser, server, width, height, n_rows
):
    with opened(browser, server, width=width) as page:
        page.set_viewport_size({"width": width, "height": height})
        settle(page)
        row = page.locator("#list > li").nth(n_rows - 1).bounding_box()
        assert row["y"] + row["height"] <= height
        assert not page.locator("#parameters").is_visible()
        page.get_by_text("About this list").click()
        assert page.locator("#parameters").is_visible()


def test_what_stands_beside_the_list_is_folded_on_a_phone(browser, server):
    with opened(browser, server, width=390) as page:
        settle(page)
        assert not page.get_by_role("searchbox").is_visible()
        page.get_by_text("More about them").click()
        page.get_by_role("searchbox").fill("title 7")
        page.locator("#found button").first.wait_for()


def test_a_button_is_called_by_what_it_shows_and_the_item(page):
    settle(page)
    for row in page.locator("#list > li").all():
        name = row.locator(".name").inner_text()
        for one in row.get_by_role("button").all():
            assert one.get_attribute("aria-label") == f"{one.inner_text()}: {name}"
    assert page.locator("#list .acts button").count() == 30


def test_the_verb_is_that_of_the_event_which_the_button_logs(page):
    pick(page, "Somebody new")
    assert page.get_by_role("group", name="What they bought").is_visible()
    for event, shown in (("view", "Viewed it"), ("buy", "Bought it")):
        page.get_by_label("Counts as").select_option(event)
        until(page, lambda: page.locator("#list button").first.inner_text() == shown)  # noqa: B023


def test_an_event_without_a_verb_is_called_by_its_own_name(browser, server):
    def name_in_german(route):
        verbs = {"view": "viewed {}", "buy": "Kauf: {}"}
        reply = route.fetch().json()
        route.fulfill(json=reply | {"verb": "Kauf: {}", "verbs": verbs})

    with opened(browser, server, path="/docs") as page:
        page.route("**/v1/page", name_in_german)
        page.goto(f"http://127.0.0.1:{server.port}/")
        settle(page)
        assert page.locator("#list button").first.inner_text() == "Kauf"
        assert page.get_by_role("group", name="What they took").is_visible()


def test_values_have_the_names_of_their_columns(page):
    settle(page)
    kind = page.locator("#list .kind").first.inner_text()
    assert re.fullmatch(r"department (dairy|meat|fruit)( · \w+ [\w.]+)+", kind)
    assert "gender f" in page.locator("#people").inner_text()


def test_items_of_one_name_are_told_apart(browser, server):
    with opened(browser, server, path="/docs") as page:
        page.route("**/v1/page", lambda route: route.fulfill(json=name_by_department(route)))
        page.goto(f"http://127.0.0.1:{server.port}/")
        names = settle(page)
        assert len(set(names)) == len(names) == 10
        assert sum(name.startswith(("dairy · ", "meat · ", "fruit · ")) for name in names) > 1


def name_by_department(route):
    return route.fetch().json() | {"names": ["department"]}


@pytest.mark.parametrize("schema", [SHOP, FILMS], ids=["shop", "films"])
def test_what_is_taken_leaves_the_list_and_what_a_basket_holds_is_not_on_it(
    browser, schema, tmp_path
):
    with (
        serving("--bundle", publish_served(tmp_path, schema)) as server,
        opened(browser, server) as page,
    ):
        for place in (1, -1):  # a known user, and somebody new
            page.get_by_role("radio").nth(place).check()
            held_back = []
            for _ in range(2):
                before = settle(page)
                held_back.append(before[0])
                page.locator("#list button").first.click()
                after = changed(page, before)
                assert set(held_back).isdisjoint(after)
                assert set(after) - set(before)
                others = page.locator("#others").inner_text()
                assert not [name for name in held_back if name in others.split(": ")[-1]]
            box = page.get_by_role("checkbox", name="held back")
            assert box.is_visible() is (schema.repeats == "allow")
            if schema.repeats == "allow":
                box.check()
                assert not set(held_back).isdisjoint(changed(page, after))
                page.get_by_role("checkbox", name="Also list").uncheck()
                assert set(held_back).isdisjoint(settle(page))


def test_what_is_taken_changes_the_next_list_and_what_moved_is_marked(page):
    before = pick(page, "User u1")
    page.get_by_role("button", name=f"Bought it: {before[4]}", exact=True).click()
    after = changed(page, before)
    assert page.locator("#taken li").first.inner_text() == before[4]
    marks = page.locator("#list .place span:not(.hidden)").all_inner_texts()
    n_new, n_moved = map(
        int,
        re.match(r"(\d+) new, (\d+) moved", page.get_by_role("status").inner_text()).groups(),
    )
    assert (n_new, n_new + n_moved) == (len(set(after) - set(before)), len(marks))
    assert marks.count("new") == n_new


def test_what_is_dismissed_does_not_come_back(page):
    before = pick(page, "User u4")
    page.get_by_role("button", name=f"Not this: {before[0]}", exact=True).click()
    assert before[0] not in changed(page, before)
    page.reload()
    settle(page)
    assert before[0] not in pick(page, "User u4")


def test_dials_change_the_list_and_can_be_turned_off(page):
    pick(page, "User u3")
    page.get_by_text("Variety and novelty").click()
    lists = []
    for label, value in (("Novelty", 1), ("Variety", 1), (None, 0)):
        with page.expect_response(
            lambda reply: "explain" in (reply.request.post_data or "")
        ) as answered:
            page.get_by_label(label).fill(str(value)) if label else page.get_by_role(
                "button", name="Off"
            ).click()
        lists.append([item["item_id"] for item in answered.value.json()["answers"][0]["items"]])
    assert len({tuple(one) for one in lists}) == 3
    assert {"diversity", "novelty"}.isdisjoint(answered.value.request.post_data_json)
    assert [page.get_by_label(name).input_value() for name in ("Variety", "Novelty")] == ["0", "0"]


def test_somebody_is_described_by_items_features_and_an_hour(page):
    nobody = pick(page, "Somebody new")
    page.get_by_role("searchbox").fill("title 7")
    page.locator("#found").get_by_role("button", name="Title 7", exact=False).first.click()
    with_item = changed(page, nobody)
    assert page.locator("#taken li").first.inner_text().startswith("Title 7")
    page.get_by_text("About them, and when").click()
    with page.expect_response("**/v1/recommend") as answered:
        page.get_by_role("combobox", name="gender").select_option("m")
    assert answered.value.request.post_data_json.get("features", {"gender": "m"}) == {"gender": "m"}
    settle(page)
    with page.expect_request(lambda request: "datetime" in (request.post_data or "")) as asked:
        page.get_by_role("combobox", name="hour").select_option("23")
    assert asked.value.post_data_json["datetime"] // 3600 % 24 == 23
    settle(page)
    page.get_by_role("button", name="Remove: Title 7").click()
    until(page, lambda: "Title 7" not in page.locator("#taken").inner_text())
    assert changed(page, with_item) != with_item


def test_similar_items_stand_beside_their_item_until_they_are_closed(page):
    name = settle(page)[2]
    button = page.get_by_role("button", name=f"Similar: {name}", exact=True)
    before = page.locator("#list > li").nth(2).bounding_box()
    button.click()
    panel = page.locator("#list > li").nth(2).locator(".near")
    panel.locator("li").first.wait_for()
    row, beside = page.locator("#list > li").nth(2).bounding_box(), panel.bounding_box()
    assert row["height"] - before["height"] < 150  # no hole in the list
    assert row["y"] <= beside["y"] < row["y"] + row["height"]
    assert beside["x"] > row["x"] + row["width"] / 2
    assert button.get_attribute("aria-expanded") == "true"
    button.click()
    assert panel.count() == 0


def test_everything_can_be_done_by_keys_and_the_focus_stays_where_it_was(page):
    pick(page, "User u2")
    page.get_by_role("radio", name="User u2").focus()
    page.keyboard.press("ArrowDown")
    until(page, lambda: "u2" not in page.locator("#list-title").inner_text())
    page.keyboard.press("ArrowUp")
    until(page, lambda: "u2" in page.locator("#list-title").inner_text())
    before = settle(page)
    focus = "document.activeElement.ariaLabel ?? document.activeElement.id"
    while not page.evaluate(focus).startswith("Bought it"):
        page.keyboard.press("Tab")
    assert page.evaluate(focus) == f"Bought it: {before[0]}"
    page.keyboard.press("Enter")
    until(
        page,
        lambda: (
            page.locator("#taken li").count() == 1
            and "moved" in page.get_by_role("status").inner_text()
        ),
    )
    settle(page)
    assert page.evaluate(focus) in (f"Bought it: {before[0]}", "list-title")
    while page.evaluate(focus) != "search":
        page.keyboard.press("Shift+Tab")
    page.keyboard.type("title 7")
    page.locator("#found button").first.wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    until(
        page,
        lambda: page.locator("#taken li").all_inner_texts() == ["Title 7", before[0]],
    )


def test_who_is_not_known_is_said_to_be_so(page):
    page.get_by_label("Id of another known user").fill("a stranger")
    page.get_by_role("button", name="Look up").click()
    page.get_by_text("does not know this user").wait_for()


def test_a_fault_is_a_sentence_and_the_next_answer_takes_it_away(browser, server):
    with opened(browser, server, faults=1) as page:
        settle(page)
        page.get_by_text("Which items").click()
        page.get_by_label("Only where").fill("colour = 'red'")
        page.get_by_label("Only where").press("Enter")
        until(page, lambda: page.get_by_role("alert").inner_text())
        page.get_by_label("Only where").fill("department = 'dairy'")
        page.get_by_label("Only where").press("Enter")
        until(page, lambda: not page.get_by_role("alert").inner_text())
        until(
            page,
            lambda: all("dairy" in text for text in page.locator("#list .kind").all_inner_texts()),
        )


def test_a_key_is_asked_for_and_kept_by_the_page_alone(browser, bundle, tmp_path):
    (tmp_path / "keys").write_text(
        "".join(write_line(role, role, key) for role, key in KEYS.items())
    )
    with (
        serving("--bundle", bundle, "--keys", tmp_path / "keys") as server,
        opened(browser, server, faults=3) as page,
    ):
        for key in ("wrong", KEYS["ask"]):
            page.get_by_label("asks for a key").fill(key)
            page.get_by_role("button", name="Use this key").click()
        page.locator("#list .name").first.wait_for()
        settle(page)
        assert page.get_by_role("radio").count() == 1  # people are not for all to see
        assert page.evaluate(
            "[localStorage.length, sessionStorage.length, document.cookie.length]"
        ) == [0, 0, 0]
        page.reload()
        page.get_by_label("asks for a key").wait_for()


def test_a_service_that_only_reads_says_so_and_offers_no_events(browser, bundle):
    with (
        serving("--bundle", bundle, "--read-only") as server,
        opened(browser, server) as page,
    ):
        pick(page, "User u1")
        assert page.get_by_role("button", name="Bought it").count() == 0
        page.get_by_text("only reads").wait_for()


def test_a_list_says_what_decides_it_and_one_switch_leaves_out_the_profile(page):
    nobodys = pick(page, "Somebody new")
    known = pick(page, "User u4")
    assert known != nobodys
    page.get_by_text("About this list").click()
    said = page.locator("#parameters").inner_text()
    shares = [int(share) for share in re.findall(r"(\d+) %", said)]
    assert len(shares) > 1
    assert abs(sum(shares) - 100) <= len(shares)
    page.get_by_role("checkbox", name="Without profiling").check()
    assert changed(page, known) == nobodys
    assert "Made without personal data" in page.locator("#notes").inner_text()
    assert page.get_by_role("button", name="Not this").count() == 0
    page.get_by_role("checkbox", name="Without profiling").uncheck()
    assert changed(page, nobodys) == known
