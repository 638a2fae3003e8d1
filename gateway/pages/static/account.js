import { keysPanel } from "/static/keys.js";
import { byId, call, inCredits, teller, whoAmI } from "/static/session.js";

const tell = teller("status");
const say = (text, kind) => {
  tell(text, kind);
  if (text) byId("status").scrollIntoView({ block: "nearest" });
};
const showKeys = keysPanel(call, say);

const sayOfAlert = teller("alert-status");

const showAlert = (got) => {
  if (!got.ok) {
    sayOfAlert(got.message, "failure");
    return false;
  }
  byId("threshold").value = got.lowBalance ? got.lowBalance.threshold.credits : "";
  byId("alert-url").value = got.lowBalance?.webhookUrl || "";
  return true;
};

byId("alert").addEventListener("submit", async (event) => {
  event.preventDefault();
  const threshold = byId("threshold").value;
  const url = byId("alert-url").value.trim();
  if (!threshold && url) {
    sayOfAlert("Name a threshold too, or empty both.", "failure");
    return;
  }
  const lowBalance = threshold ? { credits: Number(threshold), webhookUrl: url || null } : null;
  if (showAlert(await call("/alerts", { lowBalance }, "PUT"))) {
    sayOfAlert(lowBalance ? "Saved." : "No alert is set.", "success");
  }
});

for (const name of ["sign-out", "sign-out-everywhere"]) {
  byId(name).addEventListener("click", async () => {
    const got = await call(`/auth/${name}`, {});
    if (got.ok) location.assign("/");
    else say(got.message, "failure");
  });
}

byId("delete").addEventListener("submit", async (event) => {
  event.preventDefault();
  const sayThere = teller("delete-status");
  const got = await call("/account/delete", {
    email: byId("delete-email").value.trim(),
    confirm: true,
    forfeit: byId("forfeit").checked,
  });
  if (got.ok) location.assign("/");
  else sayThere(got.message, "failure");
});

const who = await whoAmI();
if (who.ok) {
  byId("who").textContent = who.email;
  const [balance, alerts] = await Promise.all([call("/balance"), call("/alerts"), showKeys()]);
  if (balance.ok) byId("balance").textContent = inCredits(balance.credits);
  showAlert(alerts);
} else {
  say(who.message, "failure");
}
