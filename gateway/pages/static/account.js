import { byId, call, inCredits, teller, whoAmI } from "/static/session.js";

const tell = teller("status");
const say = (text, kind) => {
  tell(text, kind);
  if (text) byId("status").scrollIntoView({ block: "nearest" });
};
const day = (time) => new Date(time).toLocaleDateString("en-CA"); // 2026-11-22

const stateOf = (key) => {
  if (key.revokedAt) return `revoked ${day(key.revokedAt)}`;
  if (!key.expiresAt) return "live";
  return new Date(key.expiresAt) <= new Date() ? `ended ${day(key.expiresAt)}` : `live until ${day(key.expiresAt)}`;
};

const revoke = async (key) => {
  if (!confirm(`Revoke the key "${key.label}"? Whatever uses it stops working.`)) return;
  const got = await call("/keys/revoke", { keyPrefix: key.keyPrefix });
  if (got.ok && byId("secret").textContent.includes(key.keyPrefix)) byId("made").hidden = true;
  await showKeys();
  byId("keys-title").focus(); // the button that had the focus is gone
  say(got.ok ? `The key "${key.label}" is revoked.` : got.message, got.ok ? "success" : "failure");
};

const rowOf = (key) => {
  const row = document.createElement("tr");
  const state = stateOf(key);
  const prefix = document.createElement("code");
  prefix.textContent = `${byId("keys").dataset.brand}_live_${key.keyPrefix}`;
  for (const content of [key.label, prefix, day(key.createdAt), state]) row.insertCell().append(content);
  const last = row.insertCell();
  if (state.startsWith("live")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "second small";
    button.textContent = "Revoke";
    button.setAttribute("aria-label", `Revoke ${key.label}`);
    button.addEventListener("click", () => revoke(key));
    last.append(button);
  } else {
    row.className = "over";
  }
  return row;
};

const showKeys = async () => {
  const got = await call("/keys");
  if (!got.ok) {
    say(got.message, "failure");
    return;
  }
  byId("keys").replaceChildren(...got.keys.map(rowOf));
  byId("no-keys").hidden = got.keys.length > 0;
};

byId("make").addEventListener("submit", async (event) => {
  event.preventDefault();
  const expires = byId("expires").value;
  const asked = { label: byId("label").value };
  if (expires) asked.expiresAt = `${expires}T00:00:00Z`;
  const got = await call("/keys", asked);
  if (!got.ok) {
    say(got.message, "failure");
    return;
  }
  say("");
  byId("secret").textContent = got.apiKey;
  byId("copied").textContent = "";
  byId("made").hidden = false;
  byId("made-title").focus();
  event.target.reset();
  await showKeys();
});

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

byId("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(byId("secret").textContent);
    byId("copied").textContent = "Copied.";
  } catch {
    getSelection().selectAllChildren(byId("secret"));
    byId("copied").textContent = "Press Ctrl+C or Cmd+C to copy.";
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
