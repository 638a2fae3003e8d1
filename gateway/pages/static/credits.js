import { byId, call, inCredits, teller, whoAmI } from "/static/session.js";

const say = teller("status");
const buttons = [...document.querySelectorAll("[data-package]")];

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

for (const button of buttons) {
  button.addEventListener("click", async () => {
    for (const each of buttons) each.disabled = true;
    say("Opening the payment page.");
    const order = { email: who.email, packageCode: button.dataset.package };
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
addEventListener("pageshow", () => {
  for (const button of buttons) button.disabled = false;
  say("");
});
