// The keys of an account as a table, and the form that makes one: the same for a signed-in page and for a key.
import { byId, once } from "/static/session.js";

const day = (time) => new Date(time).toLocaleDateString("en-CA"); // 2026-11-22

const stateOf = (key) => {
  if (key.revokedAt) return `revoked ${day(key.revokedAt)}`;
  if (!key.expiresAt) return "live";
  return new Date(key.expiresAt) <= new Date() ? `ended ${day(key.expiresAt)}` : `live until ${day(key.expiresAt)}`;
};

/** Bring the panel to life over `call(path, body)`; `say(text, kind)` tells what came of it. Returns its refresh. */
export function keysPanel(call, say) {
  const revoke = async (key) => {
    if (!confirm(`Revoke the key "${key.label}"? Whatever uses it stops working.`)) return;
    const got = await call("/keys/revoke", { keyPrefix: key.keyPrefix });
    if (got.ok && byId("secret").textContent.includes(key.keyPrefix)) byId("made").hidden = true;
    await show();
    byId("keys-title").focus(); // the button that had the focus is gone
    say(got.ok ? `The key "${key.label}" is revoked.` : got.message, got.ok ? "success" : "failure");
  };

  const rowOf = (key) => {
    const row = document.createElement("tr");
    const state = stateOf(key);
    const prefix = document.createElement("code");
    prefix.textContent = `${byId("keys").dataset.brand}_${key.mode}_${key.keyPrefix}`;
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

  const show = async () => {
    const got = await call("/keys");
    if (!got.ok) {
      say(got.message, "failure");
      return;
    }
    byId("keys").replaceChildren(...got.keys.map(rowOf));
    byId("no-keys").hidden = got.keys.length > 0;
  };

  byId("make").addEventListener("submit", once(async (event) => {
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
    await show();
  }));

  byId("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(byId("secret").textContent);
      byId("copied").textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren(byId("secret"));
      byId("copied").textContent = "Press Ctrl+C or Cmd+C to copy.";
    }
  });

  return show;
}
