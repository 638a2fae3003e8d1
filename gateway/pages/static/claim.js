"use strict";
// Claims the key of this page's payment and shows it. The key lives in this page alone and in no storage.
const claim = document.getElementById("claim");
const TRIES = 20; // a payment that takes longer than a minute has a reason worth reading about
const PAUSE_MS = 3000;

const REASONS = {
  already_claimed: "The key of this payment was shown before, and it is shown only once. If you do not have it any more, use another key of your account.",
  claim_expired: "This payment's key was not claimed in time. The credits are safe: sign in with the e-mail address that paid, and create a key there.",
  account_exists: "Your e-mail owned an account already: the credits are on it, ready to spend with the keys that you have.",
  payment_incomplete: "Less than the price arrived before the checkout closed, so no credits were granted. Write to support with this page's address.",
  not_found: "No such checkout. Check that the address is the one that the payment page sent you to.",
};

if (claim) {
  const byId = (id) => document.getElementById(id);
  const show = byId("show");
  const status = byId("status");
  const say = (text, kind) => { status.textContent = text; status.className = kind || ""; };
  const pause = () => new Promise((resolve) => setTimeout(resolve, PAUSE_MS));

  const post = async (path, body) => {
    const answer = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    return answer.json();
  };
  const ask = () => post(claim.dataset.claim, { sessionId: claim.dataset.session, keyLabel: "Primary key" });

  // Whoever tops an account up claims nothing: their credits must not wait for a webhook either.
  post("/api/v1/checkout/settle", { sessionId: claim.dataset.session }).then((got) => {
    if (!got.paid || got.key !== "none") return;
    show.hidden = true;
    say(`${got.credits} credits were granted. ${REASONS.account_exists}`, "success");
  }, () => {}); // no answer: the button tells what to do

  const reveal = (got) => {
    byId("secret").textContent = got.apiKey;
    byId("granted").textContent = `${got.credits} credits were granted to ${got.email}; ${got.balance} are free to spend.`;
    byId("next").textContent =
      `API_BASE="${claim.dataset.base}"\nAPI_KEY="${got.apiKey}"\n` +
      'curl -X POST "$API_BASE/api/v1/media/jobs" \\\n' +
      '  -H "Authorization: Bearer $API_KEY" \\\n' +
      '  -H "Content-Type: application/json" \\\n' +
      '  -H "X-Idempotency-Key: job-001" \\\n' +
      `  -d '{"task": "image.generate",\n` +
      `       "input": {"prompt": "cinematic fox astronaut", "aspectRatio": "1:1"}}'`;
    byId("key").hidden = false;
    show.hidden = true;
    say("Copy it now: it cannot be shown again.", "success");
    byId("copy").focus();
  };

  show.addEventListener("click", async () => {
    show.disabled = true;
    for (let left = TRIES; left > 0; left -= 1) {
      let got;
      say(left === TRIES ? "Claiming your key." : "The payment has not arrived yet; waiting for it.");
      try {
        got = await ask();
      } catch {
        say("This server did not answer. Check your connection and try again; nothing is lost.", "failure");
        show.disabled = false;
        return;
      }
      if (got.ok) {
        reveal(got);
        return;
      }
      if (got.error !== "payment_pending" && got.error !== "rate_limited") {
        say(REASONS[got.error] || got.message, got.error === "account_exists" ? "success" : "failure");
        show.disabled = got.error in REASONS;
        return;
      }
      await pause();
    }
    say("The payment has not arrived yet. If you have paid, try again in a few minutes: your key waits here.", "failure");
    show.disabled = false;
  });

  byId("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(byId("secret").textContent);
      byId("copied").textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren(byId("secret"));
      byId("copied").textContent = "Press Ctrl+C or Cmd+C to copy.";
    }
  });
}
