"use strict";
// Everything that comes from data is put in as text, never as markup.

const byId = (id) => document.getElementById(id);

// Integers that a number cannot hold exactly stay texts: an id rounded is another item; the service takes either form.
const TOKEN = /"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*/g;
const kept = (token) => /^-?\d+$/.test(token) && !Number.isSafeInteger(Number(token)) ? `"${token}"` : token;
const readJson = (text) => JSON.parse(text.replace(TOKEN, kept));

async function call(path, body) {
  const given = body === undefined ? {} : {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  };
  const reply = await fetch(path, given);
  const answer = readJson(await reply.text());
  if (!reply.ok) throw new Error(answer.error.message);
  return answer;
}

function cell(content, kind) {
  const made = document.createElement("td");
  if (kind) made.className = kind;
  made.append(content);
  return made;
}

function button(text, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", act);
  return made;
}

function fill(table, names, rows) {
  const head = names.map((name) => {
    const made = document.createElement("th");
    made.textContent = name;
    return made;
  });
  table.tHead.rows[0].replaceChildren(...head);
  table.tBodies[0].replaceChildren(...rows.map((cells) => {
    const row = document.createElement("tr");
    row.append(...cells);
    return row;
  }));
  table.hidden = rows.length === 0;
}

const shown = (value) => Array.isArray(value) ? value.join(", ") : value === null ? "" : String(value);

function because(item) {
  return item.reasons.map((reason) => reason.text).join("; ");
}

const columnsOf = (items) => items.length ? Object.keys(items[0].columns) : [];

async function showNear(id) {
  try {
    const answer = await call("/v1/similar", { item_id: id, k: 5, explain: true });
    const names = columnsOf(answer.items);
    byId("near-title").textContent = `Nearest to ${id}`;
    byId("near-title").hidden = false;
    fill(byId("near"), ["item", "cosine", ...names], answer.items.map((item) => [
      cell(shown(item.item_id)),
      cell(item.cosine.toFixed(3), "number"),
      ...names.map((name) => cell(shown(item.columns[name]))),
    ]));
  } catch (error) {
    byId("said").textContent = error.message;
  }
}

async function dismiss(user, id) {
  try {
    await call("/v1/events", { user_id: user, item_id: id, event: "dismiss" });
    await ask();
  } catch (error) {
    byId("said").textContent = error.message;
  }
}

function readForm() {
  const body = { k: Number(byId("k").value), explain: true };
  const user = byId("user").value.trim();
  const history = byId("history").value.split(",").map((id) => id.trim()).filter(Boolean);
  const where = byId("where").value.trim();
  if (user) body.user_id = user;
  if (history.length) body.history = history.map((id) => ({ item_id: id }));
  if (where) body.filters = { where };
  if (byId("repeats").value) body.repeats = byId("repeats").value;
  return body;
}

function describe(answer, body) {
  const [list] = answer.answers;
  const who = body.user_id ? `user ${body.user_id}` : "somebody unknown";
  const by = body.history ? `by the history of ${body.history.length} given here` : "by what is known of them";
  const unknown = list.unknown_items ? `; ${list.unknown_items} items of the history are not known` : "";
  const short = list.reason ? `; ${list.reason}` : "";
  return `${list.items.length} items for ${who}, ${by}, in ${answer.latency_ms} ms, version ${answer.version}${unknown}${short}`;
}

async function ask() {
  const body = readForm();
  try {
    const answer = await call("/v1/recommend", body);
    const items = answer.answers[0].items;
    const names = columnsOf(items);
    byId("said").textContent = describe(answer, body);
    fill(byId("items"), ["", "item", "score", ...names, "because", ""], items.map((item) => [
      cell(String(item.rank), "number"),
      cell(button(shown(item.item_id), () => showNear(item.item_id))),
      cell(item.score.toFixed(3), "number"),
      ...names.map((name) => cell(shown(item.columns[name]))),
      cell(because(item)),
      cell(body.user_id ? button("not this", () => dismiss(body.user_id, item.item_id)) : ""),
    ]));
  } catch (error) {
    byId("said").textContent = error.message;
    byId("items").hidden = true;
  }
}

async function start() {
  const status = await call("/v1/status");
  const until = status.data_until === null ? "" : `, data until ${new Date(status.data_until * 1000).toISOString().slice(0, 10)}`;
  byId("about").textContent = `version ${status.version}: ${status.items} items, ${status.users} known users${until}`;
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
}

start().catch((error) => { byId("about").textContent = error.message; });
