import { keysPanel } from "/static/keys.js";
import { byId, call, inCredits, inMoney, once, teller, whoAmI } from "/static/session.js";

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

const purchaseRow = (purchase) => {
  const row = document.createElement("tr");
  row.id = purchase.id;
  row.tabIndex = -1;
  const money = (minor) => inMoney(minor, purchase.currency);
  const number = document.createElement("code");
  number.textContent = purchase.id;
  const cells = [
    purchase.createdAt.slice(0, 10),
    purchase.packageCode,
    inCredits(purchase.credits),
    purchase.paid ? money(purchase.paidMinor) : "not paid",
    purchase.returnedMinor ? money(purchase.returnedMinor) : "",
    number,
  ];
  cells.forEach((content, place) => {
    const cell = row.insertCell();
    cell.append(content);
    if (place >= 2 && place <= 4) cell.className = "number";
  });
  return row;
};

let older = "";
/** Show a page of purchases, and further ones until the one that the address names is there. */
const showPurchases = async () => {
  const wanted = location.hash.slice(1);
  do {
    const got = await call(`/purchases?limit=50${older && `&cursor=${older}`}`);
    if (!got.ok) {
      say(got.message, "failure");
      return;
    }
    byId("purchases").append(...got.data.map(purchaseRow));
    older = got.nextCursor || "";
  } while (older && wanted.startsWith("pur_") && !document.getElementById(wanted));
  byId("purchases-panel").hidden = !byId("purchases").children.length;
  byId("more-purchases").hidden = !older;
  if (wanted.startsWith("pur_")) document.getElementById(wanted)?.focus();
};

byId("more-purchases").addEventListener("click", once(showPurchases));
document.getElementById("portal")?.addEventListener("click", async () => {
  const got = await call("/billing/portal", {});
  if (got.ok) location.assign(got.portalUrl);
  else say(got.message, "failure");
});

const who = await whoAmI();
if (who.ok) {
  byId("who").textContent = who.email;
  const [balance, alerts] = await Promise.all([call("/balance"), call("/alerts"), showKeys(), showPurchases()]);
  if (balance.ok) byId("balance").textContent = inCredits(balance.credits);
  byId("alert-fields").disabled = !showAlert(alerts); // what is typed earlier would be overwritten
} else {
  say(who.message, "failure");
}
