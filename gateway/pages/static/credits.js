import { byId, call, inCredits, inMoney, scale, teller, whoAmI } from "/static/session.js";

const say = teller("status");
const buttons = [...document.querySelectorAll("[data-package]")];

for (const button of buttons) {
  button.disabled = false; // Firefox keeps a button off over a reload
  button.addEventListener("click", async () => {
    for (const each of buttons) each.disabled = true;
    say("Opening the payment page.");
    const order = { email: (await whoAmI()).email, packageCode: button.dataset.package };
    const got = await call(`/checkout/${button.dataset.rail}`, order);
    if (got.ok) {
      location.assign(got.checkoutUrl);
      return;
    }
    say(got.message, "failure");
    for (const each of buttons) each.disabled = false;
  });
}

// A page that the back button brings back must not stay with its buttons off.
addEventListener("pageshow", (event) => {
  if (!event.persisted) return;
  for (const button of buttons) button.disabled = false;
  say("");
});

const who = await whoAmI();
if (who.ok) {
  byId("who").textContent = who.email;
  const balance = await call("/balance");
  if (balance.ok) {
    byId("balance").textContent = inCredits(balance.credits);
    if (balance.held.tokens) {
      byId("held").textContent = `${inCredits(balance.held.credits)} more are held for work under way.`;
      byId("held").hidden = false;
    }
  }
} else {
  say(who.message, "failure");
}

const auto = document.getElementById("auto");
if (auto && who.ok) {
  const tell = teller("auto-status");
  const REASONS = {
    authentication_required: "your bank wants you to confirm: buy a package above, then switch it on again",
    card_declined: "the card was declined",
    no_card: "no card is saved",
    not_offered: "it is not offered for this package, or not any more",
    package_changed: "the package is not sold at that price any more",
  };
  const chosen = () => byId("auto-package").selectedOptions[0].dataset.currency;
  const show = (found) => {
    const wish = found.autoTopup;
    byId("auto-off").hidden = !wish;
    if (!wish) {
      byId("auto-state").textContent = "It is off.";
      return;
    }
    byId("auto-threshold").value = wish.threshold.credits;
    byId("auto-package").value = wish.packageCode;
    byId("auto-most").value = wish.monthMostMinor / scale(wish.currency);
    const why = wish.reason ? `: ${REASONS[wish.reason]}` : "";
    byId("auto-state").textContent = `It is ${wish.state}${why}. Charged this month: ${inMoney(wish.spentMinor, wish.currency)} of ${inMoney(wish.monthMostMinor, wish.currency)}.`;
  };
  const ask = async (path, body, method) => {
    const got = await call(`/account/auto-topup${path}`, body, method);
    if (!got.ok) tell(got.message, "failure");
    return got;
  };
  const now = await ask("");
  if (now.ok) show(now);
  auto.addEventListener("submit", async (event) => {
    event.preventDefault();
    const got = await ask("", {
      threshold: Number(byId("auto-threshold").value),
      packageCode: byId("auto-package").value,
      monthMostMinor: Math.round(Number(byId("auto-most").value) * scale(chosen())),
    }, "PUT");
    if (got.ok) {
      show(got);
      tell("Saved.");
    }
  });
  byId("auto-off").addEventListener("click", async () => {
    const got = await ask("", {}, "DELETE");
    if (got.ok) {
      show(got);
      tell("Nothing more is charged by itself.");
    }
  });
  byId("auto-card").addEventListener("click", async () => {
    const got = await ask("/card", {});
    if (got.ok) location.assign(got.cardUrl);
  });
  byId("auto-fields").disabled = !now.ok; // what is typed earlier would be overwritten
}
