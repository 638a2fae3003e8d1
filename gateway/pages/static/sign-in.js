import { byId, once, teller } from "/static/session.js";

const say = teller("status");
const ask = byId("ask");
const redeem = byId("redeem");

const post = async (path, body) => {
  try {
    const answer = await fetch(`/api/v1/auth${path}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    return await answer.json();
  } catch {
    return { ok: false, message: "This server did not answer. Check your connection and try again." };
  }
};

ask.addEventListener("submit", once(async () => {
  say("Sending.");
  const email = byId("email").value.trim();
  const got = await post("/email/start", { email });
  if (!got.ok) {
    say(got.message, "failure");
    return;
  }
  byId("sent").textContent =
    `A code of ${got.digits} digits is on its way to ${got.email}. It works once, for ${got.expiresInS / 60} minutes.`;
  say("");
  ask.hidden = true;
  redeem.hidden = false;
  byId("code").value = "";
  byId("code").focus();
}));

redeem.addEventListener("submit", once(async () => {
  say("Signing in.");
  const got = await post("/email/verify", { email: byId("email").value.trim(), code: byId("code").value });
  if (got.ok) {
    location.replace(byId("sign-in").dataset.next + location.hash);
    return;
  }
  say(got.message, "failure");
  byId("code").select();
}));

byId("again").addEventListener("click", () => {
  redeem.hidden = true;
  ask.hidden = false;
  say("");
  byId("email").focus();
});
