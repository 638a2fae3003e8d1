// The API as a signed-in page calls it: with the cookie, and on writes with the CSRF token.
let session;

const leave = () => location.replace(`/sign-in?next=${encodeURIComponent(location.pathname)}`);

/** Return the answer, refusals too. A session that is over leads to the sign-in page and never returns. */
export async function call(path, body, method = "POST") {
  let request = {};
  if (body !== undefined) {
    const { csrfToken = "" } = await whoAmI(); // a click may come before that is known
    request = {
      method,
      headers: { "Content-Type": "application/json", "X-CSRF-Token": csrfToken },
      body: JSON.stringify(body),
    };
  }
  let answer;
  try {
    answer = await fetch(`/api/v1${path}`, { credentials: "same-origin", ...request });
  } catch {
    return { ok: false, error: "offline", message: "This server did not answer. Check your connection and try again." };
  }
  if (answer.status === 401) {
    leave();
    return new Promise(() => {});
  }
  return answer.json();
}

/** Return whose session this is, asked once; without one, leave for the sign-in page. */
export async function whoAmI() {
  session ??= call("/auth/session");
  const who = await session;
  if (!who.ok) session = undefined; // the next one asks again
  return who;
}

export const byId = (id) => document.getElementById(id);

/** Return a handler of clicks or forms that is at one of them at a time: a double click asks once. */
export const once = (handler) => {
  let atWork = false;
  return async (event) => {
    event.preventDefault();
    if (atWork) return;
    atWork = true;
    try {
      await handler(event);
    } finally {
      atWork = false;
    }
  };
};

/** Return a function that writes a sentence into a status line. */
export const teller = (id) => (text, kind = "") => {
  byId(id).textContent = text;
  byId(id).className = kind;
};

export const inCredits = (credits) =>
  credits.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });

const format = (currency) => new Intl.NumberFormat("en", { style: "currency", currency });

const USDC = 1e6; // no currency that browsers know

/** Return how many minor units a unit of the currency has. */
export const scale = (currency) =>
  currency === "usdc" ? USDC : 10 ** format(currency).resolvedOptions().maximumFractionDigits;

export const inMoney = (minor, currency) =>
  currency === "usdc"
    ? `${(minor / USDC).toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 6 })} USDC`
    : format(currency).format(minor / scale(currency));
