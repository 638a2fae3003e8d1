// The dashboard: the API with a key that lives in this page alone.
import { keysPanel } from "/static/keys.js";
import { byId, inCredits, teller } from "/static/session.js";

let key = "";
const say = teller("status");

async function call(path, body) {
  const headers = { Authorization: `Bearer ${key}` };
  const request = body === undefined
    ? { headers }
    : { method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(body) };
  try {
    const answer = await fetch(`/api/v1${path}`, { credentials: "omit", ...request });
    return await answer.json();
  } catch {
    return { ok: false, error: "offline", message: "This server did not answer. Check your connection and try again." };
  }
}

const showKeys = keysPanel(call, say);

const fill = (id, rows) => {
  byId(id).replaceChildren(...rows);
  byId(`no-${id}`).hidden = rows.length > 0;
};

const rowOf = (cells) => {
  const row = document.createElement("tr");
  for (const [content, kind] of cells) {
    const cell = row.insertCell();
    cell.append(content);
    if (kind) cell.className = kind;
  }
  return row;
};

const code = (text) => {
  const made = document.createElement("code");
  made.textContent = text;
  return made;
};

const resultOf = (job) => {
  if (job.error) return job.error.message;
  if (!job.output.length) return "";
  const link = document.createElement("a");
  link.href = job.output[0].url;
  link.textContent = "Open";
  link.setAttribute("aria-label", `Open the result of ${job.id}`);
  return link;
};

const stateOf = (job) => {
  if (job.status === "queued" && job.queuePosition) return `queued, place ${job.queuePosition}`;
  return job.status === "running" ? `running, ${Math.round(job.progress * 100)} %` : job.status;
};

const showBalance = (balance) => {
  byId("balance").textContent = inCredits(balance.credits);
  byId("held").textContent = inCredits(balance.held.credits);
};

const showJobs = async () => {
  const got = await call("/media/jobs?limit=10");
  if (!got.ok) return;
  fill("jobs", got.data.map((job) => rowOf([
    [code(job.id), "break"],
    [job.task],
    [stateOf(job)],
    [inCredits(job.cost.charged ?? job.cost.held), "number"],
    [resultOf(job)],
  ])));
};

const showUsage = async () => {
  const got = await call("/usage?groupBy=tool");
  if (!got.ok) return;
  fill("usage", got.data.map((used) => rowOf([
    [code(used.tool)],
    [used.charges.toLocaleString("en"), "number"],
    [inCredits(used.net.credits), "number"],
  ])));
};

byId("open").addEventListener("submit", async (event) => {
  event.preventDefault();
  key = byId("key").value.trim();
  const balance = await call("/balance");
  if (!balance.ok) {
    key = "";
    say(balance.error === "auth_required" ? "This is not a key of this server, or it was revoked." : balance.message, "failure");
    return;
  }
  say("");
  byId("key").value = "";
  showBalance(balance);
  await Promise.all([showKeys(), showJobs(), showUsage()]);
  byId("open").hidden = true;
  byId("opened").hidden = false;
  byId("balance-title").focus();
});

byId("close").addEventListener("click", () => location.reload());
