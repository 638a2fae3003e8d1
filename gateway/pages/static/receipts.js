"use strict";
// Verifies a pasted receipt here in the browser: an Ed25519 signature by one of this server's published keys.
{
  const TYPE = "farebox-receipt";
  const byId = (id) => document.getElementById(id);
  const form = byId("verify");

  class Refusal extends Error {}

  const bytesOf = (text) => {
    if (!/^[A-Za-z0-9_-]*$/.test(text)) throw new Refusal("It is not a signature in compact form.");
    try {
      return Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (char) => char.charCodeAt(0));
    } catch {
      throw new Refusal("It is not a signature in compact form.");
    }
  };
  const jsonOf = (part) => JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytesOf(part)));
  const base64url = (bytes) =>
    btoa(String.fromCharCode(...new Uint8Array(bytes))).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");

  // RFC 7638: a key is known by this, whatever the set calls it.
  const thumbprint = async (x) => {
    const members = JSON.stringify({ crv: "Ed25519", kty: "OKP", x });
    return base64url(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(members)));
  };

  const keyOf = async (kid) => {
    const answer = await fetch("/.well-known/jwks.json");
    if (!answer.ok) throw new Refusal("This server did not give its keys. Try again.");
    for (const key of (await answer.json()).keys) {
      if (key.crv === "Ed25519" && (await thumbprint(key.x)) === kid) {
        const jwk = { kty: "OKP", crv: "Ed25519", x: key.x };
        return crypto.subtle.importKey("jwk", jwk, { name: "Ed25519" }, false, ["verify"]);
      }
    }
    throw new Refusal("It is signed by a key that is not this server's.");
  };

  const read = (text) => {
    if (!text.startsWith("{")) return { jws: text };
    try {
      return JSON.parse(text);
    } catch {
      throw new Refusal("It is not JSON.");
    }
  };

  // Names in one order, so that two ways to write the same come out alike.
  const canonical = (value) => {
    if (Array.isArray(value)) return value.map(canonical);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.keys(value).sort().map((name) => [name, canonical(value[name])]));
  };
  const same = (one, other) => JSON.stringify(canonical(one)) === JSON.stringify(canonical(other));

  const verified = async (text) => {
    const shown = read(text);
    if (typeof shown.jws !== "string") throw new Refusal("It has no jws.");
    const parts = shown.jws.split(".");
    if (parts.length !== 3) throw new Refusal("It is not a signature in compact form.");
    let header;
    try {
      header = jsonOf(parts[0]);
    } catch {
      throw new Refusal("It is not a signature in compact form.");
    }
    if (header.alg !== "EdDSA") throw new Refusal("It is not signed with EdDSA.");
    if (header.typ !== TYPE || !same(Object.keys(header).sort(), ["alg", "kid", "typ"])) {
      throw new Refusal(`It is not signed as a ${TYPE}.`);
    }
    const key = await keyOf(header.kid);
    const signed = new TextEncoder().encode(`${parts[0]}.${parts[1]}`);
    if (!(await crypto.subtle.verify({ name: "Ed25519" }, key, bytesOf(parts[2]), signed))) {
      throw new Refusal("It does not match its signature: it was changed.");
    }
    const fields = jsonOf(parts[1]);
    const { ok, jws, ...beside } = shown;
    const names = Object.keys(beside).length ? [...new Set([...Object.keys(fields), ...Object.keys(beside)])] : [];
    const wrong = names.filter((name) => !same(fields[name], beside[name]));
    if (wrong.length) throw new Refusal(`It differs from what was signed: ${wrong.sort().join(", ")}.`);
    return { issuer: fields.issuer, ...fields }; // whom it is from comes first
  };

  const say = (text, kind) => {
    byId("status").textContent = text;
    byId("status").className = kind;
  };

  const row = (name, value) => {
    const line = document.createElement("tr");
    const head = document.createElement("th");
    const cell = document.createElement("td");
    head.scope = "row";
    head.textContent = name;
    cell.className = "break";
    cell.textContent = value;
    line.append(head, cell);
    return line;
  };

  const show = (fields) => {
    byId("fields").replaceChildren(
      ...Object.entries(fields).flatMap(([name, value]) =>
        name === "outputs"
          ? value.map((output) => row("output", `${output.id}, ${output.contentType}, SHA-256 ${output.sha256}`))
          : [row(name, value === null ? "none" : String(value))],
      ),
    );
    byId("signed").hidden = false;
  };

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    byId("signed").hidden = true;
    if (!globalThis.crypto?.subtle) {
      say("Browsers verify signatures only on pages opened over HTTPS. Use the command below.", "failure");
      return;
    }
    say("Verifying.", "");
    try {
      const fields = await verified(byId("receipt").value.trim());
      show(fields);
      say(`Valid: signed by this server (${form.dataset.issuer}) and unchanged.`, "success");
      if (fields.issuer !== form.dataset.issuer) {
        say(`Valid: signed by this server's key, under its name ${fields.issuer}, and unchanged.`, "success");
      }
    } catch (error) {
      if (error instanceof Refusal) say(`Not valid. ${error.message}`, "failure");
      else if (error.name === "NotSupportedError") {
        say("This browser does not know Ed25519 yet. Use the command below.", "failure");
      } else say(`It could not be verified: ${error.message}`, "failure");
    }
  });
}
