"use strict";
// Everything that comes from data is put in as text, never as markup.

const byId = (id) => document.getElementById(id);
const NOBODY = { user_id: null, recent: [], features: {} };
const BUSY = "aria-busy";
const DIALS = ["diversity", "novelty"];

let key = null; // of the service, in this variable only
let form = null; // what the service offers
let who = NOBODY;
let taken = []; // items that were added here, oldest first
let dismissed = []; // of somebody whom the service does not know
let last = null; // the list that is shown, with what was asked
let near = null; // id of the item whose similar ones are shown
let asked = 0; // requests so far: only the answer to the last one is drawn

function make(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null && child !== ""));
  return made;
}

const button = (text, label, act) => {
  const made = make("button", { type: "button", onclick: act }, text);
  made.setAttribute("aria-label", label);
  return made;
};

// ---- the service

// Integers that a number cannot hold exactly stay texts: an id rounded is another item; the service takes either form.
const TOKEN = /"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*/g;
const kept = (token) => /^-?\d+$/.test(token) && !Number.isSafeInteger(Number(token)) ? `"${token}"` : token;
const readJson = (text) => JSON.parse(text.replace(TOKEN, kept));

async function call(path, body) {
  const headers = key === null ? {} : { authorization: `Bearer ${key}` };
  const given = body === undefined ? { headers } : {
    method: "POST",
    headers: { ...headers, "content-type": "application/json" },
    body: JSON.stringify(body),
  };
  const reply = await fetch(path, given).catch(() => { throw new Error("The service does not answer. Does it still run?"); });
  const answer = readJson(await reply.text());
  if (reply.status === 401) showKeyForm();
  if (!reply.ok) throw new Error(answer.error.message);
  return answer;
}

function showKeyForm() {
  byId("key-form").hidden = false;
  byId("key").select();
}

function attempt(act) {
  return async (...given) => {
    try {
      await act(...given);
      byId("error").textContent = "";
    } catch (error) {
      byId("error").textContent = error.message;
    }
  };
}

// ---- words

const isShown = (value) => value !== null && value !== "" && typeof value !== "boolean";
const asText = (value) => Array.isArray(value) ? value.join(", ") : String(value);
const inWords = (name) => name.replaceAll("_", " ");
const asNumber = (value) => Number(value).toLocaleString("en", { maximumFractionDigits: 2 });
const inShort = (name, value) => Array.isArray(value) || Number.isNaN(Number(value)) ? asText(value) : `${inWords(name)} ${asNumber(value)}`;
const nameOf = (item) => form.names.map((name) => item.columns[name]).filter(isShown).map(asText).join(" · ") || `item ${item.item_id}`;

function kindOf(item) {
  const rest = Object.entries(item.columns).filter(([name, value]) => !form.names.includes(name) && isShown(value));
  return rest.map(([name, value]) => inShort(name, value)).join(" · ");
}

function dayOf(seconds) {
  const zone = { timeZone: form.timezone || "UTC" };
  return new Date(seconds * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short", ...zone });
}

const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

// ---- the form

function drawPeople() {
  byId("people").replaceChildren(...[...form.users, NOBODY].map((one) => {
    const facts = one === NOBODY
      ? "say what they took, and who they are"
      : [count(one.events, "event"), ...Object.entries(one.features).slice(0, 3).map(([name, value]) => inShort(name, value))].join(" · ");
    const radio = make("input", { type: "radio", name: "who", person: one, onchange: () => choose(one) });
    return make("label", { className: "person" }, radio, one === NOBODY ? "Somebody new" : `User ${one.user_id}`, make("small", {}, facts));
  }));
}

function choose(person) {
  [who, taken, dismissed, last, near] = [person, [], [], null, null];
  for (const radio of byId("people").querySelectorAll("input")) radio.checked = radio.person === person;
  byId("user").value = person === NOBODY || form.users.includes(person) ? "" : person.user_id;
  drawTaken();
  drawFeatures();
  return ask();
}

function drawTaken() {
  const isKnown = who.user_id !== null;
  const rows = taken.map((one, place) => make("li", {}, one.name, isKnown ? "" : button("×", `Remove ${one.name}`, () => {
    taken.splice(place, 1);
    drawTaken();
    ask();
  })));
  byId("taken").replaceChildren(...rows.reverse(), ...who.recent.map((name) => make("li", {}, name)));
  byId("taken-note").textContent = taken.length || who.recent.length ? "latest first" : isKnown ? "" : "nothing yet";
}

async function search() {
  const text = byId("search").value.trim();
  const answer = text ? await call(`/v1/items?k=6&search=${encodeURIComponent(text)}`) : { items: [] };
  if (text !== byId("search").value.trim()) return;
  byId("found").replaceChildren(...answer.items.map((item) => make("li", {}, make("button", { type: "button", onclick: () => {
    byId("search").value = "";
    byId("found").replaceChildren();
    byId("search").focus();
    take(item);
  } }, nameOf(item), make("small", {}, ` ${kindOf(item)}`)))));
  if (text && !answer.items.length) byId("found").replaceChildren(make("li", {}, "No item has these words."));
}

const CHOICES = { hour_of_day: 24, day_of_week: 7 };
const DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

function field(feature, side, known) {
  const values = feature.kind === "hour_of_day" || feature.kind === "day_of_week" ? [...Array(CHOICES[feature.kind]).keys()] : feature.values;
  const label = values.length ? (value) => feature.kind === "hour_of_day" ? `${value}:00` : feature.kind === "day_of_week" ? DAYS[value] : value : null;
  const empty = feature.kind in CHOICES ? "as it is" : known === undefined ? "not said" : `as known: ${known}`;
  const input = label === null
    ? make("input", { type: feature.kind === "numeric" ? "number" : "text", step: "any", placeholder: empty })
    : make("select", {}, make("option", { value: "" }, empty), ...values.map((value) => make("option", { value }, label(value))));
  Object.assign(input.dataset, { side, name: feature.name, kind: feature.kind });
  input.addEventListener("change", ask);
  return make("label", {}, inWords(feature.name), input);
}

function drawFeatures() {
  const shown = (features) => features.filter((one) => one.kind !== "vector");
  const about = [...shown(form.features).map((one) => field(one, "features", who.features[one.name])), ...shown(form.context).filter((one) => who === NOBODY || form.clock === "now" || !(one.kind in CHOICES)).map((one) => field(one, "context"))];
  byId("features").replaceChildren(...about);
  byId("details").hidden = about.length === 0;
}

function nextMoment(from, hour, day) {
  // Step to the next hour that the clock of the data's zone shows so.
  const parts = new Intl.DateTimeFormat("en-US", { timeZone: form.timezone || "UTC", hour: "numeric", hourCycle: "h23", weekday: "long" });
  for (let at = Math.ceil(from / 900) * 900, step = 0; step < 4 * 24 * 8; step += 1, at += 900) {
    const here = Object.fromEntries(parts.formatToParts(at * 1000).map((part) => [part.type, part.value]));
    if ((hour === "" || Number(here.hour) === Number(hour)) && (day === "" || DAYS[day] === here.weekday)) return at;
  }
  return from;
}

function readForm() {
  const body = { k: Number(byId("k").value), explain: true };
  for (const name of DIALS) if (Number(byId(name).value)) body[name] = Number(byId(name).value);
  const wanted = { hour_of_day: "", day_of_week: "" };
  for (const input of byId("features").querySelectorAll("[data-side]")) {
    const { side, name, kind } = input.dataset;
    if (kind in wanted) wanted[kind] = input.value;
    else if (input.value !== "") (body[side] ??= {})[name] = kind === "numeric" ? Number(input.value) : input.value;
  }
  if (body.features && who.user_id !== null) body.features = { ...who.features, ...body.features };
  if (wanted.hour_of_day !== "" || wanted.day_of_week !== "") body.datetime = nextMoment(form.moment, wanted.hour_of_day, wanted.day_of_week);
  if (byId("only-new").checked) body.repeats = "exclude";
  if (byId("where").value.trim()) body.filters = { where: byId("where").value.trim() };
  if (who.user_id !== null) return { ...body, user_id: who.user_id };
  return { ...body, history: taken.map((one) => ({ item_id: one.item_id })), exclude: dismissed };
}

// ---- the list

async function ask() {
  const number = asked += 1;
  byId("list").setAttribute(BUSY, "true");
  try {
    const body = readForm();
    const about = ["k", "datetime", "context"].filter((name) => name in body).map((name) => [name, body[name]]);
    const [answer, popular] = await Promise.all([call("/v1/recommend", body), call("/v1/recommend", Object.fromEntries(about))]);
    if (number !== asked) return;
    byId("error").textContent = "";
    draw(answer, popular.answers[0].items);
  } catch (error) {
    if (number === asked) byId("error").textContent = error.message;
  } finally {
    if (number === asked) byId("list").setAttribute(BUSY, "false");
  }
}

function draw(answer, popular) {
  const [list] = answer.answers;
  const before = last === null ? null : new Map(last.items.map((item) => [String(item.item_id), item]));
  const places = new Map(popular.map((item, index) => [String(item.item_id), index + 1]));
  const strongest = Math.max(...list.items.flatMap((item) => (item.reasons ?? []).map((one) => one.effect)), 1e-9);
  const held = document.activeElement?.closest("#list") ? document.activeElement.dataset.held : undefined;
  byId("list").replaceChildren(...list.items.map((item) => drawItem(item, before, places, strongest)));
  byId("list-title").textContent = who.user_id === null ? "What somebody new would want" : `What user ${who.user_id} would want`;
  byId("notes").replaceChildren(...describePerson(list).map((text) => make("span", {}, text)));
  const here = new Set(list.items.map((item) => String(item.item_id)));
  const gone = before === null ? [] : last.items.filter((item) => !here.has(String(item.item_id)));
  byId("gone").textContent = gone.length ? `No longer here: ${gone.map(nameOf).join("; ")}.` : "";
  byId("said").textContent = describeChange(list, before, places);
  const clock = answer.clock === "data" ? ", the end of the data" : "";
  byId("facts").textContent = `Asked for ${list.moment ? dayOf(list.moment) + clock : "now"}. Answered in ${Math.round(answer.latency_ms)} ms by version ${answer.version}.`;
  last = { ...list, request_id: answer.request_id };
  form.moment = list.moment ?? form.moment;
  if (held !== undefined) ([...byId("list").querySelectorAll("button")].find((one) => one.dataset.held === held) ?? byId("list-title")).focus();
}

function describePerson(list) {
  const words = [];
  if (list.user_known === false) words.push("The service does not know this user (never seen, or forgotten): this is what a newcomer gets.");
  if (list.segment) words.push(`Like ${list.segment.size.toLocaleString("en")} others: ${list.segment.text}.`);
  if (list.unknown_items) words.push(`${count(list.unknown_items, "item")} of the history are not known here.`);
  if (list.unknown_values) words.push(`Never seen in training: ${list.unknown_values.join(", ")}.`);
  if (list.reason) words.push(`Fewer than asked for: ${list.reason}.`);
  if (!form.may_change && who.user_id !== null) words.push("This service only reads for you: what a known user takes cannot be kept. Try “Somebody new”.");
  return words;
}

function describeChange(list, before, places) {
  const own = list.items.filter((item) => !places.has(String(item.item_id))).length;
  const differs = `${own} of ${list.items.length} are not among the ${places.size} most popular.`;
  if (before === null) return differs;
  const fresh = list.items.filter((item) => !before.has(String(item.item_id))).length;
  const moved = list.items.filter((item) => before.has(String(item.item_id)) && before.get(String(item.item_id)).rank !== item.rank).length;
  return fresh || moved ? `${fresh} new, ${moved} moved. ${differs}` : `Nothing changed. ${differs}`;
}

function drawPlace(item, before) {
  const earlier = before?.get(String(item.item_id));
  const rise = earlier ? earlier.rank - item.rank : 0;
  const mark = before === null || (earlier && !rise) ? "" : !earlier
    ? make("span", {}, "new")
    : make("span", { className: rise > 0 ? "up" : "down" }, make("span", { className: "hidden" }, rise > 0 ? "up " : "down "), `${rise > 0 ? "▲" : "▼"} ${Math.abs(rise)}`);
  return [before !== null && !earlier ? "fresh" : rise ? "moved" : "", make("div", { className: "place" }, String(item.rank), mark)];
}

function drawItem(item, before, places, strongest) {
  const [state, place] = drawPlace(item, before);
  const name = nameOf(item);
  const popular = places.get(String(item.item_id));
  const ids = [`id ${item.item_id}`, popular ? `also popular: place ${popular}` : ""].filter(Boolean).join(" · ");
  const acts = make("div", { className: "acts" });
  if (form.may_change || who.user_id === null) {
    acts.append(button("Took it", `They took ${name}`, () => take(item)), button("Not this", `Dismiss ${name}`, () => dismiss(item)));
  }
  const row = make("li", { className: state }, place, make("div", {}, make("span", { className: "name" }, name), make("span", { className: "kind" }, kindOf(item)), make("small", {}, ids), acts), drawReasons(item, strongest));
  const similar = button("Similar", `Similar to ${name}`, attempt(async () => {
    const isOpen = near === item.item_id;
    hideSimilar();
    if (!isOpen) await showSimilar(item, row, similar);
  }));
  similar.setAttribute("aria-expanded", "false");
  if (near === item.item_id) attempt(showSimilar)(item, row, similar);
  acts.append(similar);
  [...acts.children].forEach((one, index) => { one.dataset.held = `${item.item_id} ${index}`; });
  return row;
}

function drawRhythm(ago, every) {
  const words = `day ${Math.round(ago)} of about ${Math.round(every)}${ago >= every ? ", due" : ""}`;
  return make("span", { className: "pace" }, make("small", {}, words), bar(ago / every));
}

function bar(share) {
  const filled = make("span", {});
  filled.style.width = `${Math.max(2, Math.min(100, share * 100))}%`; // by the object model, which the policy admits
  const made = make("span", { className: "bar" }, filled);
  made.setAttribute("aria-hidden", "true");
  return made;
}

function drawReasons(item, strongest) {
  const reasons = (item.reasons ?? []).slice(0, 3);
  return make("ul", { className: "reasons" }, ...reasons.map((one) => {
    return make("li", {}, one.text, one.effect ? bar(one.effect / strongest) : "", one.kind === "memory" && one.every_days ? drawRhythm(one.days_ago, one.every_days) : "");
  }));
}

async function showSimilar(item, row, similar) {
  const answer = await call("/v1/similar", { item_id: item.item_id, k: 5, explain: true });
  near = item.item_id;
  const rows = answer.items.map((one) => make("li", {}, nameOf(one), make("small", {}, `${kindOf(one)} · ${Math.round(one.cosine * 100)} % alike`)));
  row.append(make("div", { className: "near" }, make("h3", {}, "Similar items"), make("ol", {}, ...rows)));
  row.classList.add("open");
  similar.setAttribute("aria-expanded", "true");
}

function hideSimilar() {
  near = null;
  for (const row of byId("list").querySelectorAll(".open")) {
    row.classList.remove("open");
    row.querySelector(".near").remove();
    row.querySelector("[aria-expanded=true]").setAttribute("aria-expanded", "false");
  }
}

async function tell(item, event) {
  const body = { user_id: who.user_id, item_id: item.item_id, ...event };
  const answer = await call("/v1/events", last ? { ...body, request_id: last.request_id } : body);
  if (!answer.kept) throw new Error("The service did not keep this: the user is forgotten, or the event is too old.");
}

const take = attempt(async (item) => {
  if (who.user_id !== null) await tell(item, form.events.length ? { event: byId("event").value } : {});
  taken.push({ item_id: item.item_id, name: nameOf(item) });
  drawTaken();
  await ask();
});

const dismiss = attempt(async (item) => {
  if (who.user_id !== null) await tell(item, { event: "dismiss" });
  else dismissed.push(item.item_id);
  await ask();
});

// ---- the interface

function typeOf(schema, all) {
  const found = schema.$ref ? all[schema.$ref.split("/").pop()] : schema;
  if (found.anyOf || found.oneOf) return (found.anyOf ?? found.oneOf).map((one) => typeOf(one, all)).filter((name) => name !== "null").join(" or ");
  if (found.enum) return found.enum.join(" | ");
  return found.type === "array" ? `list of ${typeOf(found.items ?? {}, all)}` : schema.$ref ? found.title : found.type ?? "any";
}

function listFields(schema, all) {
  const found = schema.$ref ? all[schema.$ref.split("/").pop()] : schema;
  if (found.oneOf || found.anyOf) return (found.oneOf ?? found.anyOf).flatMap((one) => [make("p", {}, make("b", {}, one.$ref.split("/").pop())), ...listFields(one, all)]);
  return [make("dl", {}, ...Object.entries(found.properties ?? {}).flatMap(([name, one]) => [
    make("dt", {}, name + (found.required?.includes(name) ? " *" : "")),
    make("dd", {}, [typeOf(one, all), one.description].filter(Boolean).join(". ")),
  ]))];
}

function drawOperation(path, method, operation, all) {
  const article = make("article", {}, make("h3", {}, `${method.toUpperCase()} ${path}`), make("p", {}, operation.summary ?? ""));
  const [needs] = operation.security ?? [];
  if (needs) article.append(make("p", {}, make("small", {}, `Where keys are set: one of the role ${needs.key[0]}, or above it.`)));
  const parameters = operation.parameters ?? [];
  if (parameters.length) article.append(make("dl", {}, ...parameters.flatMap((one) => [make("dt", {}, one.name + (one.required ? " *" : "")), make("dd", {}, `in the ${one.in}`)])));
  const content = operation.requestBody?.content["application/json"];
  if (content) article.append(...listFields(content.schema, all));
  for (const [name, example] of Object.entries(content?.examples ?? {})) article.append(make("small", {}, name), make("pre", {}, JSON.stringify(example.value)));
  return article;
}

async function drawDocs() {
  const document = await call("/openapi.json");
  const operations = Object.entries(document.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, one]) => drawOperation(path, method, one, document.components.schemas)));
  const link = make("a", { href: "/openapi.json" }, "/openapi.json");
  byId("docs").replaceChildren(make("h2", {}, "Interface"), make("p", {}, `${document.info.description} A star marks what must be given. For programs: `, link, "."), ...operations);
  byId("docs").hidden = false;
}

// ---- the beginning

function later(act) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(act, 150);
  };
}

function showDials() {
  for (const name of DIALS) byId(`${name}-value`).textContent = Number(byId(name).value).toFixed(2);
}

function setDials(dials) {
  for (const name of DIALS) byId(name).value = dials[name];
  showDials();
}

const start = attempt(async () => {
  if (location.pathname === "/docs") return drawDocs();
  form = await call("/v1/page");
  byId("try").hidden = false;
  drawPeople();
  setDials(form.dials);
  const ended = form.data_until ? `, data until ${dayOf(form.data_until)}` : "";
  byId("about").textContent = `What would this person want next? ${count(form.items, "item")}, ${count(form.known_users, "known user")}${ended}.`;
  byId("event").replaceChildren(...form.events.map((name) => make("option", {}, name)));
  byId("event-row").hidden = form.events.length < 2;
  byId("repeats-row").hidden = form.repeats !== "allow";
  await choose(form.users[0] ?? NOBODY);
});

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const id = byId("user").value.trim();
  if (id && id !== String(who.user_id)) choose(form.users.find((one) => String(one.user_id) === id) ?? { ...NOBODY, user_id: id });
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = byId("key").value;
  byId("key").value = "";
  byId("key-form").hidden = true;
  start();
});
const askLater = later(() => ask());
for (const name of DIALS) byId(name).addEventListener("input", () => { showDials(); askLater(); });
for (const name of ["only-new", "k", "where"]) byId(name).addEventListener("change", () => ask());
byId("recommended").addEventListener("click", () => { setDials(form.dials); ask(); });
byId("plain").addEventListener("click", () => { setDials({ diversity: 0, novelty: 0 }); ask(); });
byId("search").addEventListener("input", later(attempt(search)));
byId("search").addEventListener("keydown", (event) => {
  if (event.key === "Enter") event.preventDefault();
});
start();
