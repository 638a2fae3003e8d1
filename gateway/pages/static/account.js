import { keysPanel } from "/static/keys.js";
import { byId, call, inCredits, teller, whoAmI } from "/static/session.js";

const tell = teller("status");
const say = (text, kind) => {
  tell(text, kind);
  if (text) byId("status").scrollIntoView({ block: "nearest" });
};
const showKeys = keysPanel(call, say);

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
  const [balance] = await Promise.all([call("/balance"), showKeys()]);
  if (balance.ok) byId("balance").textContent = inCredits(balance.credits);
} else {
  say(who.message, "failure");
}
