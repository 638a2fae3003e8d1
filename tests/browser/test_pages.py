"""What people do on the pages, done in a browser: buy, claim, manage keys, sign in, read."""

from __future__ import annotations

import re
import time

import httpx
import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.timeout(300)

PAGES = (
    "/",
    "/pricing",
    "/credits",
    "/sign-in",
    "/dashboard",
    "/docs",
    "/docs/receipts",
    "/checkout/canceled",
)
PHONE = {"width": 360, "height": 740}


def mail_to(outbox, address: str, about: str = "") -> str:
    """Wait for a mail to an address and return its text."""
    deadline = time.monotonic() + 30
    while True:
        for path in sorted(outbox.glob("*.eml"), reverse=True):
            text = path.read_text()
            if f"To: {address}" in text and about in text:
                return text
        assert time.monotonic() < deadline, "no mail came"
        time.sleep(0.1)


def sign_in(page, outbox, address: str) -> None:
    page.goto("/account")
    page.get_by_label("E-mail").fill(address)
    page.get_by_role("button", name="Send the code").click()
    expect(page.get_by_label("Code")).to_be_visible()
    code = re.search(r"^\s*(\d{4} ?\d{4}|\d{6,8})\s*$", mail_to(outbox, address), re.MULTILINE)
    assert code
    page.get_by_label("Code").fill(code[1])
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("#who")).to_have_text(address)


def make_key(page, label: str) -> str:
    page.get_by_label("Label").fill(label)
    page.get_by_role("button", name="Make a key").click()
    expect(page.locator("#made")).to_be_visible()
    secret = page.locator("#secret").text_content()
    assert re.fullmatch(r"amai_live_[0-9A-Za-z]{43}", secret)
    return secret


def revoke(page, label: str) -> None:
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name=f"Revoke {label}").click()
    expect(page.locator("#status")).to_have_text(f'The key "{label}" is revoked.')


def test_a_visitor_buys_claims_and_manages_keys_with_the_key(page, platform):
    bought = httpx.post(
        f"{platform.settings.base_url}/api/v1/checkout/stripe",
        json={"email": "visitor@company.com", "packageCode": "builder_600"},
        trust_env=False,
        timeout=60,
    ).json()
    page.goto(bought["checkoutUrl"])
    page.get_by_role("button", name=re.compile(r"^Pay \$")).click()
    page.get_by_role("button", name="Show my API key").click()
    expect(page.locator("#granted")).to_contain_text("600")
    first = page.locator("#secret").text_content()

    page.goto("/dashboard")
    page.locator("#key").fill("amai_live_" + "x" * 43)
    page.get_by_role("button", name="Open").click()
    expect(page.locator("#status")).to_have_class("failure")
    page.locator("#key").fill(first)
    page.get_by_role("button", name="Open").click()
    expect(page.locator("#balance")).to_have_text("600.00")
    expect(page.locator("#keys tr")).to_have_count(1)
    expect(page.locator("#no-jobs")).to_be_visible()
    second = make_key(page, "Agent Worker A")
    expect(page.locator("#keys tr")).to_have_count(2)
    headers = {"x-api-key": second}
    asked = httpx.get(f"{platform.settings.base_url}/api/v1/balance", headers=headers, trust_env=False)
    assert asked.status_code == 200
    revoke(page, "Agent Worker A")
    asked = httpx.get(f"{platform.settings.base_url}/api/v1/balance", headers=headers, trust_env=False)
    assert asked.status_code == 401
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0
    page.get_by_role("button", name="Forget the key").click()
    expect(page.locator("#key")).to_have_value("")


def test_a_finished_job_is_shown_with_its_result(page, platform, funded_key):
    headers = {"x-api-key": funded_key, "prefer": "wait=60"}
    with httpx.Client(base_url=platform.settings.base_url, headers=headers, trust_env=False) as http:
        body = {"task": "image.generate", "input": {"prompt": "fox"}}
        sent = http.post("/api/v1/media/jobs", json=body, timeout=90)
    assert (sent.status_code, sent.json()["status"]) == (200, "succeeded")
    page.goto("/dashboard")
    page.locator("#key").fill(funded_key)
    page.get_by_role("button", name="Open").click()
    row = page.locator("#jobs tr")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("succeeded")
    expect(row).to_contain_text("1.00")
    expect(page.locator("#usage tr")).to_contain_text("image")
    picture = httpx.get(row.get_by_role("link").get_attribute("href"), trust_env=False)
    assert picture.headers["content-type"] == "image/png"


def test_a_person_signs_in_by_mail_makes_a_key_and_signs_out(page, outbox):
    sign_in(page, outbox, "person@company.com")
    make_key(page, "Laptop")
    expect(page.locator("#keys tr")).to_have_count(1)
    revoke(page, "Laptop")
    page.goto("/credits")
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    page.goto("/account")
    page.get_by_role("button", name="Sign out", exact=True).click()
    page.wait_for_url("**/")
    page.goto("/account")
    expect(page.get_by_label("E-mail")).to_be_visible()


def test_a_double_click_makes_one_key(page, outbox):
    sign_in(page, outbox, "hasty@company.com")
    page.locator("#label").fill("Laptop")
    page.get_by_role("button", name="Make a key").dblclick()
    expect(page.locator("#made")).to_be_visible()
    page.wait_for_load_state("networkidle")
    page.reload()
    expect(page.locator("#keys tr")).to_have_count(1)


def test_a_person_tops_up_and_the_receipt_leads_to_the_purchase(page, outbox, platform):
    sign_in(page, outbox, "buyer@company.com")
    page.goto("/credits")
    page.get_by_role("button", name="Buy Builder", exact=True).click()
    page.get_by_role("button", name=re.compile(r"^Pay \$")).click()
    page.wait_for_url("**/checkout/success*")
    expect(page.locator("#status")).to_contain_text("600 credits were granted")
    expect(page.get_by_role("button", name="Show my API key")).to_be_hidden()

    receipt = mail_to(outbox, "buyer@company.com", about="Subject: Receipt: 600 credits")
    (link,) = re.findall(r"^http\S+/account#pur_\w+$", receipt, re.MULTILINE)
    page.goto(link)
    bought = page.locator(f"#{link.partition('#')[2]}")
    expect(bought).to_be_focused()
    for text in ("builder_600", "600.00", "$50.00"):
        expect(bought).to_contain_text(text)
    page.get_by_role("button", name="Invoices and cards").click()
    page.wait_for_url("**/p/session/*")

    page.context.clear_cookies()
    page.goto(link)  # signed out: the sign-in leads to the same place
    expect(page.get_by_label("E-mail")).to_be_visible()


def test_a_click_before_the_page_knows_who_it_is_is_not_lost(page, outbox):
    sign_in(page, outbox, "quick@company.com")
    asked = []
    page.route("**/api/v1/auth/session", lambda route: asked.append(route))  # noqa: PLW0108  # it wants a function
    page.goto("/credits")
    page.get_by_role("button", name="Buy Builder", exact=True).click()
    expect(page.locator("#status")).to_have_text("Opening the payment page.")
    asked[0].continue_()
    expect(page.get_by_role("button", name=re.compile(r"^Pay \$"))).to_be_visible()


def test_a_person_sets_an_alert_that_stays_until_it_is_emptied(page, outbox):
    sign_in(page, outbox, "alert@company.com")
    for threshold, said in (("50.5", "Saved."), ("", "No alert is set.")):
        page.get_by_label("Threshold").fill(threshold)
        page.get_by_role("button", name="Save").click()
        expect(page.locator("#alert-status")).to_have_text(said)
        page.reload()
        expect(page.locator("#who")).to_have_text("alert@company.com")
        expect(page.get_by_label("Threshold")).to_have_value(threshold)


def test_a_person_saves_a_card_and_switches_automatic_top_up_on_and_off(page, outbox):
    sign_in(page, outbox, "auto@company.com")
    page.goto("/credits")
    expect(page.locator("#auto-state")).to_have_text("It is off.")
    page.get_by_role("button", name="Save a card").click()
    page.wait_for_url("**/c/pay/*")  # its button is called as ours begins
    page.get_by_role("button", name="Save").click()
    page.wait_for_url("**/credits*")
    expect(page.locator("#who")).to_have_text("auto@company.com")
    page.locator("#auto-threshold").fill("12.5")
    page.locator("#auto-package").select_option("builder_600")
    page.locator("#auto-most").fill("120.50")
    page.get_by_role("button", name="Switch on").click()
    expect(page.locator("#auto-status")).to_have_text("Saved.")
    expect(page.locator("#auto-state")).to_contain_text("It is on")
    expect(page.locator("#auto-state")).to_contain_text("of $120.50")
    page.reload()
    expect(page.locator("#auto-threshold")).to_have_value("12.5")
    expect(page.locator("#auto-most")).to_have_value("120.5")
    page.get_by_role("button", name="Switch off").click()
    expect(page.locator("#auto-state")).to_have_text("It is off.")


@pytest.mark.parametrize("path", PAGES)
def test_a_page_fits_a_phone_in_light_and_dark(page, path):
    page.set_viewport_size(PHONE)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.goto(path)
        expect(page.locator("h1, h2").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], scheme
